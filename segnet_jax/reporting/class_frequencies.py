"""The table of classes that the doctor prints."""

import sys
from collections.abc import Mapping

import numpy as np
import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segnet_jax.data.input_pipeline.class_counts import LabelCounts
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.system.errors import shown


def print_class_frequencies(classes: ClassTable, counts: Mapping[str, LabelCounts], weights: np.ndarray) -> None:
    """Print each class with its percentage of the labeled pixels of each split, and its loss weight."""
    table = Table(box=rich.box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("id", justify="right")
    table.add_column("class", overflow="fold", min_width=8)
    for split in counts:
        table.add_column(f"{split} %", justify="right", no_wrap=True)
    table.add_column("weight", justify="right", no_wrap=True)

    def of_all(each: LabelCounts) -> int:
        return each.total if classes.multi_label else each.pixels.sum()

    for class_id, name in enumerate(classes.names):
        percentages = [100 * each.pixels[class_id] / max(1, of_all(each)) for each in counts.values()]
        cells = [f"{percentage:.2f}" if percentage else "none" for percentage in percentages]
        table.add_row(str(class_id), Text(shown(name)), *cells, f"{weights[class_id]:.2f}")
    if classes.multi_label:
        Console(file=sys.stdout, highlight=False).print(table)
        return
    voids = [f"{100 * (1 - each.pixels.sum() / max(1, each.total)):.2f}" for each in counts.values()]
    table.add_row("255", "void (of all pixels)", *voids, "", style="dim")
    Console(file=sys.stdout, highlight=False).print(table)
