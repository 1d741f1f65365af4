"""Losses as sums over pixels, so that devices with different numbers of void pixels are weighted correctly."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from segnet_jax.constants import VOID

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(logits float32 [B,H,W,C], label uint8 [B,H,W], class weights float32 [C]) -> float32 scalar: a sum over the labeled
pixels or over the images. The step adds it up over devices and divides by the labeled pixels of the global batch."""


def num_valid(label: jax.Array) -> jax.Array:
    """Return the number of labeled pixels, int32."""
    return jnp.sum(label != VOID, dtype=jnp.int32)


def cross_entropy_sum(logits: jax.Array, label: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Sum weight * cross-entropy over the labeled pixels.

    As in Caffe (caffe-segnet's `normalize: true`) and MATLAB, the step divides the sum over all devices by the number
    of labeled pixels, not by the sum of their weights.

    Args:
      logits: float32 [B,H,W,C].
      label: uint8 [B,H,W], class ids or VOID.
      class_weights: float32 [C].

    Returns:
      float32 scalar; 0 where every pixel is void.
    """
    valid = label != VOID
    class_id = jnp.where(valid, label, 0).astype(jnp.int32)
    each = jax.nn.logsumexp(logits, axis=-1) - _chosen(logits, class_id)
    weight = jnp.where(valid, class_weights[class_id], 0.0)
    return jnp.sum(weight * each)


@jax.custom_vjp
def _chosen(logits: jax.Array, class_id: jax.Array) -> jax.Array:
    """Return the logit of each pixel's class; its gradient is a compare-and-select where JAX's would be a scatter."""
    return jnp.take_along_axis(logits, class_id[..., None], axis=-1)[..., 0]


def _chosen_forward(logits, class_id):
    return _chosen(logits, class_id), (class_id, jnp.arange(logits.shape[-1], dtype=class_id.dtype))


def _chosen_backward(residuals, gradient):
    class_id, classes = residuals
    return jnp.where(class_id[..., None] == classes[None, None, None], gradient[..., None], 0), None


_chosen.defvjp(_chosen_forward, _chosen_backward)


def num_right(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Return the number of labeled pixels with a correct prediction, int32."""
    prediction = jnp.argmax(logits, axis=-1).astype(label.dtype)
    return jnp.sum(prediction == label, dtype=jnp.int32)  # no prediction is VOID
