"""What is known of a folder's labels before they are interpreted, and what a reading of them would come to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segnet_jax.data.label_files.scan import LabelScan, total
from segnet_jax.data.labels.label_mapping import LabelRule, Legend, class_pixels, rule_of
from segnet_jax.data.labels.read_options import Reading


@dataclass(frozen=True)
class Folder:
    """What is known of a folder's labels before they are interpreted.

    Attributes:
      scans: of all label files.
      legend: the classes that a class file names; None without one.
      reading: the read options.
      how_to_name: the command that writes a class table.
    """

    scans: Sequence[LabelScan]
    legend: Legend | None
    reading: Reading
    how_to_name: str

    def consequence(self, legend: Legend, reading: Reading, by_color: tuple = ()) -> str:
        """What fraction of the pixels each class gets under other read options, in words.

        Args:
          legend: the classes.
          reading: those options.
          by_color: kinds of files that would be read by their colors.
        """
        rule = rule_of(legend, reading, by_color)
        pixels, void = pixels_of(rule, self.scans)
        whole = max(1, int(pixels.sum()) + void)
        shares = [(name, count) for name, count in zip(legend.classes.names, pixels.tolist(), strict=True) if count]
        shares = sorted(shares, key=lambda each: -each[1])[:6]
        empty = [name for name, count in zip(legend.classes.names, pixels, strict=True) if not count]
        told = [f"{name} {100 * count / whole:.1f} %" for name, count in [*shares, *[("void", void)] * (void > 0)]]
        return ", ".join([*told, *[f"{name} none" for name in empty[:3]]])


def pixels_of(rule: LabelRule, scans: Sequence[LabelScan]) -> tuple[np.ndarray, int]:
    """The pixels of each class, int64 [C], and of void under a rule."""
    values = total(scan.values for scan in scans if scan.kind not in rule.by_color)
    colors = total(scan.colors for scan in scans if scan.kind in rule.by_color)
    return class_pixels(rule, values, colors)
