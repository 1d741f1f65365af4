"""The table of metrics. To add a metric, add a row to `METRICS`; to add a score per class, add it to `CLASS_METRICS`.

Everything that computes, stores or shows metrics reads this table: `confusion.scores`, `result.json`, `metrics.jsonl`,
TensorBoard, the bootstrap intervals, the printed table, the report, and the comparison with published results.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def percent(fraction: float | None) -> str:
    """Format 0.4123 as "41.2 %", and None or NaN as "-"."""
    return "-" if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.1f} %"


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class: [...,C,C] to float64 [...,C], NaN without ground truth."""
    correct, actual, predicted = _counts(confusion)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(actual > 0, correct / (actual + predicted - correct), np.nan)


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the recall of each class: [...,C,C] to float64 [...,C], NaN without ground truth."""
    correct, actual, _ = _counts(confusion)
    with np.errstate(invalid="ignore", divide="ignore"):
        return correct / actual


def class_precision(confusion: np.ndarray) -> np.ndarray:
    """Return the precision of each class: 0 for a class that is never predicted, NaN without ground truth."""
    correct, actual, predicted = _counts(confusion)
    return np.where(actual > 0, correct / np.maximum(predicted, 1), np.nan)


def class_dice(confusion: np.ndarray) -> np.ndarray:
    """Return the Dice coefficient (F1 score) of each class: [...,C,C] to float64 [...,C], NaN without ground truth."""
    correct, actual, predicted = _counts(confusion)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(actual > 0, 2 * correct / (actual + predicted), np.nan)


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Return the mean IoU over the classes with ground truth (MATLAB: MeanIoU)."""
    return _mean_of_classes(class_iou(confusion), confusion)


def global_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the fraction of labeled pixels that are predicted correctly (MATLAB: GlobalAccuracy).

    Of pixels with several classes, all have to be right (exact match).
    """
    if is_multi_label(confusion):
        with np.errstate(invalid="ignore"):
            return right_pixels(confusion) / labeled_pixels(confusion)
    correct, actual, _ = _counts(confusion)
    with np.errstate(invalid="ignore"):
        return correct.sum(axis=-1) / actual.sum(axis=-1)


def mean_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the mean recall over the classes with ground truth (MATLAB: MeanAccuracy)."""
    return _mean_of_classes(class_accuracy(confusion), confusion)


def mean_dice(confusion: np.ndarray) -> np.ndarray:
    """Return the mean Dice coefficient over the classes with ground truth."""
    return _mean_of_classes(class_dice(confusion), confusion)


def mean_precision(confusion: np.ndarray) -> np.ndarray:
    """Return the mean precision over the classes with ground truth."""
    return _mean_of_classes(class_precision(confusion), confusion)


def weighted_iou(confusion: np.ndarray) -> np.ndarray:
    """Return the IoU weighted by each class's labeled pixels (MATLAB: WeightedIoU)."""
    _, actual, _ = _counts(confusion)
    with np.errstate(invalid="ignore"):
        return _sum_of_classes(class_iou(confusion) * actual, actual > 0) / actual.sum(axis=-1)


@dataclass(frozen=True)
class Metric:
    """A score that follows from a confusion matrix.

    Attributes:
      key: name in `Scores`, JSON files and TensorBoard.
      label: heading in the report.
      function: maps confusion matrices, integers or integral floats [...,C,C] with rows the true class, to [...].
        A matrix without pixels gives NaN. With several classes per pixel, matrices are [...,C+1,C+2]: see
        `co_occurrence`; `_counts` reads both.
      symbol: heading in the table of published results, whose `scores` may contain the key unless this is "".
      primary: whether to compute a bootstrap interval and store the metric for each kind of batch-norm statistics.
      format: function that converts a value or None to text.
    """

    key: str
    label: str
    function: Callable[[np.ndarray], np.ndarray]
    symbol: str = ""
    primary: bool = True
    format: Callable[[float | None], str] = percent


METRICS = {
    metric.key: metric
    for metric in (
        Metric("miou", "mean IoU", mean_iou, "mIoU"),
        Metric("global_accuracy", "global accuracy", global_accuracy, "G"),
        Metric("mean_accuracy", "mean class accuracy", mean_accuracy, "C"),
        Metric("weighted_iou", "weighted IoU", weighted_iou, primary=False),
        Metric("mean_dice", "mean Dice", mean_dice, primary=False),
        Metric("mean_precision", "mean precision", mean_precision, primary=False),
    )
}

CLASS_METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "iou": class_iou,
    "accuracy": class_accuracy,  # MATLAB's name for recall
    "precision": class_precision,
    "recall": class_accuracy,
    "dice": class_dice,
}
"""Key in `per_class` of JSON files -> function that maps [...,C,C] to the score of each class, float64 [...,C]."""


def primary_metrics() -> dict[str, Metric]:
    """Return the rows of `METRICS` marked as primary."""
    return {key: metric for key, metric in METRICS.items() if metric.primary}


def is_multi_label(confusion: np.ndarray) -> bool:
    """Return whether counts are those of `co_occurrence`, [...,C+1,C+2], not confusion matrices, which are square."""
    return confusion.shape[-1] != confusion.shape[-2]


def class_pixels(confusion: np.ndarray) -> np.ndarray:
    """Return the labeled pixels of each class, [...,C]."""
    return _counts(confusion)[1]


def class_counts(confusion: np.ndarray) -> np.ndarray:
    """Return the pixels of each true and predicted class, [...,C,C]."""
    return confusion[..., :-1, :-2] if is_multi_label(confusion) else confusion


def labeled_pixels(confusion: np.ndarray) -> np.ndarray:
    """Return the number of labeled pixels, [...]."""
    return confusion[..., -1, -2] if is_multi_label(confusion) else confusion.sum(axis=(-2, -1))


def right_pixels(confusion: np.ndarray) -> np.ndarray:
    """Return the number of labeled pixels that are predicted correctly, [...]; of several classes, all of them."""
    return confusion[..., -1, -1] if is_multi_label(confusion) else np.trace(confusion, axis1=-2, axis2=-1)


def _counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each class's correct, labeled and predicted pixels, [...,C] each."""
    if is_multi_label(confusion):
        correct = np.diagonal(confusion[..., :-1, :-2], axis1=-2, axis2=-1)
        return correct, confusion[..., :-1, -2], confusion[..., -1, :-2]
    return np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1), confusion.sum(axis=-2)


def _mean_of_classes(values: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    present = class_pixels(confusion) > 0
    with np.errstate(invalid="ignore"):
        return _sum_of_classes(values, present) / present.sum(axis=-1)


def _sum_of_classes(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    if values.ndim == 1:  # same order of additions, and thus bits, as the mean over the present classes
        return values[present].sum()
    return np.where(present, values, 0).sum(axis=-1)
