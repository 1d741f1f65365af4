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

from segnet_jax import budget
from segnet_jax.constants import VOID
from segnet_jax.datasets.colors import color_ids, describe_unknown
from segnet_jax.datasets.essence import orientation, png_transparency
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
from segnet_jax.datasets.legend import OUTSIDE, LabelRule
from segnet_jax.datasets.reading import Exif
from segnet_jax.errors import UserError, listed

MOST_STRAY = 0.02
"""Of a label's pixels that may have a strange colour for it to look like anti-aliasing, and no class left out."""
_BYTES_A_PIXEL = 10  # Pillow's own picture, and the array that is made of it
MOST_MAPPED = 8
"""Values of labels that are worth a flag each."""


def _decode(data: bytes, header: Header, name: str, exif: Exif) -> tuple[Image.Image, int]:
    """The picture, and the EXIF orientation by which its pixels are still to be turned: 1 for not at all."""
    budget.pictures.announce(_BYTES_A_PIXEL * header.width * header.height)
    image = open_picture(data, header.format, name)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        what, kind = ("cut off", "cut-off") if "truncated" in str(error) else ("damaged", "broken-data")
        raise UserError(f"{name} is {what}: {error}", kind=kind, file=name, fix=AGAIN) from None
    turned = 1 if exif == "ignore" else orientation(data)
    if turned != 1 and exif == "refuse":
        # No flag to paste: which of the two it is, only the other file of the pair can tell.
        fix = "give --exif apply, or --exif ignore if the label lies as the stored pixels do"
        raise turned_picture(name, turned, fix)
    return image, turned


def turned_picture(name: str, turned: int, fix: str) -> UserError:
    """What to say of a picture that carries a rotation."""
    what = f"{name} carries an EXIF rotation (orientation {turned}): image and label would disagree"
    return UserError(what, kind="exif-rotation", file=name, fix=fix)


