"""Strict decoding of label files: values and colors to class ids, never guessed.

Common readers ruin labels in silence (a palette becomes grey, 16 bits become 0, four bits are stretched to 0..255).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segnet_jax.constants import VOID, Exif
from segnet_jax.data.images.decode import decode_picture, refuse_transparency, upright
from segnet_jax.data.images.picture_header import EXPORT_IDS, check_label_header, inspect, read_bytes
from segnet_jax.data.label_files.stored import Stored
from segnet_jax.data.labels.classes import Color
from segnet_jax.data.labels.label_colors import color_ids, describe_unknown
from segnet_jax.data.labels.label_mapping import OUTSIDE, LabelRule
from segnet_jax.system.errors import UserError, listed

MOST_STRAY = 0.02
"""Of a label's pixels that may have a strange color for it to look like anti-aliasing, and no class left out."""
MOST_MAPPED = 8
"""Values of labels that are worth a flag each."""


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
    image, turned = decode_picture(data, header, name, exif)
    values, palette = upright(np.asarray(image), turned), None
    if header.kind in ("RGBA", "grey+alpha"):
        refuse_transparency(values[..., -1], "label", name)
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
