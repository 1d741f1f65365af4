"""Augmentation of one image and its label: color, scale, then the article's reflection and shift.

Color and scale use 32-bit integer arithmetic in one function for numpy on the host and JAX on the device, so both give
the same bytes.
"""

from types import ModuleType
from typing import Any

import numpy as np

from segnet_jax.constants import VOID

PIXEL_BITS = 14  # subpixel positions are multiples of 2^-14
PIXEL = 1 << PIXEL_BITS
PLACES = 2048  # steps between the extreme positions of a scaled image


def recolor(image: Any, gain: Any, offset: Any, xp: ModuleType) -> Any:
    """Change each channel's contrast and brightness.

    Args:
      image: uint8 [H,W,3].
      gain: int32 [3], in 256ths.
      offset: int32 [3], in 256ths of a gray level, added afterwards; includes the half for rounding.
      xp: numpy or jax.numpy.

    Returns:
      uint8 [H,W,3].
    """
    wide = image.astype(xp.int32) * gain[None, None] + offset[None, None]
    return (wide >> 8).clip(0, 255).astype(xp.uint8)


def resample(image: Any, label: Any, step: Any, place_y: Any, place_x: Any, xp: ModuleType) -> tuple[Any, Any]:
    """Zoom in or out within the same frame; uncovered pixels are 0 and VOID.

    The image is interpolated bilinearly with 8-bit weights; the label takes the nearest pixel.

    Args:
      image: uint8 [H,W,3].
      label: uint8 [H,W].
      step: int32, input pixels per output pixel, in 2^-14.
      place_y: int32, 0 to PLACES: vertical position of the crop, or of the shrunken image, from top to bottom.
      place_x: likewise, left to right.
      xp: numpy or jax.numpy.

    Returns:
      The same shapes.
    """
    rows, columns = (
        _sources(xp.arange(size, dtype=xp.int32), size, step, place)
        for size, place in zip(label.shape, (place_y, place_x), strict=True)
    )
    wide = image
    for axis, (first, second, weight, _, _) in enumerate((rows, columns)):
        weight = weight[:, None, None] if axis == 0 else weight[None, :, None]
        one, other = (xp.take(wide, place, axis=axis, mode="clip").astype(xp.int32) for place in (first, second))
        wide = one * (256 - weight) + other * weight
    nearest = label
    for axis, (_, _, _, place, _) in enumerate((rows, columns)):
        nearest = xp.take(nearest, place, axis=axis, mode="clip")
    inside = rows[-1][:, None] & columns[-1][None]
    half = 1 << 15
    return (
        xp.where(inside[..., None], (wide + half) >> 16, 0).astype(xp.uint8),
        xp.where(inside, nearest, VOID).astype(xp.uint8),
    )


def _sources(outputs: Any, size: int, step: Any, place: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Return the source pixels of a resampled column.

    Args:
      outputs: int32 [size], 0 to size - 1.
      size: of the column, up to 2^14.
      step: between 1/4 and 4 pixels, so that all values fit into 31 bits.
      place: 0 to PLACES.

    Returns:
      Each [size]: the pixels before and after, the weight of the latter in 256ths, the nearest pixel, and whether it is
      in the column.
    """
    free = (PIXEL - step) * size  # hidden part of the column; negative: uncovered part
    start = ((free >> 10) * place >> 1) + ((step - PIXEL) >> 1)  # between pixel centers
    at = start + outputs * step
    before = at >> PIXEL_BITS
    nearest = (at + PIXEL // 2) >> PIXEL_BITS
    inside = (nearest >= 0) & (nearest < size)
    most = size - 1
    weight = (at >> (PIXEL_BITS - 8)) & 255
    return before.clip(0, most), (before + 1).clip(0, most), weight, nearest.clip(0, most), inside


def augment(image: np.ndarray, label: np.ndarray, flip: bool, shift_y: int, shift_x: int, out: tuple) -> None:
    """Reflect left/right, then shift; uncovered pixels are 0 in the image and VOID in the label.

    Args:
      image: uint8 [H,W,3].
      label: uint8 [H,W].
      flip: whether to reflect.
      shift_y: pixels down, up if negative; may exceed H.
      shift_x: pixels right, left if negative.
      out: image and label to write to, of the same shapes; part of the batch, to avoid a second copy.
    """
    if flip:
        image, label = image[:, ::-1], label[:, ::-1]
    new_image, new_label = out
    _shift(label, shift_y, shift_x, VOID, new_label)
    for channel in range(image.shape[-1]):  # per channel: four times faster than reversing RGB pixels
        _shift(image[..., channel], shift_y, shift_x, 0, new_image[..., channel])


def _shift(array: np.ndarray, shift_y: int, shift_x: int, fill: int, out: np.ndarray) -> None:
    """Copy [H,W] with an offset; only uncovered rows and columns are filled."""
    (top, bottom), rows = _overlap(shift_y, array.shape[0])
    (left, right), columns = _overlap(shift_x, array.shape[1])
    out[top:bottom, left:right] = array[rows, columns]
    out[:top] = out[bottom:] = fill
    out[:, :left] = out[:, right:] = fill


def _overlap(shift: int, size: int) -> tuple[tuple[int, int], slice]:
    """Return start and stop of the visible part in the output, and its slice of the input."""
    kept = max(size - abs(shift), 0)
    start = min(max(shift, 0), size)
    return (start, start + kept), slice(max(-shift, 0), max(-shift, 0) + kept)
