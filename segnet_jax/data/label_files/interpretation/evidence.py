"""Scans of a folder's labels, and the result of an interpretation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from segnet_jax.data.label_files.scan import LabelScan, sum_counts
from segnet_jax.data.labels.label_mapping import LabelMapping, LabelRule, class_pixels, make_label_rule
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.system.errors import Fault

HALF = 0.5
"""Fraction of void pixels above which the interpretation is doubted."""


class Interpretation(NamedTuple):
    """The interpretation of a folder's label files.

    Attributes:
      label_mapping: the classes.
      rule: how label files are read.
      doubts: signs that this is wrong.
    """

    label_mapping: LabelMapping
    rule: LabelRule
    doubts: tuple[Fault, ...]


@dataclass(frozen=True)
class LabelEvidence:
    """Input to the interpretation of a folder's labels.

    Attributes:
      scans: scans of all label files.
      label_mapping: the class file's mapping; None without one.
      read_options: how the files are read.
      class_file_command: the command that writes a class file.
    """

    scans: Sequence[LabelScan]
    label_mapping: LabelMapping | None
    read_options: ReadOptions
    class_file_command: str

    def outcome(self, label_mapping: LabelMapping, read_options: ReadOptions, by_color: tuple = ()) -> str:
        """Describe the fraction of pixels of each class, if files of the kinds `by_color` are read by color."""
        rule = make_label_rule(label_mapping, read_options, by_color)
        pixels, void = pixels_of(rule, self.scans)
        whole = max(1, int(pixels.sum()) + void)
        names = label_mapping.classes.names
        counts = [(name, count) for name, count in zip(names, pixels.tolist(), strict=True) if count]
        counts = sorted(counts, key=lambda each: -each[1])[:6] + [("void", void)] * (void > 0)
        empty = [f"{name} none" for name, count in zip(names, pixels, strict=True) if not count][:3]
        return ", ".join([*(f"{name} {100 * count / whole:.1f} %" for name, count in counts), *empty])


def pixels_of(rule: LabelRule, scans: Sequence[LabelScan]) -> tuple[np.ndarray, int]:
    """Count the pixels of each class, int64 [C], and of void under a label rule."""
    values = sum_counts(scan.values for scan in scans if scan.kind not in rule.by_color)
    colors = sum_counts(scan.colors for scan in scans if scan.kind in rule.by_color)
    return class_pixels(rule, values, colors)
