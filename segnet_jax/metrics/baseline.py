"""The baseline of segmentation scores: a network that predicts the most frequent class everywhere."""

from dataclasses import dataclass

import numpy as np

from segnet_jax.metrics.table import METRICS, is_multi_label

MARGIN = 0.05
"""Margin by which a network's mean IoU must exceed the baseline's to count as better."""


@dataclass(frozen=True)
class Baseline:
    """Scores of predicting one class everywhere.

    Attributes:
      class_id: class with the most labeled pixels.
      values: metric key -> score.
    """

    class_id: int
    values: dict[str, float]


def commonest_class_baseline(confusion: np.ndarray) -> Baseline | None:
    """Return the scores of predicting the most frequent class everywhere, or None without labeled pixels.

    None too if a pixel may have several classes.

    Args:
      confusion: integers [C,C], rows the true class; only the row sums matter.
    """
    if is_multi_label(np.asarray(confusion)):
        return None  # there is no one class of a pixel
    labeled = np.asarray(confusion).sum(axis=-1)
    if not labeled.sum():
        return None
    class_id = int(labeled.argmax())
    constant = np.zeros_like(np.asarray(confusion))
    constant[:, class_id] = labeled
    return Baseline(class_id, {key: float(metric.function(constant)) for key, metric in METRICS.items()})


def is_clearly_better(miou: float, baseline: Baseline) -> bool:
    """Return whether a mean IoU is above the baseline's by more than `MARGIN`."""
    return miou > baseline.values["miou"] + MARGIN
