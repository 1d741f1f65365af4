"""The losses by name, as `--loss` takes them."""

from collections.abc import Callable

from segnet_jax.training.losses.cross_entropy import cross_entropy, focal
from segnet_jax.training.losses.loss import Loss
from segnet_jax.training.losses.lovasz import lovasz
from segnet_jax.training.losses.ohem import ohem
from segnet_jax.training.losses.region import dice, tversky

LOSSES: dict[str, Callable[..., Loss]] = {
    "ce": cross_entropy,
    "focal": focal,
    "ohem": ohem,
    "dice": dice,
    "tversky": tversky,
    "lovasz": lovasz,
}
"""Name in a formula -> function of the loss's parameters, which have defaults; raises ValueError for invalid ones."""
