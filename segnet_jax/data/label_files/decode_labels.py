"""Strict decoding of label files to class ids.

Common decoders corrupt labels silently (a palette becomes gray, 16 bits become 0, four bits are stretched to 0..255).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from segnet_jax.constants import VOID, Exif
from segnet_jax.data.images.decode import decode_picture, png_alpha, refuse_transparency, upright
from segnet_jax.data.images.picture_bytes import png_transparency
from segnet_jax.data.images.picture_header import (
    BYTES_PER_PIXEL,
    EXPORT_IDS,
    MAX_PIXELS,
    check_label_header,
    inspect,
    read_bytes,
)
from segnet_jax.data.label_files.stored_pixels import Stored
from segnet_jax.data.labels.classes import Color
from segnet_jax.data.labels.label_colors import color_ids, describe_unknown
from segnet_jax.data.labels.label_mapping import LabelRule
from segnet_jax.data.labels.void import OUTSIDE
from segnet_jax.system import memory_budget
from segnet_jax.system.errors import Fault, UserError, listed

Item, Read = TypeVar("Item"), TypeVar("Read")

MAX_STRAY = 0.02
"""Fraction of a label's pixels up to which unknown colors look like anti-aliasing rather than a missing class."""
MAX_MAPPED = 8
"""Maximum number of label values for which `--map` flags are suggested."""


def read_label(
    source: Path | bytes,
    name: str,
    num_classes: int,
    *,
    void: int = VOID,
    colors: Mapping[Color, int] | None = None,
) -> np.ndarray:
    """Decode a label that stores class ids; palette indices are used, not palette colors.

    Args:
      source: path or bytes of the file.
      name: display name for error messages.
      num_classes: number of classes C; values 0..C-1 are class ids.
      void: the value that means void in the file.
      colors: RGB -> class id or VOID, for RGB labels, which are refused without it.

    Returns:
      uint8 [H,W], 0..C-1 or VOID.

    Raises:
      UserError: If `read_label_by` raises it.
    """
    ids = (*((class_id, class_id) for class_id in range(num_classes)), (void, VOID))
    return read_label_by(LabelRule(num_classes, ids, None if colors is None else tuple(colors.items())), source, name)


