"""Losses: one function or small file each, a row of `table.LOSSES`, and their weighted sums by `formula.parse_loss`."""

from segnet_jax.training.losses.cross_entropy import CROSS_ENTROPY, cross_entropy_sum
from segnet_jax.training.losses.formula import parse_loss
from segnet_jax.training.losses.loss import Loss, num_right, num_valid
from segnet_jax.training.losses.table import LOSSES

__all__ = ["CROSS_ENTROPY", "LOSSES", "Loss", "cross_entropy_sum", "num_right", "num_valid", "parse_loss"]
