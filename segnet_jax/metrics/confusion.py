"""The integer confusion matrix and every score that follows from it.

CamVid's test split has 40,262,400 pixels, more than float32 counts exactly, so counting is done in integers: int32 for
a batch on the device, int64 over a split on the host; each score divides once, at the end.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.constants import VOID

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


def count_confusion(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """What `confusion_matrix` counts, on the host; int64 [C,C]."""
    known = label != VOID
    cell = label[known].astype(np.int64) * num_classes + prediction[known]
    return np.bincount(cell, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says, all fractions 0..1 (protocols.md's definitions; MATLAB's names in brackets).

    Attributes:
      global_accuracy: share of labelled pixels that are right (GlobalAccuracy).
      mean_accuracy: mean over classes of the share of a class's pixels that are right (MeanAccuracy).
      miou: mean over classes of intersection over union (MeanIoU).
      weighted_iou: IoU weighted by the class's share of pixels (WeightedIoU).
      iou: float64 [C], NaN for a class without ground truth.
      accuracy: float64 [C], likewise.
      pixels: int64 [C], labelled pixels of each class.
    """

    global_accuracy: float
    mean_accuracy: float
    miou: float
    weighted_iou: float
    iou: np.ndarray
    accuracy: np.ndarray
    pixels: np.ndarray

    @property
    def absent(self) -> tuple[int, ...]:
        """Ids of the classes without ground truth: they have no score and are left out of the means."""
        return tuple(int(class_id) for class_id in np.flatnonzero(self.pixels == 0))


def scores(confusion: np.ndarray) -> Scores:
    """Derives every score from a confusion matrix summed over the whole split.

    Args:
      confusion: integers [C,C], rows the known class, columns the predicted one.

    Raises:
      ValueError: if it holds no pixel.
    """
    confusion = np.asarray(confusion, np.int64)
    if not confusion.any():
        raise ValueError("no labelled pixel was evaluated: every label is void")
    right = np.diag(confusion)
    known, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    present = known > 0
    with np.errstate(invalid="ignore"):  # 0/0 of an absent class, which becomes NaN on purpose
        accuracy = right / known
        iou = np.where(present, right / (known + predicted - right), np.nan)
    return Scores(
        global_accuracy=float(right.sum() / confusion.sum()),
        mean_accuracy=float(accuracy[present].mean()),
        miou=float(iou[present].mean()),
        weighted_iou=float((iou * known)[present].sum() / known.sum()),
        iou=iou,
        accuracy=accuracy,
        pixels=known,
    )


def selection_score(scored: dict, best_metric: str = "miou") -> float:
    """The score by which checkpoints are compared, of what a checkpoint's JSON says of a scored step."""
    return getattr(scores(np.array(scored["confusion"])), best_metric)
