"""CSV files for spreadsheets: the scores of each image."""

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from segnet_jax.metrics.confusion import scores
from segnet_jax.metrics.table import class_pixels, labeled_pixels
from segnet_jax.system.errors import shown

_COLUMNS = ("image", "pixels", "accuracy", "mIoU")


def safe_cell(text: str) -> str:
    """Return a name as text of a cell: control characters are escaped, and a formula gets an apostrophe."""
    text = shown(text)
    return f"'{text}" if text[:1] in "=+-@" else text


def image_scores_csv(names: Sequence[str], confusions: np.ndarray, class_names: Sequence[str]) -> str:
    """Format the scores of each image as CSV, fractions 0..1.

    The columns are the image's name, its labeled pixels, the fraction of them predicted correctly, the mean IoU over
    the classes present in its label, and the IoU of each class; a cell is empty where the class is not present.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(shown(f"IoU {name}") for name in class_names)])
    for name, confusion in zip(names, confusions, strict=True):
        writer.writerow([safe_cell(name), int(labeled_pixels(confusion)), *map(_cell, _values(confusion))])
    return buffer.getvalue()


def _values(confusion: np.ndarray) -> list[float]:
    """Return accuracy, mean IoU and the IoU of each class for one image; NaN if undefined."""
    if not confusion.any():
        return [math.nan] * (2 + class_pixels(confusion).size)
    found = scores(confusion)
    return [found.global_accuracy, found.miou, *found.iou.tolist()]


def _cell(value: float) -> str:
    return f"{value:.6f}" if math.isfinite(value) else ""


def is_image_scores(head: bytes) -> bool:
    """Return whether a file that begins with `head` was written by `image_scores_csv`."""
    start = ",".join(_COLUMNS).encode()
    return head.startswith((start + b",IoU ", start + b',"IoU '))
