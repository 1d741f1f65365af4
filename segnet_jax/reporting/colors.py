"""Class colors: labels as pictures, and overlays on images."""

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.nn.label_bits import unpack


def colorize(label: np.ndarray, classes: ClassTable) -> np.ndarray:
    """Paint each pixel in the color of its class, VOID in black.

    Args:
      label: uint8 [...,H,W] of class ids or VOID.
      classes: the class colors.

    Returns:
      uint8 [...,H,W,3] RGB.
    """
    known, num_values = label[label != VOID], 1 << len(classes) if classes.multi_label else len(classes)
    assert known.max(initial=0) < num_values, f"class id {known.max()} among {len(classes)} classes"
    return palette(classes)[label]


def palette(classes: ClassTable) -> np.ndarray:
    """Return the color of each label value, uint8 [256,3]; of several classes in a pixel, their mean."""
    colors = np.zeros((256, 3), np.uint8)
    if not classes.multi_label:
        colors[: len(classes)] = classes.colors
        return colors
    has_class = unpack(np.arange(1, 1 << len(classes), dtype=np.uint8), len(classes))
    means = has_class @ np.array(classes.colors, float) / has_class.sum(axis=1, keepdims=True)
    colors[1 : 1 << len(classes)] = np.rint(means)
    return colors


def hatch(picture: np.ndarray, where: np.ndarray, period: int = 10) -> np.ndarray:
    """Draw diagonal black and white stripes over a dimmed picture, so that void is not mistaken for a black class.

    Args:
      picture: uint8 [...,H,W,3] RGB.
      where: bool [...,H,W], the pixels to hatch.
      period: distance between stripes along a row, pixels.

    Returns:
      uint8 [...,H,W,3] RGB.
    """
    height, width = picture.shape[-3:-1]
    phase = (np.arange(height)[:, None] + np.arange(width)) % period
    stroke = max(1, period // 5)
    hatched = np.where((phase < stroke)[..., None], np.uint8(255), picture // 2)
    hatched = np.where(((phase >= stroke) & (phase < 2 * stroke))[..., None], np.uint8(0), hatched)
    return np.where(where[..., None], hatched, picture)


def displayable(image: np.ndarray) -> np.ndarray:
    """Convert images to RGB for display: the first three channels or the first, with 16-bit values stretched to 0..255.

    Args:
      image: uint8 or uint16 [...,H,W,C].

    Returns:
      uint8 [...,H,W,3]; the array itself if it already has this shape and dtype.
    """
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return image
    shown = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if shown.dtype == np.uint8:
        return shown
    low, high = int(shown.min()), int(shown.max())
    return ((shown - np.float32(low)) * np.float32(255 / max(high - low, 1)) + np.float32(0.5)).astype(np.uint8)


def overlay(image: np.ndarray, label: np.ndarray, classes: ClassTable, transparency: float = 0.4) -> np.ndarray:
    """Blend an image with the colors of its classes; VOID pixels, and those without a class, keep the image.

    Args:
      image: uint8 [...,H,W,3] RGB.
      label: uint8 [...,H,W] of class ids or VOID.
      classes: the class colors.
      transparency: weight of the image, 0..1; the MATLAB example uses 0.4.

    Returns:
      uint8 [...,H,W,3] RGB.
    """
    mixed = np.rint(transparency * image + (1 - transparency) * colorize(label, classes)).astype(np.uint8)
    is_bare = (label == VOID) | (label == 0) if classes.multi_label else label == VOID
    return np.where(is_bare[..., None], image, mixed)
