"""The integer confusion matrix, and the scores that follow from it by the table of metrics.

CamVid's test split has 40,262,400 pixels, more than float32 counts exactly, so counting is done in integers: int32 for
a batch on the device, int64 over a split on the host; each score divides once, at the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.constants import VOID
from segnet_jax.metrics.table import METRICS, class_accuracy, class_iou

_BLOCK_NUMBERS = 2**23
"""Zeros and ones that stand for one block of pixels: 32 MB of them, so that many images need no more memory."""


def confusion_matrix(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """Counts the pixels of each known class that were given each predicted class; VOID pixels do not count.

    Args:
      label: uint8 [...], class ids below num_classes, or VOID.
      prediction: uint8 [...], class ids below num_classes.
      num_classes: C.

    Returns:
      int32 [C,C], rows the known class, columns the predicted one.
    """
    return confusion_matrices(label.ravel()[None], prediction.ravel()[None], num_classes)[0]


def confusion_matrices(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """What `confusion_matrix` counts, of each image by itself.

    Args:
      label: uint8 [B,...], class ids below num_classes, or VOID.
      prediction: uint8 [B,...], class ids below num_classes.
      num_classes: C.

    Returns:
      int32 [B,C,C], of each image rows the known class, columns the predicted one.
    """
    # A scatter of ones is the fastest on a CPU and among the slowest of all things on a GPU or TPU.
    return lax.platform_dependent(
        label.reshape(len(label), -1),
        prediction.reshape(len(label), -1),
        cpu=partial(_count_by_scatter, num_classes=num_classes),
        default=lambda *images: lax.map(lambda image: count_by_products(*image, num_classes), images),
    )


def _count_by_scatter(label, prediction, num_classes):
    known, predicted = label.astype(jnp.int32), prediction.astype(jnp.int32)  # a byte would wrap from 16 classes on
    num_images, nowhere = len(label), num_classes * num_classes
    first = (nowhere + 1) * jnp.arange(num_images, dtype=jnp.int32)  # each image counts into cells of its own
    cell = jnp.where(label == VOID, nowhere, known * num_classes + predicted) + first[:, None]
    counts = jnp.bincount(cell.ravel(), length=num_images * (nowhere + 1)).reshape(num_images, nowhere + 1)
    return counts[:, :-1].reshape(num_images, num_classes, num_classes).astype(jnp.int32)


def count_by_products(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """What `confusion_matrix` counts in pixels [P], as products of matrices of zeros and ones.

    Exact in whatever precision a device multiplies: every product is 0 or 1, and a block's float32 sum is below 2^24.
    """
    size = min(_BLOCK_NUMBERS // num_classes, label.size)
    num_blocks = -(-label.size // size)
    blocks = [
        jnp.pad(array, (0, num_blocks * size - label.size), constant_values=VOID).reshape(num_blocks, size)
        for array in (label, prediction)
    ]
    classes = jnp.arange(num_classes, dtype=jnp.uint8)[None]

    def add_block(total, block):
        known, predicted = ((array[:, None] == classes).astype(jnp.float32) for array in block)  # VOID is none of them
        return total + (known.T @ predicted).astype(jnp.int32), None

    total, _ = lax.scan(add_block, jnp.zeros((num_classes, num_classes), jnp.int32), tuple(blocks))
    return total


_PART = 2**20  # pixels


def count_confusion(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """What `confusion_matrix` counts, on the host; int64 [C,C]."""
    counts = np.zeros(num_classes * num_classes, np.int64)
    labels, predictions = label.reshape(-1), prediction.reshape(-1)
    for start in range(0, labels.size, _PART):  # a cell takes eight bytes, and photographs have fifty million
        part = slice(start, start + _PART)
        known = labels[part] != VOID
        cell = labels[part][known].astype(np.int64) * num_classes + predictions[part][known]
        counts += np.bincount(cell, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """The metrics of a confusion matrix, as fractions 0..1; each row of `METRICS` is an attribute, such as `miou`.

    Attributes:
      values: key -> value, for each row of `METRICS`.
      iou: float64 [C], NaN for a class without ground truth.
      accuracy: float64 [C], likewise.
      pixels: int64 [C], labeled pixels of each class.
    """

    values: Mapping[str, float]
    iou: np.ndarray
    accuracy: np.ndarray
    pixels: np.ndarray

    def __getattr__(self, key: str) -> float:
        if key in METRICS:
            return self.values[key]
        raise AttributeError(f"{type(self).__name__} has no attribute {key!r}; METRICS has {', '.join(METRICS)}")

    @property
    def absent(self) -> tuple[int, ...]:
        """Ids of the classes without ground truth, which the means leave out."""
        return tuple(int(class_id) for class_id in np.flatnonzero(self.pixels == 0))


def scores(confusion: np.ndarray) -> Scores:
    """Compute every metric from a confusion matrix summed over the whole split.

    Args:
      confusion: integers [C,C], rows the true class, columns the predicted one.

    Raises:
      ValueError: the matrix has no pixels.
    """
    confusion = np.asarray(confusion, np.int64)
    if not confusion.any():
        raise ValueError("no labelled pixel was evaluated: every label is void")
    return Scores(
        values={key: float(metric.function(confusion)) for key, metric in METRICS.items()},
        iou=class_iou(confusion),
        accuracy=class_accuracy(confusion),
        pixels=confusion.sum(axis=1),
    )


def selection_score(scored: dict, best_metric: str = "miou") -> float:
    """Return the metric that selects the best checkpoint, from the "confusion" of a checkpoint's metadata."""
    return scores(np.array(scored["confusion"])).values[best_metric]
