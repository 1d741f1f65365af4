"""Dropout with one random key per image, so that masks do not depend on which device an image is on."""

import jax
import jax.numpy as jnp


def drop(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Zero each element with probability `rate` and divide the others by 1 - rate.

    Args:
      x: float [B,H,W,C].
      keys: random keys, one per image, [B].
      rate: 0 to 1.

    Returns:
      [B,H,W,C] in x's dtype.
    """
    keep_prob = jnp.float32(1 - rate)  # fixes the dtype of the draws: JAX_ENABLE_X64 must not change the mask
    mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep_prob, x.shape[1:]))(keys)
    return jnp.where(mask, x / (1 - rate), jnp.zeros((), x.dtype))


def fold_in_layer(keys: jax.Array, index: int) -> jax.Array:
    """Derive the keys [B] of the dropout layer with this index."""
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
