"""The integer confusion matrix and every score that follows from it.

CamVid's test split has 40,262,400 pixels, more than float32 counts exactly, so counting is done in integers: int32 for
a batch on the device, int64 over a split on the host; each score divides once, at the end.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax.constants import VOID


def confusion_matrix(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """Counts the pixels of each known class that were given each predicted class; VOID pixels do not count.

    Args:
      label: uint8 [...], class ids below num_classes, or VOID.
      prediction: uint8 [...], class ids below num_classes.
      num_classes: C.

    Returns:
      int32 [C,C], rows the known class, columns the predicted one.
    """
    known, predicted = (
        label.astype(jnp.int32),
        prediction.astype(jnp.int32),
    )  # uint8 would wrap from 16 classes on
    nowhere = num_classes * num_classes
    cell = jnp.where(label == VOID, nowhere, known * num_classes + predicted)
    return jnp.bincount(cell.ravel(), length=nowhere + 1)[:-1].reshape(num_classes, num_classes).astype(jnp.int32)


def confusion_matrices(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """What `confusion_matrix` counts, of each image by itself.

    Args:
      label: uint8 [B,H,W], class ids below num_classes, or VOID.
      prediction: uint8 [B,H,W], class ids below num_classes.
      num_classes: C.

    Returns:
      int32 [B,C,C], of each image rows the known class, columns the predicted one.
    """
    num_images, known, predicted = len(label), label.astype(jnp.int32), prediction.astype(jnp.int32)
    nowhere = num_classes * num_classes
    cell = jnp.where(label == VOID, nowhere, known * num_classes + predicted)
    first = (nowhere + 1) * jnp.arange(num_images, dtype=jnp.int32)  # each image counts into cells of its own
    cell = cell.reshape(num_images, -1) + first[:, None]
    counts = jnp.bincount(cell.ravel(), length=num_images * (nowhere + 1)).reshape(num_images, nowhere + 1)
    return counts[:, :-1].reshape(num_images, num_classes, num_classes).astype(jnp.int32)


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
