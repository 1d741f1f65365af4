"""Evaluate a split by sliding windows: every image in overlapping tiles at its native size, as in `predict --tile`."""

import math
from collections.abc import Callable

import jax
import numpy as np

from segnet_jax.data.dataset import Split
from segnet_jax.inference.predictor import Predictor
from segnet_jax.metrics.boundary import BoundaryF1, boundary_counts
from segnet_jax.metrics.confusion import count_confusion
from segnet_jax.training.evaluation import Evaluation, evaluate_boundaries


class NativeSamples:
    """Samples of a split at the size on disk, for `evaluate_boundaries`.

    Attributes:
      image_size: height and width of the first image.
    """

    def __init__(self, split: Split):
        self.read, self._length = split.read, len(split)
        self.image_size = split.read(0)[1].shape

    def __len__(self) -> int:
        return self._length


def evaluate_tiles(
    predictor: Predictor, split: Split, num_classes: int, boundary: bool, advance: Callable[[], None] = lambda: None
) -> tuple[Evaluation, BoundaryF1 | None]:
    """Predict each image by tiles, and score it against its label at native size.

    Args:
      predictor: predictor with tiles.
      split: the split.
      num_classes: C.
      boundary: whether to compute boundary F1.
      advance: called after each image.

    Returns:
      The evaluation, without loss and pictures, and boundary F1.

    Raises:
      UserError: If a sample cannot be read.
    """
    count_boundaries = jax.jit(boundary_counts, static_argnums=(2, 3))

    def run(on_prediction: Callable[[int, np.ndarray], None] | None = None) -> Evaluation:
        confusions, boundaries, seconds = [], [], 0.0
        for index in range(len(split)):
            image, label = split.read(index)
            prediction = predictor.predict([predictor.prepare(image)])[0]
            seconds += prediction.milliseconds / 1e3
            confusion = count_confusion(label, prediction.class_ids, num_classes, predictor.multi_label)
            confusions.append(confusion.astype(np.int32))
            if on_prediction:
                counted = count_boundaries(label[None], prediction.class_ids[None], num_classes, predictor.multi_label)
                boundaries.append(np.asarray(counted)[0])
                on_prediction(index, prediction.class_ids)
            advance()
        confusions = np.stack(confusions)
        return Evaluation(
            confusion=confusions.sum(axis=0, dtype=np.int64),
            confusions=confusions,
            boundaries=np.stack(boundaries) if boundaries else np.empty((0, num_classes, 4), np.int32),
            loss=math.nan,
            predictions={},
            accuracies={},
            worst={},
            seconds=seconds,
        )

    samples, multi_label = NativeSamples(split), predictor.multi_label
    return evaluate_boundaries(run, samples, num_classes, multi_label) if boundary else (run(), None)
