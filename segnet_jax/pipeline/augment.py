"""The article's augmentation on one image and its label: reflection, then a shift."""

import numpy as np

from segnet_jax.constants import VOID


def augment(
    image: np.ndarray, label: np.ndarray, flip: bool, shift_y: int, shift_x: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reflects left/right, then shifts; what is shifted in is 0 in the image and VOID in the label.

    Args:
      image: uint8 [H,W,3].
      label: uint8 [H,W].
      flip: whether to reflect.
      shift_y: pixels down, up if negative; beyond H nothing is left.
      shift_x: pixels right, left if negative.

    Returns:
      New arrays of the same shapes.
    """
    if flip:
        image, label = image[:, ::-1], label[:, ::-1]
    return _shift(image, shift_y, shift_x, fill=0), _shift(label, shift_y, shift_x, fill=VOID)


def _shift(array: np.ndarray, shift_y: int, shift_x: int, fill: int) -> np.ndarray:
    shifted = np.full_like(array, fill, order="C")
    rows_to, rows_from = _overlap(shift_y, array.shape[0])
    columns_to, columns_from = _overlap(shift_x, array.shape[1])
    shifted[rows_to, columns_to] = array[rows_from, columns_from]
    return shifted


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Where the part that stays in view comes to lie, and where it comes from."""
    kept = max(size - abs(shift), 0)
    return slice(max(shift, 0), max(shift, 0) + kept), slice(max(-shift, 0), max(-shift, 0) + kept)
