"""Samples of what a network with dropout says of an image: T of them in one batched call (Bayesian SegNet)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from segnet_jax.metrics.uncertainty import Uncertainty, uncertainty
from segnet_jax.system.errors import UserError

MOST_SAMPLES = 10_000
MEASURES = ("entropy", "information", "variance")
"""Of uncertainty, as in `metrics.uncertainty.Uncertainty`."""


def check_samples(dropout: float, num_samples: int, run: str) -> None:
    """Refuses samples that could not be drawn, or would all be alike.

    Raises:
      UserError: if so.
    """
    if not 1 <= num_samples <= MOST_SAMPLES:
        raise UserError(f"--samples must be between 1 and {MOST_SAMPLES}, got {num_samples}")
    if not dropout:
        raise UserError(
            f"the network of {run} has no dropout, so that all samples of it are alike: leave --samples out"
        )


def image_keys(seed: int, index: jax.Array, num_samples: int) -> jax.Array:
    """Keys of dropout that depend on nothing but the image: not on its batch nor on its device.

    Args:
      seed: of all of them.
      index: int32 [B], which image it is.
      num_samples: T.

    Returns:
      [T,B].
    """

    def keys_of(sample: jax.Array, image: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), image), sample)

    return jax.vmap(lambda sample: jax.vmap(lambda image: keys_of(sample, image))(index))(jnp.arange(num_samples))


def sample(apply: Callable[[jax.Array, jax.Array], jax.Array], images: jax.Array, keys: jax.Array) -> jax.Array:
    """Draws samples of all images in one call of the network.

    Args:
      apply: (images [N,H,W,3], keys [N]) -> logits [N,H,W,C], with dropout and BatchNorm's running statistics.
      images: [B,H,W,3].
      keys: [T,B].

    Returns:
      Probabilities, float32 [T,B,H,W,C].
    """
    repeated = jnp.broadcast_to(images[None], (len(keys), *images.shape)).reshape(-1, *images.shape[1:])
    probabilities = jax.nn.softmax(apply(repeated, keys.ravel()), axis=-1)
    return probabilities.reshape(*keys.shape, *probabilities.shape[1:])


def sampled_maps(
    apply: Callable[[jax.Array, jax.Array], jax.Array], images: jax.Array, num_samples: int, num_classes: int
) -> jax.Array:
    """What samples of images say together, in the place of logits.

    Args:
      apply: as of `sample`.
      images: [B,H,W,3]; each gets the same dropout, so that what is found does not depend on its batch.
      num_samples: T.
      num_classes: C.

    Returns:
      float32 [B,H,W,C+3]: the logarithms of the mean probabilities, and each of `MEASURES` from 0 to 1.
    """
    found = uncertainty(sample(apply, images, image_keys(0, jnp.zeros(len(images), jnp.int32), num_samples)))
    logits = jnp.log(jnp.maximum(found.mean, jnp.finfo(jnp.float32).tiny))
    return jnp.concatenate([logits, measured(found, num_classes)], axis=-1)


def measured(found: Uncertainty, num_classes: int) -> jax.Array:
    """Each of `MEASURES` as a share of its largest value, float32 [...,3], 0 to 1."""
    most = largest(num_classes)
    return jnp.stack([jnp.clip(getattr(found, name) / most[name], 0, 1) for name in MEASURES], axis=-1)


def largest(num_classes: int) -> dict[str, float]:
    """The largest value that each measure of uncertainty can have, with which its picture is white."""
    entropy = math.log(num_classes) if num_classes > 1 else 1.0
    spread = (1 - 1 / num_classes) / num_classes if num_classes > 1 else 1.0  # of samples each sure of another class
    return {"entropy": entropy, "information": entropy, "variance": spread}
