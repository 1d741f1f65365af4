"""What a report says of the classes: their scores, and what is taken for what."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segnet_jax.reporting.page.record import Record, number, whole


@dataclass(frozen=True)
class ClassRow:
    """A class in the table of scores.

    Attributes:
      name: of the class.
      color: its RGB, or None where it is not known.
      iou: a fraction; None where it has none.
      accuracy: likewise.
      pixels: that are labelled so; None where that is not known.
      share: of all labelled pixels.
      remark: "absent", "lowest" or nothing.
    """

    name: str
    color: tuple[int, int, int] | None
    iou: float | None
    accuracy: float | None
    pixels: int | None
    share: float | None
    remark: str


def class_rows(record: Record) -> list[ClassRow]:
    """The classes with their scores in the chosen evaluation; the lowest IoU is marked, absent classes are named so."""
    evaluated = record.chosen
    found = evaluated.scores if evaluated else None
    colors = record.colors or (None,) * len(record.classes)
    if found is not None:
        values = [
            (number(float(iou)), number(float(accuracy)), int(pixels))
            for iou, accuracy, pixels in zip(found.iou, found.accuracy, found.pixels, strict=True)
        ]
    else:
        values = [_told_of_class(record, place) for place in range(len(record.classes))]
    known = [place for place, (iou, *_) in enumerate(values) if iou is not None]
    lowest = min(known, key=lambda place: values[place][0]) if len(known) > 1 else None
    total = sum(pixels or 0 for *_, pixels in values)
    rows = []
    for place, (iou, accuracy, pixels) in enumerate(values):
        remark = "absent" if iou is None else "lowest" if place == lowest else ""
        share = pixels / total if pixels is not None and total else None
        rows.append(ClassRow(record.classes[place], colors[place], iou, accuracy, pixels, share, remark))
    return rows if known else []


def _told_of_class(record: Record, place: int) -> tuple[float | None, float | None, int | None]:
    """A class's scores where no confusion matrix was kept."""
    told = record.result.get("per_class")
    if isinstance(told, dict) and len(told) == len(record.classes):
        row = list(told.values())[place]
        row = row if isinstance(row, dict) else {}
        return number(row.get("iou")), number(row.get("accuracy")), whole(row.get("pixels"))
    ious = record.chosen_row.get("iou")
    if isinstance(ious, dict) and len(ious) == len(record.classes):
        return number(list(ious.values())[place]), None, None
    return None, None, None


def confusion_shares(confusion: np.ndarray) -> np.ndarray:
    """Each known class's pixels by predicted class, as fractions of its row; NaN for a class without pixels."""
    with np.errstate(invalid="ignore"):
        return confusion / confusion.sum(axis=1, keepdims=True)


def most_confused(confusion: np.ndarray, names: Sequence[str], most: int = 5) -> list[tuple[str, str, float]]:
    """The largest confusions: known class, what it was taken for, share of the known class."""
    shares = np.nan_to_num(confusion_shares(confusion))
    np.fill_diagonal(shares, 0)
    places = np.argsort(-shares, axis=None, kind="stable")[:most]
    pairs = (np.unravel_index(place, shares.shape) for place in places)
    return [(names[known], names[taken], float(shares[known, taken])) for known, taken in pairs if shares[known, taken]]


def confusion_csv(confusion: np.ndarray, names: Sequence[str]) -> str:
    """The counts, a row for each known class and a column for each predicted one."""
    safe = [f"'{name}" if name[:1] in "=+-@" else name for name in names]  # spreadsheets take such for a formula
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["known \\ predicted", *safe])
    writer.writerows([name, *row] for name, row in zip(safe, confusion.tolist(), strict=True))
    return buffer.getvalue()
