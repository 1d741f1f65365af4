"""Dice and Tversky losses of the overlap between predicted and labeled regions, over all pixels of a batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from segnet_jax.constants import VOID
from segnet_jax.training.losses.loss import Loss, Mean, in_range, one_hot, weighted_class_mean


class Overlap(NamedTuple):
    """Sums over the labeled pixels for each class, float32 [C]; p is the softmax, t is 1 where the label has the class.

    Attributes:
      both: sum of p * t.
      predicted: sum of p.
      labeled: sum of t.
    """

    both: jax.Array
    predicted: jax.Array
    labeled: jax.Array


def overlap(logits: jax.Array, label: jax.Array, class_weights: jax.Array) -> Overlap:
    """Return the overlap of softmax(logits), [B,H,W,C], and label, [B,H,W]; the class weights are not used."""
    p = jnp.where((label != VOID)[..., None], jax.nn.softmax(logits), 0.0)
    t = one_hot(label, logits.shape[-1])
    axes = (0, 1, 2)
    return Overlap(jnp.sum(jnp.where(t, p, 0.0), axes), jnp.sum(p, axes), jnp.sum(t, axes, dtype=jnp.float32))


def dice() -> Loss:
    """Return the Dice loss, 1 - 2 * both / (predicted + labeled), a weighted mean over the classes in the labels.

    Source: Milletari et al. 2016 (arXiv 1606.04797), with sums instead of sums of squares.
    """
    return tversky(0.5, 0.5)


def tversky(alpha: float = 0.3, beta: float = 0.7) -> Loss:
    """Return the Tversky loss, 1 - the Tversky index, a weighted mean over the classes in the batch's labels.

    The index is both / (both + alpha * false positives + beta * false negatives). If alpha and beta are 0.5, it is the
    Dice coefficient.

    Args:
      alpha: weight of false positives, 0 to 10.
      beta: weight of false negatives, 0 to 10.

    Source: Salehi et al. 2017 (arXiv 1706.05721).
    """
    return Loss(overlap, tversky_mean(alpha, beta))


def tversky_mean(alpha: float, beta: float) -> Mean:
    """Return the `mean` of `tversky`, a function of an `Overlap`.

    Raises:
      ValueError: If a weight is out of range.
    """
    in_range("alpha", alpha, 0, 10)
    in_range("beta", beta, 0, 10)

    def mean(sums, num_pixels, class_weights):
        both, predicted, labeled = sums
        false_positives, false_negatives = predicted - both, labeled - both
        union = both + alpha * false_positives + beta * false_negatives
        is_present = labeled > 0
        index = both / jnp.where(is_present, jnp.maximum(union, 1e-12), 1.0)
        return weighted_class_mean(1 - index, is_present, class_weights)

    return mean
