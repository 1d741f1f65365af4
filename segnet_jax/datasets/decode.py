"""Strict readers of image and label files: what is not exactly right is refused with a reason, never guessed.

Common readers ruin labels in silence (a palette becomes grey, 16 bits become 0, four bits are stretched to 0..255).
Here a file's header is read first, and decides what may be done with the pixels.
"""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from segnet_jax.constants import VOID
from segnet_jax.datasets.colors import color_ids, describe_unknown
from segnet_jax.datasets.essence import orientation
from segnet_jax.datasets.headers import (
    AGAIN,
    EXPORT_IDS,
    Header,
    check_image_header,
    check_label_header,
    inspect,
    open_picture,
    read_bytes,
)
from segnet_jax.datasets.labels import Color
from segnet_jax.errors import UserError, listed

_OUTSIDE = 254  # marks label values that mean no class
_UPRIGHT = {  # what undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _decode(data: bytes, header: Header, name: str, turn: bool = False) -> Image.Image:
    image = open_picture(data, header.format, name)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        what, kind = ("cut off", "cut-off") if "truncated" in str(error) else ("damaged", "broken-data")
        raise UserError(f"{name} is {what}: {error}", kind=kind, file=name, fix=AGAIN) from None
    if (turned := orientation(data)) != 1:
        if turn:
            return image.transpose(_UPRIGHT[turned])
        what = f"{name} carries an EXIF rotation (orientation {turned}): image and label would disagree"
        fix = "rotate the pixels and save without the tag, e.g. by ImageMagick's -auto-orient"
        raise UserError(what, kind="exif-rotation", file=name, fix=fix)
    return image


def read_image(source: Path | bytes, name: str, *, turn: bool = False) -> np.ndarray:
    """Decodes an image from PNG or JPEG; grey is repeated, a palette's colours are taken.

    Args:
      source: the file's path, or its bytes.
      name: what messages call it.
      turn: turn it upright as its EXIF data say, for an image that no label belongs to.

    Returns:
      uint8 [H,W,3], RGB.

    Raises:
      UserError: as `inspect`, and for CMYK, 16 bits, transparency, an EXIF rotation unless `turn`.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, name)
    header = inspect(data, name)
    check_image_header(header, name)
    image = _decode(data, header, name, turn)
    if header.kind in ("RGBA", "grey+alpha"):
        _refuse_transparency(np.asarray(image)[..., -1], "image", name)
    return np.asarray(image.convert("RGB"))


def read_label(
    source: Path | bytes,
    name: str,
    num_classes: int,
    *,
    void: int = VOID,
    colors: Mapping[Color, int] | None = None,
) -> np.ndarray:
    """Decodes a label from PNG; of a palette the indices are taken, never the colours.

    Args:
      source: the file's path, or its bytes.
      name: what messages call it.
      num_classes: C; the ids 0..C-1 are classes.
      void: the id that stands for void in the file.
      colors: RGB -> class id or VOID, for labels stored as colour pictures; without it they are refused.

    Returns:
      uint8 [H,W], 0..C-1 or VOID.

    Raises:
      UserError: as `inspect`, and for JPEG, transparency, an EXIF rotation, values or colours that mean no class.
    """
    values = _read_values(source, name, colored=colors is not None)
    if values.ndim == 3:
        label, unknown = _color_ids(values, colors, name)
        if unknown:
            what = f"label {name} holds {describe_unknown([unknown], colors)}"
            raise UserError(what, kind="unknown-colour", file=name, fix="draw it in the known colours alone")
        return label
    if values.dtype != np.uint8:
        if values.max() > 255:
            what = f"label {name} has 16 bits and values up to {values.max()}: instance ids, not classes?"
            raise UserError(what, kind="instance-ids", file=name, fix=EXPORT_IDS)
        values = values.astype(np.uint8)
    table = np.full(256, _OUTSIDE, np.uint8)
    table[:num_classes] = np.arange(num_classes)
    table[void] = VOID
    label = table[values]
    if (label == _OUTSIDE).any():
        raise _outside(values, label == _OUTSIDE, name, num_classes, void)
    return label


def _outside(values: np.ndarray, outside: np.ndarray, name: str, num_classes: int, void: int) -> UserError:
    """What to say of a label with values that mean no class: two common ways to get them are told by their names."""
    strange, counts = np.unique(values[outside], return_counts=True)
    held = [f"{value} ({count} px)" for value, count in zip(strange, counts, strict=True)]
    what = f"label {name} holds {listed(held)}: outside the {num_classes} classes 0..{num_classes - 1} and void {void}"
    if strange.tolist() == [255] and not values[~outside].any():
        fix = f"write the class id where it holds 255, and {void} where there is no class"
        return UserError(f"{what}; only 0 and 255: a mask, no class ids", kind="mask-0-255", file=name, fix=fix)
    if strange.tolist() == [num_classes + 1] and void == num_classes and values.all():
        what += f"; no 0, but {num_classes + 1}: its ids start at 1"
        return UserError(what, kind="labels-start-at-1", file=name, fix="subtract 1 from all of its values")
    fix = f"write its ids anew or use {void} where there is no class"
    return UserError(what, kind="label-out-of-range", file=name, fix=fix)


def read_color_label(source: Path | bytes, name: str, colors: Mapping[Color, int]):
    """Decodes a colour label without refusing unknown colours: they become VOID and are counted.

    Returns:
      label uint8 [H,W], and unknown colours {RGB: pixels}.

    Raises:
      UserError: as `read_label`, and if the label is no RGB picture.
    """
    values = _read_values(source, name, colored=True)
    if values.ndim != 3:
        what = f"label {name} is not an RGB picture, which the official colour labels are"
        raise UserError(what, kind="no-colour-label", file=name, fix="fetch the official archive of labels")
    return _color_ids(values, colors, name)


def _color_ids(values: np.ndarray, colors: Mapping[Color, int], name: str) -> tuple[np.ndarray, dict[Color, int]]:
    try:
        return color_ids(values, colors)
    except ValueError as error:
        what = f"label {name} holds {error}"
        raise UserError(what, kind="unknown-colour", file=name, fix="draw it in the known colours alone") from None


def _read_values(source: Path | bytes, name: str, colored: bool) -> np.ndarray:
    """The stored values of a label: uint8 or uint16 [H,W], or uint8 [H,W,3] where colours are stored."""
    data = source if isinstance(source, bytes) else read_bytes(source, name)
    header = inspect(data, name)
    check_label_header(header, name, colored)
    values = np.asarray(_decode(data, header, name))
    if header.kind in ("RGBA", "grey+alpha"):
        _refuse_transparency(values[..., -1], "label", name)
        values = values[..., :3] if header.kind == "RGBA" else values[..., 0]
    if values.dtype == bool:
        return values.astype(np.uint8)
    if header.kind == "grey" and header.bits in (2, 4):
        return values // (255 // (2**header.bits - 1))  # Pillow stretches them to 0..255
    return values


def _refuse_transparency(alpha: np.ndarray, which: str, name: str) -> None:
    if (alpha < 255).any():
        what = f"{which} {name} has {int((alpha < 255).sum())} transparent pixels"
        raise UserError(what, kind="transparent", file=name, fix="save it without alpha channel")


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
    old_height, old_width = label.shape
    if (old_height, old_width) == (height, width):
        return image, label
    rows = (2 * np.arange(height) + 1) * old_height // (2 * height)
    columns = (2 * np.arange(width) + 1) * old_width // (2 * width)
    return resize_image(image, height, width), label[rows[:, None], columns]


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image, uint8 [H,W,3], by antialiased bilinear sampling; itself if it has that size."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
