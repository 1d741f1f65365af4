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
from segnet_jax.datasets.formats import decode_other, open_other
from segnet_jax.datasets.headers import (
    AGAIN,
    EXPORT_IDS,
    MAX_PIXELS,
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
from segnet_jax.datasets.stored import Stored
from segnet_jax.datasets.turning import turned_picture
from segnet_jax.errors import UserError, listed

MOST_STRAY = 0.02
"""Of a label's pixels that may have a strange color for it to look like anti-aliasing, and no class left out."""
MOST_MAPPED = 8
"""Values of labels that are worth a flag each."""


def _decode(data: bytes, header: Header, name: str, exif: Exif) -> tuple[Image.Image, int]:
    """The picture, and the EXIF orientation by which its pixels are still to be turned: 1 for not at all."""
    if header.format not in ("PNG", "JPEG"):
        return decode_other(open_other(data, header.format, name), header.format, name), 1
    image = open_picture(data, header.format, name)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        what, kind = ("cut off", "cut-off") if "truncated" in str(error) else ("damaged", "broken-data")
        raise UserError(f"{name} is {what}: {error}", kind=kind, file=name, fix=AGAIN) from None
    turned = 1 if exif == "ignore" else orientation(data)
    if turned != 1 and exif in ("refuse", "by-label"):
        # No flag to paste: which of the two it is, only the other file of the pair can tell.
        fix = "give --exif apply, or --exif ignore if the label lies as the stored pixels do"
        raise turned_picture(name, turned, fix)
    return image, turned


def upright(picture: np.ndarray, turned: int) -> np.ndarray:
    """Turns pixels [H,W,...] the way up that an EXIF orientation, 1 to 8, says."""
    if turned in (5, 6, 7, 8):
        picture = picture.swapaxes(0, 1)
    rows, columns = (slice(None, None, -1 if turned in flipped else 1) for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return picture[rows, columns]


def read_image(
    source: Path | bytes,
    name: str,
    exif: Exif = "refuse",
    image_range: tuple[int, int] = (0, 0),
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decode an image; grey is repeated over three channels, of a palette the colors are taken.

    Args:
      source: the file's path, or its bytes.
      name: what messages call it.
      exif: what becomes of an image that carries a rotation.
      image_range: (black, white) of images of 16 bits; never taken from the image itself, for then the same value
        would be another brightness in each image.
      max_pixels: the limit of its size.

    Returns:
      uint8 [H,W,3], RGB.

    Raises:
      UserError: as `inspect`, and for CMYK, 16 bits without a range, transparency, an EXIF rotation that is refused.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, name, 8 * max_pixels)
    header = inspect(data, name, max_pixels)
    check_image_header(header, name, image_range)
    image, turned = _decode(data, header, name, exif)
    if header.kind in ("RGBA", "grey+alpha"):
        _refuse_transparency(np.asarray(image)[..., -1], "image", name)
    if header.bits == 16 and header.kind == "grey":
        return upright(np.repeat(_ranged(np.asarray(image), image_range)[..., None], 3, axis=-1), turned)
    return upright(np.asarray(image.convert("RGB")), turned)


def _ranged(values: np.ndarray, image_range: tuple[int, int]) -> np.ndarray:
    """Values of 16 bits as uint8: the range linearly, what lies beyond it black and white."""
    low, high = image_range
    scaled = (np.arange(2**16, dtype=np.float64) - low) * 255 / (high - low)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)[values]


def read_label(
    source: Path | bytes,
    name: str,
    num_classes: int,
    *,
    void: int = VOID,
    colors: Mapping[Color, int] | None = None,
) -> np.ndarray:
    """Decodes a label whose values are the class ids themselves; of a palette the indices are taken, never the colors.

    Args:
      source: the file's path, or its bytes.
      name: what messages call it.
      num_classes: C; the ids 0..C-1 are classes.
      void: the id that stands for void in the file.
      colors: RGB -> class id or VOID, for labels stored as color pictures; without it they are refused.

    Returns:
      uint8 [H,W], 0..C-1 or VOID.

    Raises:
      UserError: as `read_label_by`.
    """
    ids = (*((class_id, class_id) for class_id in range(num_classes)), (void, VOID))
    return read_label_by(LabelRule(num_classes, ids, None if colors is None else tuple(colors.items())), source, name)


def read_label_by(rule: LabelRule, source: Path | bytes, name: str, exif: Exif = "refuse") -> np.ndarray:
    """Decode a label by a rule.

    Args:
      rule: which values or colors mean which class.
      source: the file's path, or its bytes.
      name: what messages call it.
      exif: what becomes of a label that carries a rotation.

    Returns:
      uint8 [H,W], 0..C-1 or VOID.

    Raises:
      UserError: as `inspect`, and for lossy formats, transparency, an EXIF rotation, values or colors that mean no
        class.
    """
    stored = read_stored(source, name, rule.colors is not None or "rgb" not in rule.by_color, rule.threshold > 0, exif)
    if rule.threshold:
        return (stored.grey() >= rule.threshold).astype(np.uint8)
    if stored.kind in rule.by_color and rule.colors is not None:
        label, unknown = _color_ids(stored.colors(), dict(rule.colors), name)
        if unknown and rule.unknown_color == "error":
            what = f"label {name} holds {describe_unknown([unknown], dict(rule.colors))}"
            few = sum(unknown.values()) <= MOST_STRAY * label.size
            fix = "draw it in the known colors alone, or name these colors too"
            fix += ", or make them void by --unknown-color ignore" if few else ""
            raise UserError(what, kind="unknown-color", file=name, fix=fix)
        return label
    values = stored.values()
    if values is None:
        what = f"label {name} is a picture in colors: class ids are expected"
        raise UserError(what, kind="color-label", file=name, fix=EXPORT_IDS)
    label = rule.table[values]
    if (label == OUTSIDE).any():
        raise _outside(values, label == OUTSIDE, name, rule)
    return label


def _outside(values: np.ndarray, outside: np.ndarray, name: str, rule: LabelRule) -> UserError:
    """The error for a label with values that mean no class."""
    strange, counts = np.unique(values[outside], return_counts=True)
    if strange[-1] > 255:
        what = f"label {name} has 16 bits and values up to {strange[-1]}: instance ids, not classes?"
        return UserError(what, kind="instance-ids", file=name, fix=EXPORT_IDS)
    held = [f"{value} ({count} px)" for value, count in zip(strange, counts, strict=True)]
    what = f"label {name} holds {listed(held)}: outside {rule.told}"
    return UserError(what, kind="label-out-of-range", file=name, fix=EXPORT_IDS)


def read_color_label(source: Path | bytes, name: str, colors: Mapping[Color, int]):
    """Decodes a color label without refusing unknown colors: they become VOID and are counted.

    Returns:
      label uint8 [H,W], and unknown colors {RGB: pixels}.

    Raises:
      UserError: as `read_label`, and if the label is no RGB picture.
    """
    values = read_values(source, name, colored=True)
    if values.ndim != 3:
        what = f"label {name} is not an RGB picture, which the official color labels are"
        raise UserError(what, kind="no-color-label", file=name, fix="fetch the official archive of labels")
    return _color_ids(values, colors, name)


def _color_ids(values: np.ndarray, colors: Mapping[Color, int], name: str) -> tuple[np.ndarray, dict[Color, int]]:
    try:
        return color_ids(values, colors)
    except ValueError as error:
        what = f"label {name} holds {error}"
        raise UserError(what, kind="unknown-color", file=name, fix="draw it in the known colors alone") from None


def read_values(source: Path | bytes, name: str, colored: bool, exif: Exif = "refuse") -> np.ndarray:
    """The stored values of a label: uint8 or uint16 [H,W], or uint8 [H,W,3] where colors are stored.

    Raises:
      UserError: as `read_stored`.
    """
    return read_stored(source, name, colored, exif=exif).pixels


def read_stored(
    source: Path | bytes, name: str, colored: bool = True, threshold: bool = False, exif: Exif = "refuse"
) -> Stored:
    """Decode a label file without saying what its pixels mean.

    Args:
      source: the file's path, or its bytes.
      name: what messages call it.
      colored: whether colors are read at all.
      threshold: whether lossy files are.
      exif: what becomes of a label that carries a rotation.

    Raises:
      UserError: as `inspect`, and for lossy formats, transparency, an EXIF rotation, colors where none are read.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, name)
    header = inspect(data, name)
    check_label_header(header, name, colored, threshold)
    image, turned = _decode(data, header, name, exif)
    values, palette = upright(np.asarray(image), turned), None
    if header.kind in ("RGBA", "grey+alpha"):
        _refuse_transparency(values[..., -1], "label", name)
        values = values[..., :3] if header.kind == "RGBA" else values[..., 0]
    if values.ndim == 2 and header.kind == "palette" and image.palette is not None:
        palette = np.frombuffer(image.palette.tobytes(), np.uint8)
        palette = palette[: len(palette) // 3 * 3].reshape(-1, 3) if image.palette.mode == "RGB" else None
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype not in (np.uint8, np.uint16):  # Pillow's I, for 16 bits in its older versions
        values = values.astype(np.uint16)
    elif header.kind == "grey" and header.bits in (2, 4):
        values = values // (255 // (2**header.bits - 1))  # Pillow stretches them to 0..255
    kind = "rgb" if values.ndim == 3 else "palette" if palette is not None else "grey"
    return Stored(values, kind, palette, header.format * header.is_lossy)


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
    if label.shape == (height, width):
        return label
    old_height, old_width = label.shape
    rows = (2 * np.arange(height) + 1) * old_height // (2 * height)
    columns = (2 * np.arange(width) + 1) * old_width // (2 * width)
    return label[rows[:, None], columns]
