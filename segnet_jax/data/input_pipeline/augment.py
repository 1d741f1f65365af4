"""Augmentation of one image and its label.

The same code runs with numpy on the host and JAX on the device, in 32-bit integers, so both give the same bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.input_pipeline.class_mix import class_mix
from segnet_jax.data.input_pipeline.sampler import CROP_BITS, KERNEL_BITS, PIXEL, PIXEL_BITS


@dataclass(frozen=True)
class Backend:
    """Array operations of augmentation: numpy on the host, JAX inside the step.

    Attributes:
      xp: numpy or jax.numpy, for operations with equal results in both.
      flip: function (array [H,W,...], flip) that reflects the array left/right if `flip` is not 0.
      shift: function (array [H,W,...], shift_y, shift_x, fill) that shifts the array down and right and sets uncovered
        pixels to `fill`, a number or one for each channel.
      cut: function (array [H,W,...], top, left, height, width) that crops the array.
    """

    xp: ModuleType
    flip: Callable[[Any, Any], Any]
    shift: Callable[[Any, Any, Any, int | tuple[int, ...]], Any]
    cut: Callable[[Any, Any, Any, int, int], Any]


def augment(
    image: Any,
    label: Any,
    params: Mapping[str, Any],
    backend: Backend,
    other: tuple[Any, Any] | None = None,
    crop: tuple[int, int] = (0, 0),
    fill: tuple[int, ...] = (),
) -> tuple[Any, Any]:
    """Augment one sample; used by both input paths.

    To add an augmentation, draw its parameters in `sampler`, write a function like `recolor` or `resample` that
    computes in 32-bit integers with either `xp`, and call it here.

    Args:
      image: uint8 or uint16 [H,W,C].
      label: uint8 [H,W].
      params: the sample's `AugmentationParams.drawn`, as int32; only augmentations with parameters are applied.
      backend: the numpy or JAX backend.
      other: image and label of the sample `params["partner"]`; None without class-mix.
      crop: height and width of crops; (0, 0) without them.
      fill: value of each channel outside the image; empty for 0.

    Returns:
      The augmented image and label; pixels from outside the image are `fill` and VOID.
    """
    if other is not None:
        image, label = class_mix(image, label, *other, params["class_seed"], backend.xp)
    if "gain" in params:
        image = recolor(image, params["gain"], params["offset"], backend.xp)
    if "kernel" in params:
        image = blur(image, params["kernel"], backend.xp)
    if "step" in params:
        places = params["place_y"], params["place_x"]
        image, label = resample(image, label, params["step"], *places, backend.xp, fill)
    if "matrix" in params:
        image, label = warp(image, label, params["matrix"], backend.xp, fill)
    image, label = (backend.flip(array, params["flip"]) for array in (image, label))
    if "vertical_flip" in params:
        image, label = (backend.xp.where(params["vertical_flip"] != 0, each[::-1], each) for each in (image, label))
    shifts = params["shift_y"], params["shift_x"]
    image, label = backend.shift(image, *shifts, fill or 0), backend.shift(label, *shifts, VOID)
    if "crop_y" in params:
        places = zip(label.shape, crop, (params["crop_y"], params["crop_x"]), strict=True)
        starts = [((size - part + 1) * place) >> CROP_BITS for size, part, place in places]
        image, label = (backend.cut(each, *starts, *crop) for each in (image, label))
    return image, label


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


def blur(image: Any, kernel: Any, xp: ModuleType) -> Any:
    """Convolve each channel with a kernel, vertically and then horizontally, repeating the pixels at the edge.

    Args:
      image: uint8 or uint16 [H,W,C].
      kernel: int32 [K], K odd, nonnegative, with the sum 2^14.
      xp: numpy or jax.numpy.

    Returns:
      The blurred image.
    """
    reach, wide = len(kernel) // 2, image.astype(xp.int32)
    fraction = 8 if image.dtype == xp.uint8 else 0  # fractional bits between the passes; values fit into 31 bits
    for axis, bits in enumerate((KERNEL_BITS - fraction, KERNEL_BITS + fraction)):
        padded = xp.pad(wide, [(reach * (other == axis),) * 2 for other in range(3)], mode="edge")
        size = image.shape[axis]
        parts = [padded[k : k + size] if axis == 0 else padded[:, k : k + size] for k in range(len(kernel))]
        wide = (sum(kernel[k] * part for k, part in enumerate(parts)) + (1 << bits - 1)) >> bits
    return wide.astype(image.dtype)


def resample(
    image: Any, label: Any, step: Any, place_y: Any, place_x: Any, xp: ModuleType, fill: tuple[int, ...] = ()
) -> tuple[Any, Any]:
    """Zoom in or out within the same frame; uncovered pixels are `fill` (0 if empty) and VOID.

    The image is interpolated bilinearly with 8-bit weights; the label takes the nearest pixel.

    Args:
      image: uint8 or uint16 [H,W,C].
      label: uint8 [H,W].
      step: int32, input pixels per output pixel, in units of 2^-14.
      place_y: int32, 0 to PLACES: vertical position of the crop, or of the shrunken image, from top to bottom.
      place_x: int32, 0 to PLACES: horizontal position, from left to right.
      xp: numpy or jax.numpy.
      fill: as in `augment`.

    Returns:
      The resampled image and label, in the same shapes.
    """
    rows, columns = (
        _sources(xp.arange(size, dtype=xp.int32), size, step, place)
        for size, place in zip(label.shape, (place_y, place_x), strict=True)
    )
    wide, dtype = image, xp.int32 if image.dtype == xp.uint8 else xp.uint32  # 16 bits and two 8-bit weights
    for axis, (first, second, weight, _, _) in enumerate((rows, columns)):
        weight = (weight[:, None, None] if axis == 0 else weight[None, :, None]).astype(dtype)
        one, other = (xp.take(wide, place, axis=axis, mode="clip").astype(dtype) for place in (first, second))
        wide = one * (256 - weight) + other * weight
    nearest = label
    for axis, (_, _, _, place, _) in enumerate((rows, columns)):
        nearest = xp.take(nearest, place, axis=axis, mode="clip")
    inside = rows[-1][:, None] & columns[-1][None]
    half = 1 << 15
    return (
        xp.where(inside[..., None], (wide + half) >> 16, _outside(fill, wide, xp)).astype(image.dtype),
        xp.where(inside, nearest, VOID).astype(xp.uint8),
    )


def _sources(outputs: Any, size: int, step: Any, place: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Return the source pixels of a resampled column.

    Args:
      outputs: int32 [size], 0 to size - 1.
      size: length of the column, up to 2^14.
      step: between 1/4 and 4 pixels, so that all values fit into 31 bits.
      place: 0 to PLACES.

    Returns:
      Each [size]: the pixels before and after, the weight of the latter in 256ths, the nearest pixel, and whether it is
      in the column.
    """
    free = (PIXEL - step) * size  # hidden part of the column; uncovered part if negative
    start = ((free >> 10) * place >> 1) + ((step - PIXEL) >> 1)  # between pixel centers
    at = start + outputs * step
    before = at >> PIXEL_BITS
    nearest = (at + PIXEL // 2) >> PIXEL_BITS
    inside = (nearest >= 0) & (nearest < size)
    most = size - 1
    weight = (at >> (PIXEL_BITS - 8)) & 255
    return before.clip(0, most), (before + 1).clip(0, most), weight, nearest.clip(0, most), inside


def warp(image: Any, label: Any, matrix: Any, xp: ModuleType, fill: tuple[int, ...] = ()) -> tuple[Any, Any]:
    """Apply a linear map about the center, within the same frame.

    Args:
      image: uint8 or uint16 [H,W,C].
      label: uint8 [H,W], up to 2^14 each way.
      matrix: int32 [4], row-major matrix from the (y, x) of an output pixel to that of its source, in units of 2^-14;
        the absolute values of a row add up to less than 3.
      xp: numpy or jax.numpy.
      fill: as in `augment`.

    Returns:
      The result of `sample_at`, in the same shapes.
    """
    height, width = label.shape
    v, u = (2 * xp.arange(size, dtype=xp.int32) - (size - 1) for size in (height, width))  # half pixels from the center
    v, u = v[:, None], u[None]
    at_y = (matrix[0] * v + matrix[1] * u + (height - 1) * PIXEL) >> 1
    at_x = (matrix[2] * v + matrix[3] * u + (width - 1) * PIXEL) >> 1
    return sample_at(image, label, at_y, at_x, xp, fill)


def sample_at(
    image: Any, label: Any, at_y: Any, at_x: Any, xp: ModuleType, fill: tuple[int, ...] = ()
) -> tuple[Any, Any]:
    """Sample an image and its label at any positions; pixels from outside are `fill` (0 if empty) and VOID.

    The image is interpolated bilinearly with 8-bit weights; the label takes the nearest pixel.

    Args:
      image: uint8 or uint16 [H,W,C].
      label: uint8 [H,W].
      at_y: int32 [h,w], rows in units of 2^-14; pixel centers are at whole rows.
      at_x: int32 [h,w], columns likewise.
      xp: numpy or jax.numpy.
      fill: as in `augment`.

    Returns:
      The sampled image [h,w,C] and label [h,w].
    """
    height, width = label.shape

    def pixels(array, row, column):
        index = row.clip(0, height - 1) * width + column.clip(0, width - 1)
        return xp.take(array.reshape(height * width, *array.shape[2:]), index, axis=0, mode="clip")

    top, left = at_y >> PIXEL_BITS, at_x >> PIXEL_BITS
    dtype = xp.int32 if image.dtype == xp.uint8 else xp.uint32  # 16 bits and two 8-bit weights
    weight_y, weight_x = (((at >> (PIXEL_BITS - 8)) & 255)[..., None].astype(dtype) for at in (at_y, at_x))

    def row(y):
        one, other = (pixels(image, y, x).astype(dtype) for x in (left, left + 1))
        return one * (256 - weight_x) + other * weight_x

    mixed = (row(top) * (256 - weight_y) + row(top + 1) * weight_y + (1 << 15)) >> 16
    y, x = ((at + PIXEL // 2) >> PIXEL_BITS for at in (at_y, at_x))  # the nearest pixel
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return (
        xp.where(inside[..., None], mixed, _outside(fill, mixed, xp)).astype(image.dtype),
        xp.where(inside, pixels(label, y, x), VOID).astype(xp.uint8),
    )


def _outside(fill: tuple[int, ...], like: Any, xp: ModuleType) -> Any:
    """Return the value of pixels outside an image, in the dtype of `like`."""
    return xp.asarray(fill, like.dtype) if fill else 0


def flip_on_host(array: np.ndarray, flip: int) -> np.ndarray:
    """Return a view of [H,W,...], reflected left/right if `flip` is not 0."""
    return array[:, ::-1] if flip else array


def shift_on_host(array: np.ndarray, shift_y: int, shift_x: int, fill: int | tuple[int, ...]) -> np.ndarray:
    """Shift [H,W,...] down and right, or up and left if negative; uncovered pixels are `fill`."""
    (top, bottom), rows = _overlap(shift_y, array.shape[0])
    (left, right), columns = _overlap(shift_x, array.shape[1])
    out = np.empty(array.shape, array.dtype)
    out[:top] = out[bottom:] = fill
    out[:, :left] = out[:, right:] = fill
    channels = np.ndindex(array.shape[2:])  # one channel at a time, which is four times faster
    for channel in channels:
        out[(slice(top, bottom), slice(left, right), *channel)] = array[(rows, columns, *channel)]
    return out


def _overlap(shift: int, size: int) -> tuple[tuple[int, int], slice]:
    """Return start and stop of the visible part in the output, and its slice of the input."""
    kept = max(size - abs(shift), 0)
    start = min(max(shift, 0), size)
    return (start, start + kept), slice(max(-shift, 0), max(-shift, 0) + kept)


def cut_on_host(array: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Return a crop of [H,W,...] as a view."""
    return array[top : top + height, left : left + width]


ON_HOST = Backend(np, flip_on_host, shift_on_host, cut_on_host)
