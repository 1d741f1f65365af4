"""Pixelwise comparison of an exported network with the original.

Two programs that sum in different orders differ by rounding. Where two values of a pooling window are equal up to
rounding, the programs may choose different cells as the maximum, and unpooling puts it elsewhere: nearby logits then
differ by more than rounding, between any two implementations of SegNet. Therefore the fraction of differing pixels is
bounded, not the largest difference.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

PredictFn = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Maps images uint8 [B,H,W,3] to prediction uint8 [B,H,W] and logits float32 [B,H,W,C]."""

AGREEMENT = 0.999
"""Required fraction of pixels with the same class; rounding alone gave 0.9998 on the worst CamVid frame tried."""

TOLERANCE = 1e-4
"""Allowed difference of a logit, relative to the largest logit of its image, or to 1 if that is smaller."""

WITHIN = 0.97
"""Required fraction of pixels with all logits within TOLERANCE; rounding alone gave 0.983 on the worst frame tried."""


@dataclass(frozen=True)
class Parity:
    """Result of a comparison on images of one size.

    Attributes:
      size: height and width.
      batch: batch size.
      images: number of images.
      agreement: fraction of pixels with the same class.
      within: fraction of pixels with all logits within TOLERANCE.
      largest_difference: largest difference of a logit.
      largest_logit: largest absolute logit of the original network.
    """

    size: tuple[int, int]
    batch: int
    images: int
    agreement: float
    within: float
    largest_difference: float
    largest_logit: float

    @property
    def holds(self) -> bool:
        """Whether the exported network matches the original."""
        return self.agreement >= AGREEMENT and self.within >= WITHIN

    def __str__(self) -> str:
        return (
            f"{self.images} images of {self.size[0]}x{self.size[1]}, batch size {self.batch}: "
            f"{100 * self.agreement:.4f} % of the pixels have the same class, "
            f"{100 * self.within:.2f} % have all logits within {TOLERANCE:g} of the largest, {self.largest_logit:.1f}; "
            f"the largest difference is {self.largest_difference:.1e}"
        )


def compare(
    network: PredictFn, exported: Sequence[PredictFn], images: Iterable[np.ndarray], batch: int
) -> list[Parity]:
    """Compare the outputs of exported networks with those of the original.

    Args:
      network: the original network.
      exported: the exported networks.
      images: uint8 [H,W,3], all of one size, at least one.
      batch: batch size; the last batch is padded with copies of its first image, which are not counted.

    Returns:
      One result for each of `exported`, in order.

    Raises:
      ValueError: If an exported network returns other shapes or dtypes.
    """
    tallies = [_Tally(batch) for _ in exported]
    for together in _batches(images, batch):
        filled = np.concatenate([together, np.repeat(together[:1], batch - len(together), axis=0)])
        ours = network(filled)
        for predict, tally in zip(exported, tallies, strict=True):
            theirs = predict(filled)
            for our, their in zip(ours, theirs, strict=True):
                if our.shape != their.shape or our.dtype != their.dtype:
                    raise ValueError(f"expected {our.dtype} {our.shape}, got {their.dtype} {their.shape}")
            tally.add(*(array[: len(together)] for array in (*ours, *theirs)))
    return [tally.parity() for tally in tallies]


def _batches(images: Iterable[np.ndarray], batch: int) -> Iterator[np.ndarray]:
    together = []
    for image in images:
        together.append(image)
        if len(together) == batch:
            yield np.stack(together)
            together = []
    if together:
        yield np.stack(together)


class _Tally:
    """Running counts of one comparison."""

    def __init__(self, batch: int):
        self._batch, self._size, self._images = batch, (0, 0), 0
        self._same = self._near = 0
        self._difference = self._logit = 0.0

    def add(self, our_prediction, our_logits, their_prediction, their_logits) -> None:
        difference = np.abs(our_logits - their_logits)
        largest = np.abs(our_logits).max(axis=(1, 2, 3), keepdims=True)
        self._images += len(our_prediction)
        self._size = our_prediction.shape[1:]
        self._same += int((our_prediction == their_prediction).sum())
        near = difference <= TOLERANCE * np.maximum(1, largest)  # False for NaN
        self._near += int(near.all(axis=-1).sum())
        self._difference = max(self._difference, float(np.nan_to_num(difference, nan=np.inf).max()))
        self._logit = max(self._logit, float(largest.max()))

    def parity(self) -> Parity:
        pixels = self._images * self._size[0] * self._size[1]
        return Parity(
            self._size,
            self._batch,
            self._images,
            self._same / pixels,
            self._near / pixels,
            self._difference,
            self._logit,
        )
