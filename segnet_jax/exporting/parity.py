"""How far an exported network is from the one that it was made from, counted pixel by pixel.

Two programs that sum in different orders differ in the last digits, and where two values of a window differ by no more
than that, each may find the maximum elsewhere. Unpooling then puts it elsewhere, and the logits around it differ by
more than rounding, between any two implementations of SegNet. So no bound on the largest difference can be promised,
but one on how many pixels have such neighbours.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Label = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Images uint8 [B,H,W,3] to prediction uint8 [B,H,W] and logits float32 [B,H,W,C]."""

AGREEMENT = 0.999
"""Share of pixels whose class must be the same; rounding alone left 0.9998 of the worst CamVid frame tried."""

TOLERANCE = 1e-4
"""By how much a logit may differ, as a share of the largest of its image (of 1, where that is smaller)."""

WITHIN = 0.97
"""Share of pixels whose logits must all be within TOLERANCE; rounding alone left 0.983 of the worst frame tried."""


@dataclass(frozen=True)
class Parity:
    """What was found on images of one size, so many at once.

    Attributes:
      size: height and width.
      batch: images at once.
      images: how many in all.
      agreement: share of pixels with the same class.
      within: share of pixels whose logits are all within TOLERANCE.
      largest_difference: of any logit.
      largest_logit: of the network, its sign apart.
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
        """Whether what was exported is the network."""
        return self.agreement >= AGREEMENT and self.within >= WITHIN

    def __str__(self) -> str:
        return (
            f"{self.images} images of {self.size[0]}x{self.size[1]}, {self.batch} at once: "
            f"{100 * self.agreement:.4f} % of the pixels have the same class, "
            f"{100 * self.within:.2f} % have logits within {TOLERANCE:g} of the largest, {self.largest_logit:.1f}; "
            f"the largest difference is {self.largest_difference:.1e}"
        )


def compare(network: Label, exported: Sequence[Label], images: Iterable[np.ndarray], batch: int) -> list[Parity]:
    """Labels images by a network and by what was exported of it.

    Args:
      network: the measure.
      exported: what is held against it.
      images: uint8 [H,W,3], all of one size, at least one.
      batch: images at once; the last ones are filled up with the first of their batch, which do not count.

    Returns:
      For each of `exported`, in order, what was found.

    Raises:
      ValueError: something exported gives other shapes or types.
    """
    tallies = [_Tally(batch) for _ in exported]
    for together in _batches(images, batch):
        filled = np.concatenate([together, np.repeat(together[:1], batch - len(together), axis=0)])
        ours = network(filled)
        for label, tally in zip(exported, tallies, strict=True):
            theirs = label(filled)
            for our, their in zip(ours, theirs, strict=True):
                if our.shape != their.shape or our.dtype != their.dtype:
                    raise ValueError(f"{their.dtype} {their.shape} was given where {our.dtype} {our.shape} is right")
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
    """Counts pixels, image by image."""

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
        near = difference <= TOLERANCE * np.maximum(1, largest)  # NaN is not
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
