"""The table of scores by class that ends a training and an evaluation."""

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
from segnet_jax.metrics.bootstrap import Interval
from segnet_jax.metrics.boundary import BoundaryF1
from segnet_jax.metrics.confusion import Scores

_MOST_SEQUENCES = 10  # whose scores are shown; the names of a folder of photographs may tell hundreds


def per_class_table(
    scores: Scores,
    classes: ClassTable,
    interval: Mapping[str, Interval] | None = None,
    boundary: BoundaryF1 | None = None,
) -> Table:
    """Lays out IoU and accuracy of each class in percent; fits 60 columns and says all it says without colour.

    The lowest IoU is marked, a class without ground truth is called absent, the means stand in the last row, and below
    it the bootstrap interval over images and boundary F1, where they are known.
    """
    caption = f"global accuracy {percent(scores.global_accuracy)}, weighted IoU {percent(scores.weighted_iou)}"
    if interval:
        low, high = interval["miou"]
        caption += f"\nmIoU over images, 95 %: {percent(low)} to {percent(high)}"
    if boundary:
        caption += f"\nboundary F1: paper {percent(boundary.paper)}, script {percent(boundary.script)}"
    if scores.absent:
        caption += "\nabsent from the labels: left out of the means"
    table = Table(
        box=rich.box.SIMPLE,
        show_edge=False,
        padding=(0, 1, 0, 0),
        caption=caption,
        caption_justify="left",
        caption_style="",
    )
    table.add_column("class", overflow="fold", min_width=8)
    for heading in ("IoU %", "accuracy %", "pixels"):
        table.add_column(heading, justify="right", no_wrap=True, overflow="crop")
    table.add_column("", no_wrap=True, overflow="crop")
    known = [class_id for class_id in range(len(classes)) if class_id not in scores.absent]
    lowest = min(known, key=lambda class_id: scores.iou[class_id], default=None)
    for class_id, name in enumerate(classes.names):
        absent = class_id in scores.absent
        table.add_row(
            Text(name),  # a Text, for a class may be called "[red]"
            _number(scores.iou[class_id]),
            _number(scores.accuracy[class_id]),
            f"{scores.pixels[class_id]:,}",
            "absent" if absent else "lowest" if class_id == lowest else "",
            style="dim" if absent else "yellow" if class_id == lowest else "",
            end_section=class_id == len(classes) - 1,
        )
    mean = "mean" if len(known) == len(classes) else f"mean of {len(known)}"
    pixels = f"{np.sum(scores.pixels):,}"
    table.add_row(mean, _number(scores.miou), _number(scores.mean_accuracy), pixels, "", style="bold")
    return table


def print_table(
    scores: Scores,
    classes: ClassTable,
    file: TextIO | None = None,
    interval: Mapping[str, Interval] | None = None,
    boundary: BoundaryF1 | None = None,
) -> None:
    """Prints the table, to standard output unless told otherwise."""
    console = Console(file=file or sys.stdout, highlight=False)
    console.print(per_class_table(scores, classes, interval, boundary))


def print_sequences(found: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the score of each video sequence, of many those with the most images.

    Args:
      found: sequence -> "miou" and "num_images".
    """
    by_size = sorted(found.items(), key=lambda item: -item[1]["num_images"])
    table = Table(box=rich.box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("sequence", overflow="fold", min_width=8)
    table.add_column("mIoU %", justify="right", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    for name, scored in by_size[:_MOST_SEQUENCES]:
        table.add_row(Text(name), _number(scored["miou"]), f"{scored['num_images']:,}")
    Console(file=sys.stdout, highlight=False).print(table)
    if len(found) > _MOST_SEQUENCES:
        print(f"and {len(found) - _MOST_SEQUENCES} more sequences; --json FILE has all")


def percent(fraction: float | None) -> str:
    """Writes 0.4123 as "41.2 %" and what was not measured as "-"."""
    return "-" if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.1f} %"


def _number(fraction: float) -> str:
    return f"{100 * fraction:.2f}" if math.isfinite(fraction) else "-"


SPLIT_WORDS = {"train": "Training", "val": "Validation", "test": "Test"}
