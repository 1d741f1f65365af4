"""Normalization of input images.

Weights are stored with the preprocessing that they were trained with. All values are RGB in 0..255; the input channels
of weights trained on BGR are reversed when they are loaded.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclass(frozen=True)
class Preprocessing:
    """A mean to subtract and a standard deviation to divide by, for each channel; for RGB in 0..255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


TORCH = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
"""torchvision's ImageNet weights: mean .485 .456 .406 and std .229 .224 .225 of 0..1."""

CAFFE = Preprocessing(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0))
"""The VGG authors' weights, which Keras ships too: mean subtracted, not scaled."""

RAW = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""SegNet-Tutorial: unchanged, 0..255."""

IMAGENET_STD = sum(TORCH.std) / 3
"""Standard deviation of ImageNet's images, the mean over RGB."""

PREPROCESSINGS = {"torch": TORCH, "caffe": CAFFE, "raw": RAW}


def normalize(image: jax.Array, preprocessing: Preprocessing, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Subtract the mean and divide by the standard deviation, in float32.

    Args:
      image: uint8 or float [B,H,W,3] RGB, 0..255; or of other channels, uint8 or uint16, as `preprocessing` is.
      preprocessing: what the network's weights expect.
      dtype: dtype of the output.

    Returns:
      The image's shape.
    """
    mean, std = (jnp.array(values, jnp.float32)[None, None, None] for values in (preprocessing.mean, preprocessing.std))
    return ((image.astype(jnp.float32) - mean) / std).astype(dtype)
