"""Dropout whose masks belong to the images, so that they do not depend on which device has an image."""

import jax
import jax.numpy as jnp


def drop(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Sets each number to zero with probability `rate`, and divides the others by what is left.

    Args:
      x: float [B,H,W,C].
      keys: of random numbers, one for each image, [B].
      rate: 0 to 1.

    Returns:
      [B,H,W,C] in x's dtype. The mean over many keys is x.
    """
    share = jnp.float32(1 - rate)  # its type is that of the draws: float64 would draw another mask under JAX_ENABLE_X64
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, share, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))


def keys_at(keys: jax.Array, place: int) -> jax.Array:
    """Other keys for each place in the network that drops, [B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
