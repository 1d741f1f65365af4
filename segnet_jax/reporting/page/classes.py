"""Scores of each class and confusions between classes, for the report."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segnet_jax.metrics.table import class_counts, class_pixels, is_multi_label, labeled_pixels
from segnet_jax.reporting.csv_files import safe_cell
from segnet_jax.reporting.page.run_summary import RunSummary, integer, number

_SHOWN = ("iou", "accuracy", "precision", "dice")  # fields of `ClassRow`, and keys of a result's `per_class`


@dataclass(frozen=True)
class ClassRow:
    """A row of the table of classes.

    Attributes:
      name: name of the class.
      color: RGB; None if unknown.
      iou: IoU as a fraction; None without a score.
      accuracy: accuracy (recall) as a fraction; None without a score.
      precision: precision as a fraction; None without a score.
      dice: Dice coefficient as a fraction; None without a score.
      pixels: labeled pixels; None if unknown.
      fraction: fraction of all labeled pixels; None if unknown.
      remark: "absent", "lowest" or "".
    """

    name: str
    color: tuple[int, int, int] | None
    iou: float | None
    accuracy: float | None
    precision: float | None
    dice: float | None
    pixels: int | None
    fraction: float | None
    remark: str


def class_rows(run: RunSummary) -> list[ClassRow]:
    """Return the scores of each class in the chosen evaluation, marking the lowest IoU and absent classes."""
    scored = run.chosen.scores if run.chosen else None
    colors = run.colors or (None,) * len(run.classes)
    if scored is not None:
        columns = [scored.per_class[key] for key in _SHOWN]
        values = [
            (*(number(float(each)) for each in row), int(pixels))
            for *row, pixels in zip(*columns, scored.pixels, strict=True)
        ]
    else:
        values = [_without_confusion(run, class_id) for class_id in range(len(run.classes))]
    present = [class_id for class_id, (iou, *_) in enumerate(values) if iou is not None]
    lowest = min(present, key=lambda class_id: values[class_id][0]) if len(present) > 1 else None
    total = sum(pixels or 0 for *_, pixels in values)
    if scored is not None and is_multi_label(run.chosen.confusion):
        total = int(labeled_pixels(run.chosen.confusion))  # a pixel may have several classes, or none
    rows = []
    for class_id, (*shown, pixels) in enumerate(values):
        remark = "absent" if shown[0] is None else "lowest" if class_id == lowest else ""
        fraction = pixels / total if pixels is not None and total else None
        rows.append(ClassRow(run.classes[class_id], colors[class_id], *shown, pixels, fraction, remark))
    return rows if present else []


def _without_confusion(run: RunSummary, class_id: int) -> tuple[float | int | None, ...]:
    """Return the values of `_SHOWN` and the pixels of a class if no confusion matrix is stored."""
    per_class = run.result.get("per_class")
    if isinstance(per_class, dict) and len(per_class) == len(run.classes):
        row = list(per_class.values())[class_id]
        row = row if isinstance(row, dict) else {}
        return *(number(row.get(key)) for key in _SHOWN), integer(row.get("pixels"))
    ious = run.chosen_row.get("iou")
    if isinstance(ious, dict) and len(ious) == len(run.classes):
        return number(list(ious.values())[class_id]), *[None] * len(_SHOWN)
    return (None,) * (len(_SHOWN) + 1)


def normalized_confusion(confusion: np.ndarray) -> np.ndarray:
    """Divide the predictions of each true class, [C,C], by its pixels; NaN for a class without pixels."""
    with np.errstate(invalid="ignore"):
        return class_counts(confusion) / class_pixels(confusion)[:, None]


def most_confused(confusion: np.ndarray, names: Sequence[str], max_pairs: int = 5) -> list[tuple[str, str, float]]:
    """Return the largest confusions: true class, predicted class, fraction of the true class's pixels.

    There are none of several classes per pixel: another class beside the true one may be right.
    """
    if is_multi_label(confusion):
        return []
    fractions = np.nan_to_num(normalized_confusion(confusion))
    np.fill_diagonal(fractions, 0)
    cells = np.argsort(-fractions, axis=None, kind="stable")[:max_pairs]
    pairs = (np.unravel_index(cell, fractions.shape) for cell in cells)
    return [
        (names[true], names[predicted], float(value))
        for true, predicted in pairs
        if (value := fractions[true, predicted])
    ]


def confusion_csv(confusion: np.ndarray, names: Sequence[str]) -> str:
    """Format the counts as CSV, with a row for each true class and a column for each predicted class."""
    safe = list(map(safe_cell, names))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["true \\ predicted", *safe])
    writer.writerows([name, *row] for name, row in zip(safe, class_counts(confusion).tolist(), strict=True))
    return buffer.getvalue()
