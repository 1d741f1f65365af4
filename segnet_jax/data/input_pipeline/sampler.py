"""The plan: which sample, flip, shift, scale and colour stands at which place of a training, from (seed, epoch) alone.

Every input path applies this one plan, so their batches are equal, and the number of finished steps is the whole state
of the input: resuming is exact, also on other devices or hosts, as long as the global batch is the same.

Random numbers are the raw bits of numpy's Philox generator, which numpy promises never to change; its distributions
may change between releases, so they are not used.
"""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np

from segnet_jax.data.input_pipeline.augment import PIXEL, PLACES
from segnet_jax.system.errors import UserError


@dataclass(frozen=True)
class AugmentationParams:
    """What becomes of each place of a batch: arrays of one length.

    Attributes:
      index: int64, which sample of the split.
      flip: bool, reflect it left/right.
      shift_y: int64, move it down by so many pixels (up if negative).
      shift_x: int64, move it right by so many pixels, after the reflection.
      step: int64, for `augment.resample`, like the next two; None where nothing is scaled.
      place_y: int64.
      place_x: int64.
      gain: int64 [n,3], for `augment.recolor`, like the next; None where colours stay.
      offset: int64 [n,3].
    """

    index: np.ndarray
    flip: np.ndarray
    shift_y: np.ndarray
    shift_x: np.ndarray
    step: np.ndarray | None = None
    place_y: np.ndarray | None = None
    place_x: np.ndarray | None = None
    gain: np.ndarray | None = None
    offset: np.ndarray | None = None

    def __getitem__(self, places) -> "AugmentationParams":
        return AugmentationParams(**{name: array[places] for name, array in self.drawn().items()})

    def drawn(self) -> dict[str, np.ndarray]:
        """The attributes that are not None."""
        named = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: array for name, array in named.items() if array is not None}


@dataclass(frozen=True)
class Sampler:
    """The order and augmentation of a whole training.

    Attributes:
      num_samples: of the training split.
      global_batch_size: samples a step, over all devices and accumulated batches.
      seed: same seed, same plan.
      flip: reflect with probability 1/2.
      shift: shifts are uniform over -shift..shift, in y and x.
      scale: images are enlarged by a factor that is uniform between these two, about a place that is too.
      color: strength, 0 to 1: contrast changes by up to this share, brightness by this share of half the range, and
        each channel by half this share on top.
    """

    num_samples: int
    global_batch_size: int
    seed: int
    flip: bool
    shift: int
    scale: tuple[float, float] = (1.0, 1.0)
    color: float = 0.0

    def __post_init__(self):
        if self.num_samples < self.global_batch_size:
            raise UserError(
                f"{self.num_samples} training images are fewer than the global batch of {self.global_batch_size}: no "
                "step would run; use fewer --devices or a smaller --batch-size-per-device",
                kind="too-few-images",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the remainder, other samples in each epoch, is left out."""
        return self.num_samples // self.global_batch_size

    def batch(self, step: int) -> AugmentationParams:
        """Draws of the global batch of a step, counted from 0 over all epochs; arrays of length global_batch_size."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.global_batch_size
        return _epoch(self, epoch)[first : first + self.global_batch_size]


@functools.lru_cache(maxsize=4)
def _epoch(sampler: Sampler, epoch: int) -> AugmentationParams:
    """Draws of all samples in one epoch, in their order."""
    bits = np.random.Philox(key=[sampler.seed, epoch]).random_raw((12, sampler.num_samples))
    span = np.uint64(2 * sampler.shift + 1)
    more = {}
    if sampler.scale != (1.0, 1.0):
        low, high = sampler.scale
        more["step"] = np.rint(PIXEL / (low + (high - low) * _uniform(bits[4]))).astype(np.int64)
        more |= {
            name: (bits[i] % np.uint64(PLACES + 1)).astype(np.int64) for name, i in (("place_y", 5), ("place_x", 6))
        }
    if sampler.color:
        more |= _colors(sampler.color * (2 * _uniform(bits[7:]) - 1))
    return AugmentationParams(
        index=np.argsort(bits[0], kind="stable"),
        flip=(bits[1] >> np.uint64(63)).astype(bool) & sampler.flip,
        shift_y=(bits[2] % span).astype(np.int64) - sampler.shift,
        shift_x=(bits[3] % span).astype(np.int64) - sampler.shift,
        **more,
    )


def _uniform(bits: np.ndarray) -> np.ndarray:
    """Raw bits as numbers from 0 to below 1, each a multiple of 2^-53: no rounding, on no machine."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _colors(changes: np.ndarray) -> dict[str, np.ndarray]:
    """Gains and offsets in 256ths: channel * (contrast * (value - 128) + 128 + brightness).

    What differs between drives is the exposure, the haze and the colour of the light: contrast, brightness, and a gain
    of each channel (von Kries), which is weaker.

    Args:
      changes: float64 [5,n], from -strength to strength: of contrast, brightness, red, green and blue.
    """
    contrast, brightness = 1 + changes[0], 128 * changes[1]
    channel = 1 + changes[2:].T / 2  # [n,3]
    gain = np.rint(256 * channel * contrast[:, None])
    offset = np.rint(256 * channel * (128 - 128 * contrast + brightness)[:, None]) + 128  # 128: a half, to be rounded
    return {"gain": gain.astype(np.int64), "offset": offset.astype(np.int64)}
