"""The sampler: sample index and augmentation parameters of each batch element, from (seed, epoch) alone.

Every input path uses the same sampler, so their batches are equal, and the number of finished steps is the whole input
state: resuming is exact, also on other devices or hosts with the same global batch size.

Random numbers are raw bits of numpy's Philox generator, which numpy promises never to change, unlike its distributions.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from segnet_jax.data.input_pipeline.augment import PIXEL, PLACES
from segnet_jax.system.errors import UserError


@dataclass(frozen=True)
class AugmentationParams:
    """Sample index and augmentation parameters of batch elements: arrays of one length.

    Attributes:
      index: int64, sample of the split.
      flip: bool, reflect left/right.
      shift_y: int64, pixels down (up if negative).
      shift_x: int64, pixels right, after the reflection.
      step: int64, for `augment.resample`, like the next two; None without scaling.
      place_y: int64.
      place_x: int64.
      gain: int64 [n,3], for `augment.recolor`, like the next; None without color changes.
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
        """Return the attributes that are not None."""
        named = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: array for name, array in named.items() if array is not None}


@dataclass(frozen=True)
class Sampler:
    """Order and augmentation of a training run.

    Attributes:
      num_samples: number of training samples.
      global_batch_size: samples per step, over all devices and accumulated batches.
      seed: equal seeds give equal batches.
      flip: reflect with probability 1/2.
      shift: shifts are uniform over -shift..shift, in y and x.
      scale: range of the zoom factor; factor and position are uniform.
      color: strength, 0 to 1: contrast changes by up to this fraction, brightness by this fraction of half the range,
        and each channel by another half of it.
    """

    num_samples: int
    global_batch_size: int
    seed: int
    flip: bool
    shift: int
    scale: tuple[float, float] = (1.0, 1.0)
    color: float = 0.0

    @classmethod
    def from_config(cls, config: Any, num_samples: int, global_batch_size: int) -> "Sampler":
        """Build the sampler of a training run.

        Args:
          config: a `Config`, or any object with the fields `seed`, `flip`, `shift`, `scale` and `color`.
          num_samples: number of training samples.
          global_batch_size: samples per step, over all devices and accumulated batches.
        """
        augmentation = {"flip": config.flip, "shift": config.shift, "scale": config.scale, "color": config.color}
        return cls(num_samples, global_batch_size, config.seed, **augmentation)

    def __post_init__(self):
        if self.num_samples < self.global_batch_size:
            raise UserError(
                f"{self.num_samples} training images are fewer than the global batch of {self.global_batch_size}: no "
                "step would run; use fewer --devices or a smaller --batch-size-per-device",
                kind="too-few-images",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in an epoch; the remainder, different in each epoch, is dropped."""
        return self.num_samples // self.global_batch_size

    def batch(self, step: int) -> AugmentationParams:
        """Return the parameters of a step's global batch; steps are counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.global_batch_size
        return _epoch(self, epoch)[first : first + self.global_batch_size]

    def remainder(self, epoch: int) -> np.ndarray:
        """Return the indices of the samples that an epoch drops, int64, fewer than a global batch."""
        return _epoch(self, epoch).index[self.steps_per_epoch * self.global_batch_size :]


@functools.lru_cache(maxsize=4)
def _epoch(sampler: Sampler, epoch: int) -> AugmentationParams:
    """Draw the parameters of all samples in one epoch, in their order."""
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
    """Convert raw bits to [0, 1), in multiples of 2^-53: exact on every machine."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _colors(changes: np.ndarray) -> dict[str, np.ndarray]:
    """Return gains and offsets in 256ths: channel * (contrast * (value - 128) + 128 + brightness).

    Exposure, haze and the color of the light differ between drives: contrast, brightness, and a weaker gain of each
    channel (von Kries).

    Args:
      changes: float64 [5,n], from -strength to strength: of contrast, brightness, red, green and blue.
    """
    contrast, brightness = 1 + changes[0], 128 * changes[1]
    channel = 1 + changes[2:].T / 2  # [n,3]
    gain = np.rint(256 * channel * contrast[:, None])
    offset = np.rint(256 * channel * (128 - 128 * contrast + brightness)[:, None]) + 128  # 128: one half, for rounding
    return {"gain": gain.astype(np.int64), "offset": offset.astype(np.int64)}
