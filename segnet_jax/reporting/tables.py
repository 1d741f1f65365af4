"""Tables of scores on the console."""

import math
import sys
from collections.abc import Mapping
from typing import TextIO

import numpy as np
import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.metrics.bootstrap import LEVEL_TEXT, Interval
from segnet_jax.metrics.boundary import BoundaryF1
from segnet_jax.metrics.confusion import Scores
from segnet_jax.metrics.table import METRICS, percent
from segnet_jax.system.errors import shown

_MAX_SEQUENCES = 10  # rows; the file names of a folder may form hundreds of sequences


def per_class_table(scores: Scores, classes: ClassTable) -> Table:
    """Build a table of the scores of each class in percent, at most 60 columns wide, readable without color.

    It marks the lowest IoU and absent classes. The last row has the means.
    """
    table = Table(box=rich.box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("class", overflow="fold", min_width=8)
    for heading in ("IoU %", "Dice", "prec.", "recall", "pixels"):
        table.add_column(heading, justify="right", no_wrap=True, overflow="crop")
    table.add_column("", no_wrap=True, overflow="crop")
    present = [class_id for class_id in range(len(classes)) if class_id not in scores.absent]
    lowest = min(present, key=lambda class_id: scores.iou[class_id], default=None)
    for class_id, name in enumerate(classes.names):
        absent = class_id in scores.absent
        table.add_row(
            Text(shown(name)),  # a Text, since a class may be named "[red]"
            *(_number(scores.per_class[key][class_id]) for key in ("iou", "dice", "precision", "recall")),
            f"{scores.pixels[class_id]:,}",
            "absent" if absent else "lowest" if class_id == lowest else "",
            style="dim" if absent else "yellow" if class_id == lowest else "",
            end_section=class_id == len(classes) - 1,
        )
    mean = "mean" if len(present) == len(classes) else f"mean of {len(present)}"
    pixels = f"{np.sum(scores.pixels):,}"
    means = (scores.miou, scores.mean_dice, scores.mean_precision, scores.mean_accuracy)
    table.add_row(mean, *map(_number, means), pixels, "", style="bold")
    return table


def summary_lines(
    scores: Scores, interval: Mapping[str, Interval] | None = None, boundary: BoundaryF1 | None = None
) -> list[str]:
    """Return the lines below the table: other metrics, and the bootstrap interval and boundary F1 if given."""
    in_table = ("miou", "mean_dice", "mean_precision", "mean_accuracy")
    others = [metric for key, metric in METRICS.items() if key not in in_table]
    lines = [", ".join(f"{metric.label} {metric.format(scores.values[metric.key])}" for metric in others)]
    if interval:
        low, high = interval["miou"]
        lines.append(f"mIoU, {LEVEL_TEXT} interval over images: {percent(low)} to {percent(high)}")
    if boundary:
        lines.append(f"boundary F1: {percent(boundary.paper)} (paper), {percent(boundary.script)} (script)")
    if scores.absent:
        lines.append("absent: no labeled pixels, left out of the means")
    return lines


def print_table(
    scores: Scores,
    classes: ClassTable,
    file: TextIO | None = None,
    interval: Mapping[str, Interval] | None = None,
    boundary: BoundaryF1 | None = None,
) -> None:
    """Print the table of `per_class_table` and the lines below it, by default to standard output."""
    console = Console(file=file or sys.stdout, highlight=False)
    console.print(per_class_table(scores, classes))
    for line in summary_lines(scores, interval, boundary):
        console.print(line, markup=False)


def print_sequences(sequences: Mapping[str, Mapping[str, float]]) -> None:
    """Print "miou" and "num_images" of the video sequences, at most the ten with the most images."""
    by_size = sorted(sequences.items(), key=lambda item: -item[1]["num_images"])
    table = Table(box=rich.box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("sequence", overflow="fold", min_width=8)
    table.add_column("mIoU %", justify="right", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    for name, row in by_size[:_MAX_SEQUENCES]:
        table.add_row(Text(shown(name)), _number(row["miou"]), f"{row['num_images']:,}")
    Console(file=sys.stdout, highlight=False).print(table)
    if len(sequences) > _MAX_SEQUENCES:
        print(f"and {len(sequences) - _MAX_SEQUENCES} more sequences; --json FILE lists all")


def print_folds(table: Mapping[str, Mapping]) -> None:
    """Print the scores of each fold of a cross-validation, with their mean and standard deviation.

    Args:
      table: "folds", name -> row with "num_images" and scores; "mean" and "deviation", score -> value.
    """
    columns = ("miou", "mean_dice", "global_accuracy", "mean_accuracy")
    shown_table = Table(box=rich.box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    shown_table.add_column("fold")
    for heading in ("images", "mIoU %", "Dice %", "global %", "classes %"):
        shown_table.add_column(heading, justify="right", no_wrap=True)
    for place, (name, row) in enumerate(table["folds"].items(), 1):
        values = [_number(row.get(key)) for key in columns]
        shown_table.add_row(name, f"{row['num_images']:,}", *values, end_section=place == len(table["folds"]))
    for name in ("mean", "deviation"):
        values = [_number(table[name].get(key)) for key in columns]
        shown_table.add_row(name, "", *values, style="bold")
    Console(file=sys.stdout, highlight=False).print(shown_table)


def _number(fraction: float | None) -> str:
    return "-" if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.2f}"


SPLIT_WORDS = {"train": "Training", "val": "Validation", "test": "Test"}
