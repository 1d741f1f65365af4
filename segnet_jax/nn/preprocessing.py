"""Normalization of input images.

Weights are stored with the preprocessing used in training. All values are RGB in 0..255; weights trained on BGR have
their input channels reversed when they are loaded.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclass(frozen=True)
class Preprocessing:
    """Mean to subtract and standard deviation to divide by, per channel, on the scale of the raw pixel values."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


TORCH = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
"""For torchvision's ImageNet weights: mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225), times 255."""

CAFFE = Preprocessing(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0))
"""For the VGG authors' weights, which Keras also distributes: the mean is subtracted, without scaling."""

RAW = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""For SegNet-Tutorial's weights: unchanged values in 0..255."""

IMAGENET_STD = sum(TORCH.std) / 3
"""Standard deviation of ImageNet's images, averaged over RGB."""

PREPROCESSINGS = {"torch": TORCH, "caffe": CAFFE, "raw": RAW}


def normalize(image: jax.Array, preprocessing: Preprocessing, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Subtract the mean and divide by the standard deviation, in float32.

    Args:
      image: uint8 or float [B,H,W,3] RGB in 0..255, or uint8 or uint16 with the channels of `preprocessing`.
      preprocessing: preprocessing that the network's weights expect.
      dtype: dtype of the output.

    Returns:
      The normalized image, in the same shape and the given dtype.
    """
    mean, std = (jnp.array(values, jnp.float32)[None, None, None] for values in (preprocessing.mean, preprocessing.std))
    return ((image.astype(jnp.float32) - mean) / std).astype(dtype)
