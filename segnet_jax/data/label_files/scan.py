"""Count the values and colors stored in label files."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segnet_jax.data.images.picture_header import EXPORT_IDS
from segnet_jax.data.label_files.decode_labels import read_in_threads, read_stored
from segnet_jax.data.label_files.stored_pixels import Stored, is_bimodal
from segnet_jax.data.labels.classes import Color
from segnet_jax.data.labels.label_colors import count_colors, pack, unpack
from segnet_jax.data.labels.label_mapping import Kind
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.system.errors import Fault, UserError, listed, shown

Label = tuple[Path, str]
"""A label file and its display name for error messages."""


@dataclass(frozen=True)
class LabelScan:
    """Values and colors stored in one label file.

    Attributes:
      name: display name of the file for error messages.
      kind: what the file stores.
      values: value, palette index, or value of equal channels -> pixels; empty for colors.
      colors: RGB -> pixels; empty for lossy RGB files and for values above 255.
      palette: used index -> RGB.
      solid: values or colors that fill a 3x3 block somewhere, which anti-aliasing never does.
      is_bimodal: whether nearly all pixels are near black or near white, as in a mask of two classes.
      brightest: maximum brightness.
      lossy: the file's format if it is lossy, otherwise "".
    """

    name: str
    kind: Kind
    values: Mapping[int, int] = field(default_factory=dict)
    colors: Mapping[Color, int] = field(default_factory=dict)
    palette: Mapping[int, Color] = field(default_factory=dict)
    solid: frozenset = frozenset()
    is_bimodal: bool = False
    brightest: int = 0
    lossy: str = ""


def scan(labels: Sequence[Label], read_options: ReadOptions, faults: list[Fault]) -> list[LabelScan]:
    """Scan all label files; unreadable files are added to `faults`."""

    def read(label: Label) -> LabelScan:
        path, name = label
        exif = "apply" if read_options.exif == "by-label" else read_options.exif
        try:
            return scan_stored(read_stored(path, name, True, True, exif), name)
        except ValueError as error:
            message = f"label {name} contains {error}"
            raise UserError(message, kind="unknown-color", file=name, fix=EXPORT_IDS) from None

    return read_in_threads(read, labels, faults)


def scan_stored(stored: Stored, name: str) -> LabelScan:
    """Count the values and colors of a decoded label file.

    Raises:
      ValueError: If there are too many colors for a label.
    """
    values, grey = stored.values(), stored.grey()
    seen = {
        "is_bimodal": is_bimodal(grey),
        "brightest": int(grey.max()),
        "lossy": stored.lossy,
    }
    if values is None:
        solid = () if stored.lossy else map(unpack, _solid(pack(stored.pixels)))
        colors = {} if stored.lossy else count_colors(stored.pixels)
        return LabelScan(name, "rgb", colors=colors, solid=frozenset(solid), **seen)
    counts = _counts(values)
    colors: dict[Color, int] = {}
    palette: dict[int, Color] = {}
    if stored.kind == "palette":
        palette = dict(zip(counts, stored.colors_of(list(counts)), strict=True))
        for value, pixels in counts.items():
            colors[palette[value]] = colors.get(palette[value], 0) + pixels
    elif max(counts) <= 255:
        colors = {(value, value, value): pixels for value, pixels in counts.items()}
    solid = frozenset(map(int, _solid(values)))
    return LabelScan(name, stored.kind, counts, colors, palette, solid, **seen)


def _counts(values: np.ndarray) -> dict[int, int]:
    counts = np.bincount(values.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _solid(values: np.ndarray) -> np.ndarray:
    """Return the values that fill a 3x3 block."""
    if min(values.shape) < 3:
        return np.unique(values)
    rows = (values[:, :-2] == values[:, 1:-1]) & (values[:, 1:-1] == values[:, 2:])
    middle = values[:, 1:-1]
    columns = (middle[:-2] == middle[1:-1]) & (middle[1:-1] == middle[2:])
    return np.unique(middle[1:-1][rows[:-2] & rows[1:-1] & rows[2:] & columns])


# --- several files ---


def sum_counts(counts: Iterable[Mapping]) -> dict:
    """Add up pixel counts."""
    found: Counter = Counter()
    for each in counts:
        found.update(each)
    return dict(found)


def files_with(scans: Iterable[LabelScan], value: int | Color) -> list[str]:
    """Return the files that contain a value or a color."""
    return [each.name for each in scans if value in (each.colors if isinstance(value, tuple) else each.values)]


def describe_files(names: Sequence[str]) -> str:
    """Format the number of files and the first names, for messages."""
    few = [*names[:3], *([f"and {len(names) - 3} more"] if len(names) > 3 else [])]
    return f"{len(names)} file{'s' * (len(names) != 1)} ({shown(', '.join(few))})"


def describe_pixels(counts: Mapping[int | Color, int]) -> str:
    """Format values or colors with their pixels, the most frequent first, for messages."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return listed([f"{each} ({pixels} px)" for each, pixels in ordered])
