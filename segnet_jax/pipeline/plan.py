"""The plan: which sample, flip and shift stands at which place of the training, from (seed, epoch) alone.

Every input path applies this one plan, so their batches are equal, and the number of finished steps is the whole state
of the input: resuming is exact, also on other devices or hosts, as long as the global batch is the same.

Random numbers are the raw bits of numpy's Philox generator, which numpy promises never to change; its distributions
may change between releases, so they are not used.
"""

import functools
from dataclasses import dataclass

import numpy as np

from segnet_jax.errors import UserError


@dataclass(frozen=True)
class Draws:
    """What becomes of each place of a batch: arrays of one length.

    Attributes:
      index: int64, which sample of the split.
      flip: bool, reflect it left/right.
      shift_y: int64, move it down by so many pixels (up if negative).
      shift_x: int64, move it right by so many pixels, after the reflection.
    """

    index: np.ndarray
    flip: np.ndarray
    shift_y: np.ndarray
    shift_x: np.ndarray

    def __getitem__(self, places) -> "Draws":
        return Draws(self.index[places], self.flip[places], self.shift_y[places], self.shift_x[places])


@dataclass(frozen=True)
class Plan:
    """The order and augmentation of a whole training.

    Attributes:
      num_samples: of the training split.
      global_batch_size: samples a step, over all devices and accumulated batches.
      seed: same seed, same plan.
      flip: reflect with probability 1/2.
      shift: shifts are uniform over -shift..shift, in y and x.
    """

    num_samples: int
    global_batch_size: int
    seed: int
    flip: bool
    shift: int

    def __post_init__(self):
        if self.num_samples < self.global_batch_size:
            raise UserError(
                f"{self.num_samples} training images are fewer than the global batch of {self.global_batch_size}: no "
                "step would run; use fewer --devices, a smaller --batch-size-per-device or --accumulate",
                kind="too-few-images",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the remainder, other samples in each epoch, is left out."""
        return self.num_samples // self.global_batch_size

    def batch(self, step: int) -> Draws:
        """Draws of the global batch of a step, counted from 0 over all epochs; arrays of length global_batch_size."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.global_batch_size
        return _epoch(self, epoch)[first : first + self.global_batch_size]


@functools.lru_cache(maxsize=4)
def _epoch(plan: Plan, epoch: int) -> Draws:
    """Draws of all samples in one epoch, in their order."""
    bits = np.random.Philox(key=[plan.seed, epoch]).random_raw((4, plan.num_samples))
    span = np.uint64(2 * plan.shift + 1)
    return Draws(
        index=np.argsort(bits[0], kind="stable"),
        flip=(bits[1] >> np.uint64(63)).astype(bool) & plan.flip,
        shift_y=(bits[2] % span).astype(np.int64) - plan.shift,
        shift_x=(bits[3] % span).astype(np.int64) - plan.shift,
    )
