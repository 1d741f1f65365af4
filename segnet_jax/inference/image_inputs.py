"""Image inputs of the Python API: paths, Pillow images and arrays."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from segnet_jax.constants import RGB, Exif, Pixels
from segnet_jax.data.images.decode import read_image

_WIDE_MODES = ("I", "F")  # and I;16 and its relatives: 16 and 32 bits per channel

ImageLike = str | pathlib.Path | Image.Image | np.ndarray


def is_single(images: Any) -> bool:
    """Return whether `images` is one image: a path, a Pillow image, or an array [H,W] or [H,W,C]."""
    return isinstance(images, str | pathlib.Path | Image.Image) or (
        not isinstance(images, list | tuple) and np.ndim(images) in (2, 3)
    )


def as_array(image: ImageLike, exif: Exif, image_range: tuple[int, int], pixels: Pixels = RGB) -> np.ndarray:
    """Return an image as uint8 [H,W,3] RGB; with other `pixels`, the image must already have that format.

    Args:
      image: a path, read with the run's options; a Pillow image of 8 bits per channel in any mode, whose alpha channel
        is dropped; or an array [H,W,3] RGB or [H,W] gray, uint8 0..255 or float 0..1.
      exif: how to treat an EXIF rotation of a file.
      image_range: values of black and white in 16-bit files; (0, 0) refuses them.
      pixels: format of the network's images.

    Raises:
      ValueError: If the image is none of these.
      UserError: If a file cannot be read.
    """
    if isinstance(image, str | pathlib.Path):
        path = pathlib.Path(image).expanduser()
        return read_image(path, str(image), exif, image_range, pixels=pixels)
    if pixels != RGB:
        array = np.asarray(image)
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[-1] != pixels.channels or array.dtype != pixels.dtype or not array.size:
            expected = f"{pixels.dtype} [H,W,{pixels.channels}]" + " or [H,W]" * (pixels.channels == 1)
            raise ValueError(f"an image must be {expected}, got {array.dtype} {list(np.shape(image))}")
        return array
    if isinstance(image, Image.Image):
        if image.mode.startswith(_WIDE_MODES):
            raise ValueError(f"a Pillow image must have 8 bits per channel, got mode {image.mode}: scale it to 0..255")
        return np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"an image must be [H,W,3] RGB or [H,W] gray, got shape {list(np.shape(image))}")
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (0 <= low and high <= 1):  # NaN fails too
            raise ValueError(f"a float image must be in 0..1, got {low:g} to {high:g}: divide it by 255, or pass uint8")
        array = np.round(255 * array).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"an image must be uint8 0..255 or float 0..1, got {array.dtype}")
    return array


def split_images(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """Return a list of single images.

    Raises:
      ValueError: If there is no image.
    """
    found = [images] if is_single(images) else list(images)
    if not found:
        raise ValueError("no image given")
    return found
