"""Class-weighted cross-entropy as a sum, so that devices with unequal numbers of void pixels add up right."""

import jax
import jax.numpy as jnp
import optax

from segnet_jax.constants import VOID


def num_valid(label: jax.Array) -> jax.Array:
    """Number of labelled pixels, int32."""
    return jnp.sum(label != VOID, dtype=jnp.int32)


def cross_entropy_sum(logits: jax.Array, label: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Sums weight * cross-entropy over the labelled pixels.

    Caffe and MATLAB divide this sum by the number of labelled pixels, not by the sum of their weights
    (caffe-segnet's `normalize: true`); the division is the step's, after adding up all devices.

    Args:
      logits: float32 [B,H,W,C].
      label: uint8 [B,H,W], class ids or VOID.
      class_weights: float32 [C].

    Returns:
      float32 scalar; 0 where every pixel is void.
    """
    valid = label != VOID
    class_id = jnp.where(valid, label, 0).astype(jnp.int32)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, class_id)
    weight = jnp.where(valid, class_weights[class_id], 0.0)
    return jnp.sum(weight * each)


def num_right(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Number of labelled pixels whose largest logit is their class, int32."""
    prediction = jnp.argmax(logits, axis=-1).astype(label.dtype)
    return jnp.sum(prediction == label, dtype=jnp.int32)  # no prediction is VOID
