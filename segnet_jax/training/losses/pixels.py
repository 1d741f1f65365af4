"""The cross-entropy of each pixel, on which several losses are built."""

import jax
import jax.numpy as jnp

from segnet_jax.constants import VOID


def pixel_cross_entropy(logits: jax.Array, label: jax.Array, class_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return each pixel's cross-entropy and its class weight, which is 0 for VOID; float32 [B,H,W] each."""
    valid = label != VOID
    class_id = jnp.where(valid, label, 0).astype(jnp.int32)
    each = jax.nn.logsumexp(logits, axis=-1) - _chosen(logits, class_id)
    return each, jnp.where(valid, class_weights[class_id], 0.0)


@jax.custom_vjp
def _chosen(logits: jax.Array, class_id: jax.Array) -> jax.Array:
    """Return the logit of each pixel's class; its gradient is a compare-and-select instead of JAX's scatter."""
    return jnp.take_along_axis(logits, class_id[..., None], axis=-1)[..., 0]


def _chosen_forward(logits, class_id):
    return _chosen(logits, class_id), (class_id, jnp.arange(logits.shape[-1], dtype=class_id.dtype))


def _chosen_backward(residuals, gradient):
    class_id, classes = residuals
    return jnp.where(class_id[..., None] == classes[None, None, None], gradient[..., None], 0), None


_chosen.defvjp(_chosen_forward, _chosen_backward)