def upright(picture: np.ndarray, turned: int) -> np.ndarray:
    """Turns pixels [H,W,...] the way up that an EXIF orientation, 1 to 8, says."""
    if turned in (5, 6, 7, 8):
        picture = picture.swapaxes(0, 1)
    rows, columns = (slice(None, None, -1 if turned in flipped else 1) for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return picture[rows, columns]


def read_image(source: Path | bytes, name: str, exif: Exif = "refuse") -> np.ndarray:
    """Decodes an image from PNG or JPEG; grey is repeated, a palette's colours are taken.

    Args:
      source: the file's path, or its bytes.
      name: what messages call it.
      exif: what becomes of an image that carries a rotation.

    Returns:
      uint8 [H,W,3], RGB.

    Raises:
      UserError: as `inspect`, and for CMYK, 16 bits, transparency, an EXIF rotation unless `turn`.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, name)
    header = inspect(data, name)
    check_image_header(header, name)
    image, turned = _decode(data, header, name, exif)
    if header.kind in ("RGBA", "grey+alpha"):
        _refuse_transparency(np.asarray(image.getchannel("A")), "image", name)
    elif header.format == "PNG" and (told := png_transparency(data)):
        _refuse_transparency(_alpha(np.asarray(image), header, told), "image", name)
    return upright(np.asarray(image if image.mode == "RGB" else image.convert("RGB")), turned)


def read_label(
    source: Path | bytes,
    name: str,
    num_classes: int,
    *,
    void: int = VOID,
    colors: Mapping[Color, int] | None = None,
) -> np.ndarray:
    """Decodes a label whose values are the class ids themselves; of a palette the indices are taken, never the colours.

    Args:
      source: the file's path, or its bytes.
      name: what messages call it.
      num_classes: C; the ids 0..C-1 are classes.
      void: the id that stands for void in the file.
      colors: RGB -> class id or VOID, for labels stored as colour pictures; without it they are refused.

    Returns:
      uint8 [H,W], 0..C-1 or VOID.

    Raises:
      UserError: as `read_label_by`.
    """
    ids = (*((class_id, class_id) for class_id in range(num_classes)), (void, VOID))
    return read_label_by(LabelRule(num_classes, ids, None if colors is None else tuple(colors.items())), source, name)


def read_label_by(rule: LabelRule, source: Path | bytes, name: str, exif: Exif = "refuse") -> np.ndarray:
    """Decodes a label from PNG by a rule.

    Args:
      rule: which values or colours mean which class.
      source: the file's path, or its bytes.
      name: what messages call it.
      exif: what becomes of a label that carries a rotation.

    Returns:
      uint8 [H,W], 0..C-1 or VOID.

    Raises:
      UserError: as `inspect`, and for JPEG, transparency, an EXIF rotation, values or colours that mean no class.
    """
    values = read_values(source, name, colored=rule.colors is not None, exif=exif)
    if values.ndim == 3:
        label, unknown = _color_ids(values, dict(rule.colors), name)
        if unknown and rule.unknown_colour == "error":
            what = f"label {name} holds {describe_unknown([unknown], dict(rule.colors))}"
            few = sum(unknown.values()) <= MOST_STRAY * label.size
            fix = "--unknown-colour ignore" if few else "draw it in the known colours alone, or name these colours too"
            raise UserError(what, kind="unknown-colour", file=name, fix=fix)
        return label
    label = rule.table[values]
    if (label == OUTSIDE).any():
        raise _outside(values, label == OUTSIDE, name, rule)
    return label


def _outside(values: np.ndarray, outside: np.ndarray, name: str, rule: LabelRule) -> UserError:
    """What to say of a label with values that mean no class: common ways to get them are told by their names."""
    strange, counts = np.unique(values[outside], return_counts=True)
    if strange[-1] > 255:
        what = f"label {name} has 16 bits and values up to {strange[-1]}: instance ids, not classes?"
        return UserError(what, kind="instance-ids", file=name, fix=EXPORT_IDS)
    held = [f"{value} ({count} px)" for value, count in zip(strange, counts, strict=True)]
    what = f"label {name} holds {listed(held)}: outside {rule.told}"
    if strange.tolist() == [255] and not values[~outside].any():
        what += "; only 0 and 255: a mask, no class ids"
        return UserError(what, kind="mask-0-255", file=name, fix="--map 255=1")
    last = max(value for value, _ in rule.ids if value != VOID)
    if strange.tolist() == [last + 1] and values.all() and not rule.start:
        what += f"; no 0, but {last + 1}: its ids start at 1"
        return UserError(what, kind="labels-start-at-1", file=name, fix="--labels-start-at 1")
    fix = " ".join(f"--map {value}=255" for value in strange) if len(strange) <= MOST_MAPPED else EXPORT_IDS
    return UserError(what, kind="label-out-of-range", file=name, fix=fix)


def read_color_label(source: Path | bytes, name: str, colors: Mapping[Color, int]):
    """Decodes a colour label without refusing unknown colours: they become VOID and are counted.

    Returns:
      label uint8 [H,W], and unknown colours {RGB: pixels}.

    Raises:
      UserError: as `read_label`, and if the label is no RGB picture.
    """
    values = read_values(source, name, colored=True)
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


def read_values(source: Path | bytes, name: str, colored: bool, exif: Exif = "refuse") -> np.ndarray:
    """The stored values of a label: uint8 or uint16 [H,W], or uint8 [H,W,3] where colours are stored.

    Args:
      source: the file's path, or its bytes.
      name: what messages call it.
      colored: whether colours are taken at all.
      exif: what becomes of a label that carries a rotation.

    Raises:
      UserError: as `inspect`, and for JPEG, transparency, an EXIF rotation, colours where none are taken.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, name)
    header = inspect(data, name)
    check_label_header(header, name, colored)
    image, turned = _decode(data, header, name, exif)
    values = upright(np.asarray(image), turned)
    if header.kind in ("RGBA", "grey+alpha"):
        _refuse_transparency(values[..., -1], "label", name)
        values = values[..., :3] if header.kind == "RGBA" else values[..., 0]
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype not in (np.uint8, np.uint16):  # Pillow's I, for 16 bits in its older versions
        values = values.astype(np.uint16)
    if header.kind == "grey" and header.bits in (2, 4):
        return values // (255 // (2**header.bits - 1))  # Pillow stretches them to 0..255
    return values


def _alpha(pixels: np.ndarray, header: Header, told: bytes) -> np.ndarray:
    """The alpha of each pixel, uint8 [H,W], of a PNG that tells it of its palette or of one colour."""
    if header.kind == "palette":
        table = np.full(256, 255, np.uint8)
        table[: min(len(told), 256)] = np.frombuffer(told[:256], np.uint8)
        return table[pixels]
    color = np.frombuffer(told[: len(told) // 2 * 2], ">u2")
    if header.bits < 8:  # Pillow stretches them to 0..255
        color = color * (255 // (2**header.bits - 1))
    same = pixels.reshape(*pixels.shape[:2], -1).astype(np.uint16) == color[: 3 if header.kind == "RGB" else 1]
    return np.where(same.all(axis=-1), np.uint8(0), np.uint8(255))


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
    old_height, old_width = label.shape
    rows = (2 * np.arange(height) + 1) * old_height // (2 * height)
    columns = (2 * np.arange(width) + 1) * old_width // (2 * width)
    return label[rows[:, None], columns]
