"""Losses of labels with several classes per pixel: the logit of each class has a sigmoid of its own.

Labels are bit masks, see `nn.label_bits`. A pixel that is not void is labeled for every class, and its loss is the mean
over the classes, each times its class weight.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from segnet_jax.constants import VOID
from segnet_jax.nn.label_bits import classes_above_half, unpack
from segnet_jax.training.losses.loss import Loss, in_range
from segnet_jax.training.losses.region import Overlap, tversky_mean


def _sum_over_pixels(each: jax.Array, label: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Sum the mean over the classes of weight * loss, [B,H,W,C], over the labeled pixels."""
    pixels = jnp.mean(class_weights[None, None, None] * each, axis=-1)
    return jnp.sum(jnp.where(label != VOID, pixels, 0.0))


def binary_cross_entropy(smoothing: float = 0.0) -> Loss:
    """Return weighted binary cross-entropy, a mean over the labeled pixels and the classes.

    Args:
      smoothing: 0 to 1; the targets are smoothing / 2 and 1 - smoothing / 2.
    """
    in_range("smoothing", smoothing, 0, 1)

    def sums(logits, label, class_weights):
        target = unpack(label, logits.shape[-1]).astype(jnp.float32) * (1 - smoothing) + smoothing / 2
        return _sum_over_pixels(jax.nn.softplus(logits) - target * logits, label, class_weights)

    return Loss(sums)


def focal(gamma: float = 2.0) -> Loss:
    """Return the focal loss: binary cross-entropy times (1 - p)^gamma, with p the probability of what the label says.

    Args:
      gamma: 0 (cross-entropy) to 10.

    Source: Lin et al. 2017 (arXiv 1708.02002).
    """
    in_range("gamma", gamma, 0, 10)

    def sums(logits, label, class_weights):
        each = jax.nn.softplus(jnp.where(unpack(label, logits.shape[-1]), -logits, logits))
        wrong = jnp.maximum(-jnp.expm1(-each), 1e-7)  # 1 - p; of 0, a power below 1 would have no gradient
        return _sum_over_pixels(wrong**gamma * each, label, class_weights)

    return Loss(sums)


def overlap(logits: jax.Array, label: jax.Array, class_weights: jax.Array) -> Overlap:
    """Return the overlap of sigmoid(logits), [B,H,W,C], and label, [B,H,W]; the class weights are not used."""
    valid = (label != VOID)[..., None]
    p, t = jnp.where(valid, jax.nn.sigmoid(logits), 0.0), unpack(label, logits.shape[-1]) & valid
    axes = (0, 1, 2)
    return Overlap(jnp.sum(jnp.where(t, p, 0.0), axes), jnp.sum(p, axes), jnp.sum(t, axes, dtype=jnp.float32))


def dice() -> Loss:
    """Return 1 - soft Dice of each class, as `region.dice`."""
    return tversky(0.5, 0.5)


def tversky(alpha: float = 0.3, beta: float = 0.7) -> Loss:
    """Return 1 - the Tversky index of each class, as `region.tversky`."""
    return Loss(overlap, tversky_mean(alpha, beta))


LOSSES: dict[str, Callable[..., Loss]] = {
    "ce": binary_cross_entropy,
    "focal": focal,
    "dice": dice,
    "tversky": tversky,
}
"""Name in a formula -> loss, as `table.LOSSES`."""


def num_right(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Return the number of labeled pixels of which every class is predicted correctly, int32."""
    return jnp.sum(classes_above_half(logits) == label, dtype=jnp.int32)  # no prediction is VOID