def read_label_by(
    rule: LabelRule, source: Path | bytes, name: str, exif: Exif = "refuse", max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode a label according to a label rule.

    Returns:
      uint8 [H,W], 0..C-1 or VOID.

    Raises:
      UserError: If `inspect` raises it, or the label is lossy, transparent, rotated by EXIF, or has unknown
        values or colors.
    """
    colored = rule.colors is not None or "rgb" not in rule.by_color
    stored = read_stored(source, name, colored, rule.threshold > 0, exif, max_pixels)
    if rule.threshold:
        return (stored.grey() >= rule.threshold).astype(np.uint8)
    if stored.kind in rule.by_color and rule.colors is not None:
        label, unknown = _color_ids(stored.colors(), dict(rule.colors), name)
        if unknown and rule.unknown_color == "error":
            message = f"label {name} contains {describe_unknown([unknown], dict(rule.colors))}"
            few = sum(unknown.values()) <= MAX_STRAY * label.size
            fix = "use known colors only, or add these colors to the class file"
            fix += ", or pass --unknown-color ignore to make them void" if few else ""
            raise UserError(message, kind="unknown-color", file=name, fix=fix)
        return label
    values = stored.values()
    if values is None:
        message = f"label {name} is an RGB image: class ids are expected"
        raise UserError(message, kind="color-label", file=name, fix=EXPORT_IDS)
    label = rule.table[values]
    if (label == OUTSIDE).any():
        raise _outside(values, label == OUTSIDE, name, rule)
    return label


def _outside(values: np.ndarray, outside: np.ndarray, name: str, rule: LabelRule) -> UserError:
    """Return the error for a label with unknown values."""
    strange, counts = np.unique(values[outside], return_counts=True)
    if strange[-1] > 255:
        message = f"label {name} has 16 bits and values up to {strange[-1]}, like instance ids"
        return UserError(message, kind="instance-ids", file=name, fix=EXPORT_IDS)
    held = [f"{value} ({count} px)" for value, count in zip(strange, counts, strict=True)]
    message = f"label {name} contains {listed(held)}, outside {rule.description}"
    return UserError(message, kind="label-out-of-range", file=name, fix=EXPORT_IDS)


def read_color_label(source: Path | bytes, name: str, colors: Mapping[Color, int]):
    """Decode an RGB label; unknown colors become VOID and are counted.

    Returns:
      label uint8 [H,W], and unknown colors {RGB: pixels}.

    Raises:
      UserError: If `read_stored` raises it, or the label is not an RGB image.
    """
    values = read_values(source, name, colored=True)
    if values.ndim != 3:
        message = f"label {name} is not an RGB image, unlike the official labels"
        raise UserError(message, kind="no-color-label", file=name, fix="download the official label archive")
    return _color_ids(values, colors, name)


def _color_ids(values: np.ndarray, colors: Mapping[Color, int], name: str) -> tuple[np.ndarray, dict[Color, int]]:
    try:
        return color_ids(values, colors)
    except ValueError as error:
        message = f"label {name} contains {error}"
        raise UserError(message, kind="unknown-color", file=name, fix="use known colors only") from None


def read_values(source: Path | bytes, name: str, colored: bool, exif: Exif = "refuse") -> np.ndarray:
    """Return the stored values of a label: uint8 or uint16 [H,W], or uint8 [H,W,3] for colors.

    Raises:
      UserError: If `read_stored` raises it.
    """
    return read_stored(source, name, colored, exif=exif).pixels


def read_stored(
    source: Path | bytes,
    name: str,
    colored: bool = True,
    threshold: bool = False,
    exif: Exif = "refuse",
    max_pixels: int = MAX_PIXELS,
) -> Stored:
    """Decode a label file to its stored values.

    Raises:
      UserError: If `inspect` raises it, or the label is lossy, transparent, rotated by EXIF, or RGB. With `colored`,
        RGB is accepted; with `threshold`, RGB and lossy files are.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, name, BYTES_PER_PIXEL * max_pixels)
    header = inspect(data, name, max_pixels)
    check_label_header(header, name, colored, threshold)
    image, turned = decode_picture(data, header, name, exif)
    values, palette = upright(np.asarray(image), turned), None
    if header.kind in ("RGBA", "grey+alpha"):
        refuse_transparency(values[..., -1], "label", name)
        values = values[..., :3] if header.kind == "RGBA" else values[..., 0]
    elif header.format == "PNG" and header.kind == "RGB" and (transparency := png_transparency(data)):
        # In gray and palette files, the values are the class ids, regardless of transparency.
        refuse_transparency(png_alpha(np.asarray(image), header, transparency), "label", name)
    if values.ndim == 2 and header.kind == "palette" and image.palette is not None:
        palette = np.frombuffer(image.palette.tobytes(), np.uint8)
        palette = palette[: len(palette) // 3 * 3].reshape(-1, 3) if image.palette.mode == "RGB" else None
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype not in (np.uint8, np.uint16):  # mode I, for 16 bits in older versions of Pillow
        values = values.astype(np.uint16)
    elif header.kind == "grey" and header.bits in (2, 4):
        values = values // (255 // (2**header.bits - 1))  # Pillow stretches them to 0..255
    kind = "rgb" if values.ndim == 3 else "palette" if palette is not None else "grey"
    return Stored(values, kind, palette, header.format * header.is_lossy)


def read_in_threads(read: Callable[[Item], Read], items: Sequence[Item], faults: list[Fault]) -> list[Read]:
    """Return the results of `read` for each item, within the memory budget; a UserError adds its faults instead."""

    def checked(item: Item) -> Read | UserError:
        try:
            with memory_budget.pictures.scope():
                return read(item)
        except UserError as error:
            return error

    found: list[Read] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for each in pool.map(checked, items):
            faults.extend(each.faults) if isinstance(each, UserError) else found.append(each)
    return found
