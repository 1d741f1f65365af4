"""Confusion matrices, and the metrics of `METRICS` computed from them.

CamVid's test split has 40,262,400 pixels, more than float32 can count exactly. Counts are therefore integers: int32 for
a batch on the device, int64 for a split on the host.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.constants import VOID
from segnet_jax.metrics.co_occurrence import count_co_occurrences
from segnet_jax.metrics.table import CLASS_METRICS, METRICS, class_pixels

_BLOCK_NUMBERS = 2**23
"""Maximum number of elements in a one-hot matrix (32 MB), which bounds memory use for any image size."""


def confusion_matrix(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """Count pixels by true and predicted class; VOID pixels are not counted.

    Args:
      label: uint8 [...], class ids below num_classes, or VOID.
      prediction: uint8 [...], class ids below num_classes.
      num_classes: C.

    Returns:
      int32 [C,C], rows the true class, columns the predicted one.
    """
    return confusion_matrices(label.ravel()[None], prediction.ravel()[None], num_classes)[0]


def confusion_matrices(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """Compute the confusion matrix of each image: label and prediction uint8 [B,...] to int32 [B,C,C]."""
    # Scatter is fastest on a CPU but slow on a GPU or TPU.
    return lax.platform_dependent(
        label.reshape(len(label), -1),
        prediction.reshape(len(label), -1),
        cpu=partial(_count_by_scatter, num_classes=num_classes),
        default=lambda *images: lax.map(lambda image: count_by_products(*image, num_classes), images),
    )


def _count_by_scatter(label, prediction, num_classes):
    known, predicted = label.astype(jnp.int32), prediction.astype(jnp.int32)  # uint8 would overflow from 16 classes
    num_images, nowhere = len(label), num_classes * num_classes
    first = (nowhere + 1) * jnp.arange(num_images, dtype=jnp.int32)  # each image has its own cells
    cell = jnp.where(label == VOID, nowhere, known * num_classes + predicted) + first[:, None]
    counts = jnp.bincount(cell.ravel(), length=num_images * (nowhere + 1)).reshape(num_images, nowhere + 1)
    return counts[:, :-1].reshape(num_images, num_classes, num_classes).astype(jnp.int32)


def count_by_products(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """Compute the confusion matrix of pixels [P] as products of one-hot matrices.

    The result is exact at any matmul precision: products are 0 or 1, and the float32 sum over a block is below 2^24.
    """
    size = min(_BLOCK_NUMBERS // num_classes, label.size)
    num_blocks = -(-label.size // size)
    blocks = [
        jnp.pad(array, (0, num_blocks * size - label.size), constant_values=VOID).reshape(num_blocks, size)
        for array in (label, prediction)
    ]
    classes = jnp.arange(num_classes, dtype=jnp.uint8)[None]

    def add_block(total, block):
        known, predicted = ((array[:, None] == classes).astype(jnp.float32) for array in block)  # VOID: all zero
        return total + (known.T @ predicted).astype(jnp.int32), None

    total, _ = lax.scan(add_block, jnp.zeros((num_classes, num_classes), jnp.int32), tuple(blocks))
    return total


_PART = 2**20  # pixels per chunk


def count_confusion(
    label: np.ndarray, prediction: np.ndarray, num_classes: int, multi_label: bool = False
) -> np.ndarray:
    """Compute `confusion_matrix` on the host, int64 [C,C]; of several classes per pixel, see `co_occurrence`."""
    if multi_label:
        return count_co_occurrences(label, prediction, num_classes)
    counts = np.zeros(num_classes * num_classes, np.int64)
    labels, predictions = label.reshape(-1), prediction.reshape(-1)
    for start in range(0, labels.size, _PART):  # the int64 cells of a 50-megapixel image take 400 MB
        part = slice(start, start + _PART)
        known = labels[part] != VOID
        cell = labels[part][known].astype(np.int64) * num_classes + predictions[part][known]
        counts += np.bincount(cell, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """The metrics of a confusion matrix, as fractions 0..1; each key of `METRICS` is also an attribute, such as `miou`.

    Attributes:
      values: value of each key of `METRICS`.
      per_class: float64 [C] for each key of `CLASS_METRICS`; NaN for a class without ground truth.
      pixels: int64 [C], labeled pixels of each class.
    """

    values: Mapping[str, float]
    per_class: Mapping[str, np.ndarray]
    pixels: np.ndarray

    def __getattr__(self, key: str) -> float:
        if key in METRICS:
            return self.values[key]
        raise AttributeError(f"{type(self).__name__} has no attribute {key!r}; METRICS has {', '.join(METRICS)}")

    @property
    def iou(self) -> np.ndarray:
        """IoU of each class, float64 [C], NaN for a class without ground truth."""
        return self.per_class["iou"]

    @property
    def accuracy(self) -> np.ndarray:
        """Accuracy (recall) of each class, float64 [C], NaN for a class without ground truth."""
        return self.per_class["accuracy"]

    @property
    def absent(self) -> tuple[int, ...]:
        """Ids of the classes without ground truth, which the means leave out."""
        return tuple(int(class_id) for class_id in np.flatnonzero(self.pixels == 0))


def scores(confusion: np.ndarray) -> Scores:
    """Compute every metric from a confusion matrix summed over the whole split.

    Args:
      confusion: integers [C,C], rows the true class, columns the predicted one; or [C+1,C+2] of `co_occurrence`.

    Raises:
      ValueError: If the matrix is all zero.
    """
    confusion = np.asarray(confusion, np.int64)
    if not confusion.any():
        raise ValueError("no labeled pixel was evaluated: every label is void")
    return Scores(
        values={key: float(metric.function(confusion)) for key, metric in METRICS.items()},
        per_class={key: function(confusion) for key, function in CLASS_METRICS.items()},
        pixels=class_pixels(confusion),
    )


def selection_score(scored: dict, best_metric: str = "miou") -> float:
    """Return the metric that selects the best checkpoint, from the "confusion" of a checkpoint's metadata."""
    return scores(np.array(scored["confusion"])).values[best_metric]
