"""Resize images and labels to one size: stretch, letterbox or crop."""

from typing import Literal

import numpy as np
from PIL import Image

from segnet_jax.constants import VOID

Fit = Literal["stretch", "letterbox", "crop"]
"""How images of another aspect ratio are resized: distorted, padded, or cropped."""

_MAX_ENLARGED = 50_000_000  # pixels


def scaled_size(size: tuple[int, int], target: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """Return height and width to which an image is resized before padding or cropping.

    Args:
      size: height and width of the image.
      target: target height and width.
      fit: "stretch" gives the target; "letterbox" the largest size of the image's aspect ratio inside it, and "crop"
        the smallest around it.
    """
    if fit == "stretch":
        return target
    ratios = [new / old for new, old in zip(target, size, strict=True)]
    ratio = min(ratios) if fit == "letterbox" else max(ratios)
    choose = min if fit == "letterbox" else max  # rounding must not exceed the target, or leave bars in it
    height, width = (choose(new, max(1, round(old * ratio))) for new, old in zip(target, size, strict=True))
    return height, width


def fit_sample(
    image: np.ndarray, label: np.ndarray, target: tuple[int, int], fit: Fit
) -> tuple[np.ndarray, np.ndarray]:
    """Resize a sample to a target height and width.

    Cropping and padding are centered; the padding is black and VOID.

    Args:
      image: uint8 or uint16 [H,W,C].
      label: uint8 [H,W].
      target: target height and width.
      fit: resizing mode.
    """
    image, label = (_trimmed(each, target, fit) for each in (image, label))
    image, label = resize(image, label, *scaled_size(label.shape, target, fit))
    return centered(image, target, 0), centered(label, target, VOID)


def _trimmed(array: np.ndarray, target: tuple[int, int], fit: Fit) -> np.ndarray:
    """Crop an extremely long image that "crop" would first enlarge to millions of pixels; return others unchanged."""
    scaled = scaled_size(array.shape[:2], target, fit)
    if scaled[0] * scaled[1] <= max(_MAX_ENLARGED, 4 * array.shape[0] * array.shape[1]):
        return array
    kept = [min(old, -(-2 * old * new // size)) for old, new, size in zip(array.shape, target, scaled, strict=False)]
    inner = [overlap(old, keep)[0] for old, keep in zip(array.shape, kept, strict=False)]
    return array[tuple(inner)]


def fit_label(label: np.ndarray, target: tuple[int, int], fit: Fit) -> np.ndarray:
    """Resize a label, uint8 [H,W], exactly as `fit_sample` does."""
    label = _trimmed(label, target, fit)
    return centered(resize_label(label, *scaled_size(label.shape, target, fit)), target, VOID)


def centered(array: np.ndarray, target: tuple[int, int], bars: int) -> np.ndarray:
    """Center [H,W,...] in a target height and width, padding with `bars` and cropping; return it unchanged if equal."""
    if array.shape[:2] == target:
        return array
    fitted = np.full((*target, *array.shape[2:]), bars, array.dtype)
    inner, outer = zip(*map(overlap, array.shape[:2], target), strict=True)
    fitted[outer] = array[inner]
    return fitted


def overlap(size: int, target: int) -> tuple[slice, slice]:
    """Return the slices of the common part of two lengths, centered on each other."""
    common = min(size, target)
    starts = ((length - common) // 2 for length in (size, target))
    first, second = (slice(start, start + common) for start in starts)
    return first, second


def resize(image: np.ndarray, label: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Resize a sample: the image with antialiased bilinear sampling, the label with nearest-center sampling."""
    if label.shape == (height, width):
        return image, label
    return resize_image(image, height, width), resize_label(label, height, width)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image, uint8 or uint16 [H,W,C], with antialiased bilinear sampling."""
    if image.shape[:2] == (height, width):
        return image
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    # Per channel: Pillow has no 16-bit images of several channels, and multiplies others by the fourth channel.
    kind = np.uint8 if image.dtype == np.uint8 else np.float32
    channels = [Image.fromarray(channel.astype(kind)) for channel in np.moveaxis(image, -1, 0)]
    resized = [each.resize((width, height), Image.Resampling.BILINEAR) for each in channels]
    return np.stack([np.rint(each).astype(image.dtype) for each in resized], axis=-1)


def resize_label(label: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a label [H,W] with nearest-center sampling."""
    if label.shape == (height, width):
        return label
    old_height, old_width = label.shape
    rows = (2 * np.arange(height) + 1) * old_height // (2 * height)
    columns = (2 * np.arange(width) + 1) * old_width // (2 * width)
    return label[rows[:, None], columns]
