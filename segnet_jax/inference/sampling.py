"""Draw dropout samples of a network (Bayesian SegNet), all T samples of an image in one batched call."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from segnet_jax.metrics.uncertainty import Uncertainty, uncertainty
from segnet_jax.system.errors import UserError

MAX_SAMPLES = 10_000
UNCERTAINTIES = ("entropy", "information", "variance")
"""Names of the uncertainty maps, fields of `metrics.uncertainty.Uncertainty`."""


def check_samples(dropout: float, num_samples: int, run: str) -> None:
    """Check that samples can be drawn and may differ.

    Raises:
      UserError: If the number is out of range, or the network has no dropout.
    """
    if not 1 <= num_samples <= MAX_SAMPLES:
        raise UserError(f"--samples must be between 1 and {MAX_SAMPLES}, got {num_samples}")
    if not dropout:
        raise UserError(f"the network of {run} has no dropout, so all its samples would be equal; remove --samples")


def image_keys(seed: int, index: jax.Array, num_samples: int) -> jax.Array:
    """Return dropout keys that depend only on the seed, the image and the sample, not on batch or device.

    Args:
      seed: random seed.
      index: indices of the images, int32 [B].
      num_samples: T.

    Returns:
      Keys, [T,B].
    """

    def keys_of(sample: jax.Array, image: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), image), sample)

    return jax.vmap(lambda sample: jax.vmap(lambda image: keys_of(sample, image))(index))(jnp.arange(num_samples))


def sample(apply: Callable[[jax.Array, jax.Array], jax.Array], images: jax.Array, keys: jax.Array) -> jax.Array:
    """Draw samples of all images in one call of the network.

    Args:
      apply: function of images [N,H,W,3] and keys [N] that returns logits [N,H,W,C], with dropout and BatchNorm's
        running statistics.
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
    """Return the mean prediction of dropout samples as logits, and its uncertainty.

    Args:
      apply: see `sample`.
      images: [B,H,W,3]; all use the same dropout masks, so that results do not depend on the batch.
      num_samples: T.
      num_classes: C.

    Returns:
      The logarithms of the mean probabilities, then each of `UNCERTAINTIES`, 0 to 1: float32 [B,H,W,C+3].
    """
    found = uncertainty(sample(apply, images, image_keys(0, jnp.zeros(len(images), jnp.int32), num_samples)))
    logits = jnp.log(jnp.maximum(found.mean, jnp.finfo(jnp.float32).tiny))
    return jnp.concatenate([logits, normalized(found, num_classes)], axis=-1)


def normalized(found: Uncertainty, num_classes: int) -> jax.Array:
    """Return each of `UNCERTAINTIES` as a fraction of its maximum, float32 [...,3], 0 to 1."""
    limits = maxima(num_classes)
    return jnp.stack([jnp.clip(getattr(found, name) / limits[name], 0, 1) for name in UNCERTAINTIES], axis=-1)


def maxima(num_classes: int) -> dict[str, float]:
    """Return the largest possible value of each uncertainty, which is drawn white."""
    entropy = math.log(num_classes) if num_classes > 1 else 1.0
    spread = (1 - 1 / num_classes) / num_classes if num_classes > 1 else 1.0  # samples certain of different classes
    return {"entropy": entropy, "information": entropy, "variance": spread}
