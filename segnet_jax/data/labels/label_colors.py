"""Convert label colors to class ids, and describe unknown colors."""

import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import ClassTable, Color
from segnet_jax.data.labels.void import OUTSIDE
from segnet_jax.system.errors import listed

_MIXED = 12  # tolerance per channel for a mixture of two colors
_MAX_UNKNOWN = 100_000  # distinct colors; a photograph has about a million


def color_ids(picture: np.ndarray, colors: Mapping[Color, int]) -> tuple[np.ndarray, dict[Color, int]]:
    """Convert colors to class ids by one lookup per pixel in a table of all 2^24 colors.

    Args:
      picture: uint8 [H,W,3].
      colors: RGB -> class id or VOID.

    Returns:
      label uint8 [H,W], VOID for unknown colors, and the unknown colors {RGB: pixels}.

    Raises:
      ValueError: If there are too many unknown colors for a label.
    """
    packed = pack(picture)
    label = _color_table(tuple(colors.items()))[packed]
    outside = label == OUTSIDE
    if not outside.any():
        return label, {}
    return np.where(outside, np.uint8(VOID), label), _counted(packed[outside])


def count_colors(picture: np.ndarray) -> dict[Color, int]:
    """Count the pixels of each color in uint8 [H,W,3].

    Raises:
      ValueError: If there are too many colors for a label.
    """
    return _counted(pack(picture))


def pack(picture: np.ndarray) -> np.ndarray:
    """Pack RGB, uint8 [H,W,3], into uint32 [H,W]."""
    packed = np.zeros(picture.shape[:2], np.uint32)
    for channel in range(3):  # in place: an image may have 50 million pixels
        packed <<= 8
        packed |= picture[..., channel]
    return packed


def unpack(packed: int) -> Color:
    """Invert `pack` for one number."""
    return int(packed) >> 16, int(packed) >> 8 & 255, int(packed) & 255


def is_mixture(color: Color, known: Iterable[Color]) -> bool:
    """Return whether a color lies between two known colors, as on anti-aliased edges."""
    point, table = np.array(color, float), np.array(list(known), float)
    for place, start in enumerate(table):
        for stop in table[place + 1 :]:
            length = ((stop - start) ** 2).sum()
            along = np.clip(((point - start) * (stop - start)).sum() / max(length, 1), 0, 1)
            if np.abs(start + along * (stop - start) - point).max() <= _MIXED:
                return True
    return False


def _counted(packed: np.ndarray) -> dict[Color, int]:
    colors, counts = np.unique(packed, return_counts=True)
    if colors.size > _MAX_UNKNOWN:
        raise ValueError(f"{colors.size} unknown colors, like a photograph or a label with lossy compression")
    return {unpack(color): int(count) for color, count in zip(colors, counts, strict=True)}


@functools.lru_cache(maxsize=2)
def _color_table(colors: tuple[tuple[Color, int], ...]) -> np.ndarray:
    table = np.full(2**24, OUTSIDE, np.uint8)
    for (red, green, blue), class_id in colors:
        table[red << 16 | green << 8 | blue] = class_id
    return table


def describe_colors(classes: ClassTable, colors: Mapping[Color, int]) -> str:
    """List the colors of each class and of void, one line each."""
    names = [*enumerate(classes.names), (VOID, "void")]
    by_name = {name: [color for color, each in colors.items() if each == class_id] for class_id, name in names}
    return "\n".join(f"  {name}: {', '.join(map(str, each))}" for name, each in by_name.items())


def describe_unknown(unknown: Sequence[Mapping[Color, int]], colors: Mapping[Color, int]) -> str:
    """Describe unknown colors, the most frequent first, with pixels, files and the nearest known color.

    Args:
      unknown: one {RGB: pixels} per file.
      colors: known colors.
    """
    total: dict[Color, list[int]] = {}
    for each in unknown:
        for color, pixels in each.items():
            seen = total.setdefault(color, [0, 0])
            seen[0], seen[1] = seen[0] + pixels, seen[1] + 1

    def nearest(color: Color) -> Color:
        return min(colors, key=lambda known: sum((a - b) ** 2 for a, b in zip(known, color, strict=True)))

    lines = [
        f"{pixels} px of color {color} in {files} file{'s' * (files > 1)}, nearest known {nearest(color)}"
        for color, (pixels, files) in sorted(total.items(), key=lambda item: -item[1][0])
    ]
    return f"unknown colors (from anti-aliasing or resizing?): {listed(lines, '; ')}"
