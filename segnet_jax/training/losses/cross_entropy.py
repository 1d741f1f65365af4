"""Cross-entropy, with label smoothing, and the focal loss."""

import jax
import jax.numpy as jnp

from segnet_jax.constants import VOID
from segnet_jax.training.losses.loss import Loss, in_range
from segnet_jax.training.losses.pixels import pixel_cross_entropy


def cross_entropy(smoothing: float = 0.0) -> Loss:
    """Return the weighted cross-entropy loss, a mean over the labeled pixels.

    With label smoothing, the target of a pixel is 1 - smoothing on its class plus smoothing / C on every class, and the
    class weights apply to each class of the target, as in PyTorch.

    Args:
      smoothing: label smoothing, 0 to 1.
    """
    in_range("smoothing", smoothing, 0, 1)
    if not smoothing:
        return CROSS_ENTROPY

    def sums(logits, label, class_weights):
        log_p = jax.nn.log_softmax(logits)
        spread = -jnp.sum(class_weights[None, None, None] * log_p, axis=-1) / logits.shape[-1]
        uniform = jnp.sum(jnp.where(label != VOID, spread, 0.0))
        return (1 - smoothing) * cross_entropy_sum(logits, label, class_weights) + smoothing * uniform

    return Loss(sums)


def cross_entropy_sum(logits: jax.Array, label: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Sum weight * cross-entropy over the labeled pixels.

    As in Caffe (caffe-segnet's `normalize: true`) and MATLAB, the step divides the sum over all devices by the number
    of labeled pixels, not by the sum of their weights.

    Args:
      logits: float32 [B,H,W,C].
      label: uint8 [B,H,W], class ids or VOID.
      class_weights: float32 [C].

    Returns:
      float32 scalar; 0 if every pixel is void.
    """
    each, weight = pixel_cross_entropy(logits, label, class_weights)
    return jnp.sum(weight * each)


CROSS_ENTROPY = Loss(cross_entropy_sum)


def focal(gamma: float = 2.0) -> Loss:
    """Return the focal loss: cross-entropy times (1 - p)^gamma, with p the probability of the pixel's class.

    The loss is a mean over the labeled pixels; the class weights serve as alpha.

    Args:
      gamma: 0 (cross-entropy) to 10.

    Source: Lin et al. 2017 (arXiv 1708.02002).
    """
    in_range("gamma", gamma, 0, 10)

    def sums(logits, label, class_weights):
        each, weight = pixel_cross_entropy(logits, label, class_weights)
        wrong = jnp.maximum(-jnp.expm1(-each), 1e-7)  # 1 - p; at 0, a power below 1 has no finite gradient
        return jnp.sum(weight * wrong**gamma * each)

    return Loss(sums)
