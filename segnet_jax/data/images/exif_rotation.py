"""Decide whether an image's EXIF rotation is applied, by option or by the size of its label."""

from pathlib import Path
from typing import Literal

from segnet_jax.constants import Exif
from segnet_jax.data.images.picture_bytes import orientation
from segnet_jax.data.images.picture_header import inspect, read_bytes
from segnet_jax.system.errors import UserError

_SAME_SHAPE = 0.03
"""Relative difference up to which two aspect ratios count as equal."""

Size = tuple[int, int]
"""Width and height."""


def decide_exif(turned: int, image: Size, label: Size) -> Literal["apply", "ignore", ""]:
    """Decide by the label's size whether an EXIF rotation is applied to an image.

    Args:
      turned: EXIF orientation, 1 to 8.
      image: size of the stored pixels.
      label: size of the label.

    Returns:
      "apply" or "ignore"; empty if both or neither fit.
    """
    if turned < 5:
        return ""
    as_stored, upright = _same_shape(label, image), _same_shape(label, image[::-1])
    if as_stored == upright:
        return ""
    return "ignore" if as_stored else "apply"


def _same_shape(one: Size, other: Size) -> bool:
    return abs(one[0] * other[1] - other[0] * one[1]) < _SAME_SHAPE * one[1] * other[0]


def exif_for_pair(image: Path, label: Path, exif: Exif) -> Exif:
    """Resolve "by-label" for the image of a pair; return other values of `exif` unchanged.

    Raises:
      UserError: If the sizes do not decide, or a file cannot be read.
    """
    if exif != "by-label":
        return exif
    data = read_bytes(image, str(image))
    header = inspect(data, str(image))
    if (turned := orientation(data)) == 1:
        return "ignore"
    of_label = inspect(read_bytes(label, str(label)), str(label))
    found = decide_exif(turned, (header.width, header.height), (of_label.width, of_label.height))
    if not found:
        raise rotation_error(str(image), turned, "pass --exif apply or --exif ignore: its label fits both or neither")
    return found


def check_exif_stated(path: Path, name: str, exif: Exif) -> None:
    """Check that an image has no EXIF rotation if `exif` is "refuse".

    Raises:
      UserError: If it has one.
    """
    if exif == "refuse" and (turned := orientation(read_bytes(path, name))) != 1:
        raise rotation_error(name, turned, "train with --exif apply or --exif ignore, which the run stores")


def rotation_error(name: str, turned: int, fix: str) -> UserError:
    """Return the error for an image with an EXIF rotation."""
    message = f"{name} carries an EXIF rotation (orientation {turned}): image and label would disagree"
    return UserError(message, kind="exif-rotation", file=name, fix=fix)
