"""Which way up an image is read that carries an EXIF rotation: as stated, or as the size of its label decides."""

from pathlib import Path
from typing import Literal

from segnet_jax.constants import Exif
from segnet_jax.data.images.picture_bytes import orientation
from segnet_jax.data.images.picture_header import inspect, read_bytes
from segnet_jax.system.errors import UserError

_SAME_SHAPE = 0.03
"""Relative difference of two ratios of width and height up to which they are the same shape."""

Size = tuple[int, int]
"""Width and height."""


def way_up(turned: int, image: Size, label: Size) -> Literal["apply", "ignore", ""]:
    """Decide by the size of the label whether an EXIF rotation is applied to an image.

    Args:
      turned: EXIF orientation, 1 to 8.
      image: of the stored pixels.
      label: likewise.

    Returns:
      "apply" or "ignore"; empty where the sizes cannot decide: both fit, or neither.
    """
    if turned < 5:
        return ""
    as_stored, upright = _same_shape(label, image), _same_shape(label, image[::-1])
    if as_stored == upright:
        return ""
    return "ignore" if as_stored else "apply"


def _same_shape(one: Size, other: Size) -> bool:
    return abs(one[0] * other[1] - other[0] * one[1]) < _SAME_SHAPE * one[1] * other[0]


def exif_of_pair(image: Path, label: Path, exif: Exif) -> Exif:
    """How the image of a pair is read; differs from `exif` for "by-label" alone.

    Raises:
      UserError: the sizes cannot decide, or a file cannot be read.
    """
    if exif != "by-label":
        return exif
    data = read_bytes(image, str(image))
    header = inspect(data, str(image))
    if (turned := orientation(data)) == 1:
        return "ignore"
    of_label = inspect(read_bytes(label, str(label)), str(label))
    found = way_up(turned, (header.width, header.height), (of_label.width, of_label.height))
    if not found:
        raise turned_picture(str(image), turned, "give --exif apply or --exif ignore: its label fits both or neither")
    return found


def check_stated(path: Path, name: str, exif: Exif) -> None:
    """Refuse an image that carries a rotation where nothing says how to treat it.

    Raises:
      UserError: if so.
    """
    if exif == "refuse" and (turned := orientation(read_bytes(path, name))) != 1:
        raise turned_picture(name, turned, "train with --exif apply or --exif ignore, which the run then keeps")


def turned_picture(name: str, turned: int, fix: str) -> UserError:
    """The error for a picture that carries a rotation."""
    what = f"{name} carries an EXIF rotation (orientation {turned}): image and label would disagree"
    return UserError(what, kind="exif-rotation", file=name, fix=fix)
