"""Pictures of all sizes brought to one: stretched, or whole between bars, or filled and cut."""

from typing import Literal

import numpy as np
from PIL import Image

from segnet_jax.constants import VOID

Fit = Literal["stretch", "letterbox", "crop"]
"""How a picture comes to a size of another shape: with its own shape lost, with bars, or with its ends cut off."""


_MOST_ENLARGED = 50_000_000  # pixels


def scaled_size(size: tuple[int, int], target: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """Height and width to which a picture is resized on its way to the target size.

    Args:
      size: height and width of the picture.
      target: height and width wished.
      fit: "stretch" gives the target itself; "letterbox" the largest size of the picture's shape inside it, "crop" the
        smallest around it.
    """
    if fit == "stretch":
        return target
    ratios = [wished / has for wished, has in zip(target, size, strict=True)]
    ratio = min(ratios) if fit == "letterbox" else max(ratios)
    choose = min if fit == "letterbox" else max  # rounding must not leave the target, or bars in it
    height, width = (choose(wished, max(1, round(has * ratio))) for wished, has in zip(target, size, strict=True))
    return height, width


def fit_record(
    image: np.ndarray, label: np.ndarray, target: tuple[int, int], fit: Fit
) -> tuple[np.ndarray, np.ndarray]:
    """Brings a record to a size.

    Args:
      image: uint8 [H,W,3].
      label: uint8 [H,W].
      target: height and width wished.
      fit: how; what is cut off is cut off at both ends alike, and bars are black and VOID.

    Returns:
      image uint8 [*target,3] and label uint8 [*target].
    """
    image, label = (_trimmed(each, target, fit) for each in (image, label))
    image, label = resize(image, label, *scaled_size(label.shape, target, fit))
    return centred(image, target, 0), centred(label, target, VOID)


def _trimmed(array: np.ndarray, target: tuple[int, int], fit: Fit) -> np.ndarray:
    """The middle of a picture of an extreme shape that "crop" would enlarge to millions of pixels, most to be cut off.

    Others are given as they are: their pixels must not change with this.
    """
    scaled = scaled_size(array.shape[:2], target, fit)
    if scaled[0] * scaled[1] <= max(_MOST_ENLARGED, 4 * array.shape[0] * array.shape[1]):
        return array
    kept = [
        min(has, -(-2 * has * wished // size)) for has, wished, size in zip(array.shape, target, scaled, strict=False)
    ]
    inner = [overlap(has, keep)[0] for has, keep in zip(array.shape, kept, strict=False)]
    return array[tuple(inner)]


def fit_label(label: np.ndarray, target: tuple[int, int], fit: Fit) -> np.ndarray:
    """Bring a label, uint8 [H,W], to a size exactly as `fit_record` does."""
    label = _trimmed(label, target, fit)
    return centred(resize_label(label, *scaled_size(label.shape, target, fit)), target, VOID)


def centred(array: np.ndarray, target: tuple[int, int], bars: int) -> np.ndarray:
    """Puts an image or a label into the middle of another height and width.

    Args:
      array: [H,W,...].
      target: height and width wished.
      bars: the value of what is not covered.

    Returns:
      [*target,...] in the array's dtype; the array given if it has that size.
    """
    if array.shape[:2] == target:
        return array
    fitted = np.full((*target, *array.shape[2:]), bars, array.dtype)
    inner, outer = zip(*map(overlap, array.shape[:2], target), strict=True)
    fitted[outer] = array[inner]
    return fitted


def overlap(has: int, wished: int) -> tuple[slice, slice]:
    """Which part of so many rows lies where in so many others, both in the middle of one another."""
    common = min(has, wished)
    starts = ((size - common) // 2 for size in (has, wished))
    first, second = (slice(start, start + common) for start in starts)
    return first, second


def resize(image: np.ndarray, label: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Resizes a record: the image antialiased bilinear, the label to the pixel nearest to each new centre.

    Args:
      image: uint8 [H,W,3].
      label: uint8 [H,W].
      height: new height in pixels.
      width: new width in pixels.

    Returns:
      image uint8 [height,width,3] and label uint8 [height,width]; the arrays given if they have that size.
    """
    if label.shape == (height, width):
        return image, label
    return resize_image(image, height, width), resize_label(label, height, width)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image, uint8 [H,W,3], by antialiased bilinear sampling; itself if it has that size."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_label(label: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a label [H,W] to the pixel nearest to each new centre."""
    if label.shape == (height, width):
        return label
    old_height, old_width = label.shape
    rows = (2 * np.arange(height) + 1) * old_height // (2 * height)
    columns = (2 * np.arange(width) + 1) * old_width // (2 * width)
    return label[rows[:, None], columns]
