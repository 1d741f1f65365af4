"""Online hard example mining (OHEM): cross-entropy of the hardest pixels only."""

import jax
import jax.numpy as jnp

from segnet_jax.constants import VOID
from segnet_jax.training.losses.loss import Loss, in_range, ratio
from segnet_jax.training.losses.pixels import pixel_cross_entropy


def ohem(threshold: float = 0.7, keep: float = 0.0625) -> Loss:
    """Return the weighted cross-entropy loss, a mean over the hard pixels.

    A labeled pixel is hard if the probability of its class is below `threshold`, or among the lowest in its image: at
    least the fraction `keep` of each image's labeled pixels counts. Choosing within each image makes the loss
    independent of how images are distributed over devices and batches.

    Args:
      threshold: probability, 0 to 1.
      keep: fraction of the labeled pixels, 0 to 1.

    Source: Shrivastava et al. 2016 (arXiv 1604.03540); threshold and minimum as in HRNet's `OhemCrossEntropy`, whose
    minimum counts over the batch.
    """
    in_range("threshold", threshold, 0, 1)
    in_range("keep", keep, 0, 1)

    def sums(logits, label, class_weights):
        each, weight = pixel_cross_entropy(logits, label, class_weights)
        is_hard = _hard(jax.lax.stop_gradient(jnp.exp(-each)), label, threshold, keep)
        total = jnp.sum(jnp.where(is_hard, weight * each, 0.0))
        return total, jnp.sum(is_hard, dtype=jnp.float32)

    return Loss(sums, ratio)


def _hard(probability: jax.Array, label: jax.Array, threshold: float, keep: float) -> jax.Array:
    valid = label != VOID
    easiest_last = jnp.sort(jnp.where(valid, probability, jnp.inf).reshape(len(label), -1), axis=-1)
    num_kept = jnp.ceil(keep * jnp.sum(valid, axis=(1, 2), dtype=jnp.float32)).astype(jnp.int32)
    last = jnp.maximum(num_kept - 1, 0)[:, None]
    limit = jnp.take_along_axis(easiest_last, last, axis=-1)[..., None]  # the easiest one that must count, [B,1,1]
    is_kept = (num_kept > 0)[:, None, None] & (probability <= limit)
    return valid & ((probability < threshold) | is_kept)
