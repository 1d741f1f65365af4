"""Losses, listed by name in `table.LOSSES`; `formula.parse_loss` parses weighted sums of them."""

from segnet_jax.training.losses.cross_entropy import CROSS_ENTROPY, cross_entropy_sum
from segnet_jax.training.losses.formula import parse_loss
from segnet_jax.training.losses.loss import Loss, num_right, num_valid
from segnet_jax.training.losses.table import LOSSES

__all__ = ["CROSS_ENTROPY", "LOSSES", "Loss", "cross_entropy_sum", "num_right", "num_valid", "parse_loss"]
