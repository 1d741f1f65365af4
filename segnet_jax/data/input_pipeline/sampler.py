"""The sampler: sample index and augmentation parameters of each batch element, from (seed, epoch) alone.

Both input paths use the same sampler, so their batches are equal. The number of finished steps is the whole input
state, so resuming is exact, even on other devices or hosts with the same global batch size.

Random numbers are raw bits of numpy's Philox generator, which numpy guarantees not to change, unlike its distributions.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from segnet_jax.system.errors import UserError

PIXEL_BITS = 14  # subpixel positions are multiples of 2^-14
PIXEL = 1 << PIXEL_BITS
PLACES = 2048  # steps between the extreme positions of a scaled image
CROP_BITS = 15  # bits of the position of a crop
KERNEL_BITS = 14  # the weights of a blur kernel add up to 2^14


@dataclass(frozen=True)
class AugmentationParams:
    """Sample indices and augmentation parameters of batch elements, as arrays of equal length.

    Attributes:
      index: int64, sample of the split.
      flip: bool, reflect left/right.
      shift_y: int64, pixels down (up if negative).
      shift_x: int64, pixels right, after the reflection.
      step: int64, for `augment.resample`, like place_y and place_x; None without scaling.
      place_y: int64.
      place_x: int64.
      gain: int64 [n,3], for `augment.recolor`, like offset; None without color changes.
      offset: int64 [n,3].
      kernel: int64 [n,K], for `augment.blur`; None without blur.
      matrix: int64 [n,4], for `augment.warp`; None without rotation and shear.
      vertical_flip: bool, reflect up/down; None without vertical flips.
      crop_y: int64, 0 to 2^15 - 1: vertical position of the crop, from top to bottom; None without crops.
      crop_x: int64, horizontal position, from left to right.
      partner: int64, sample whose classes are pasted, or `index` for no change; None without class-mix.
      class_seed: int64, for `class_mix.choose_classes`.
      key: int64 [n,2], random bits for a custom augmentation; None without one.
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
    kernel: np.ndarray | None = None
    matrix: np.ndarray | None = None
    vertical_flip: np.ndarray | None = None
    crop_y: np.ndarray | None = None
    crop_x: np.ndarray | None = None
    partner: np.ndarray | None = None
    class_seed: np.ndarray | None = None
    key: np.ndarray | None = None

    def __getitem__(self, places) -> "AugmentationParams":
        return AugmentationParams(**{name: array[places] for name, array in self.drawn().items()})

    def keys(self, places: np.ndarray) -> np.ndarray:
        """Return the random bits for a custom augmentation of batch elements, int32 [...,2]."""
        return self.key[places].astype(np.int32)

    def drawn(self) -> dict[str, np.ndarray]:
        """Return the attributes that are not None."""
        named = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: array for name, array in named.items() if array is not None}


@dataclass(frozen=True)
class Sampler:
    """Order and augmentation of the samples in a training run.

    Attributes:
      num_samples: number of training samples.
      global_batch_size: samples per step, over all devices and accumulated batches.
      seed: equal seeds give equal batches.
      flip: reflect left/right with probability 1/2.
      shift: shifts are uniform over -shift..shift, in y and x.
      scale: range of the zoom factor; factor and position are uniform.
      color: strength, 0 to 1: contrast changes by up to this fraction, brightness by this fraction of half the range,
        and each channel's gain by half this fraction.
      blur: standard deviations of the Gaussian kernel are uniform over 0..blur, in pixels.
      rotate: angles are uniform over -rotate..rotate, in degrees.
      shear: angles of horizontal shear are uniform over -shear..shear, in degrees.
      vertical_flip: reflect up/down with probability 1/2.
      crop: height and width of crops, whose positions are uniform; (0, 0) for none.
      class_mix: probability of pasting half of the classes of another sample, which is drawn uniformly.
      augment: name of a custom augmentation, for which keys are drawn; empty for none.
      fill: value of each channel outside an image (the mean, for images that are read as stored); empty for 0.
    """

    num_samples: int
    global_batch_size: int
    seed: int
    flip: bool
    shift: int
    scale: tuple[float, float] = (1.0, 1.0)
    color: float = 0.0
    blur: float = 0.0
    rotate: float = 0.0
    shear: float = 0.0
    vertical_flip: bool = False
    crop: tuple[int, int] = (0, 0)
    class_mix: float = 0.0
    augment: str = ""
    fill: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: Any, num_samples: int, global_batch_size: int) -> "Sampler":
        """Build the sampler of a training run.

        Args:
          config: a `Config`, or any object with some of the fields of the sampler.
          num_samples: number of training samples.
          global_batch_size: samples per step, over all devices and accumulated batches.
        """
        names = [item.name for item in dataclasses.fields(cls) if hasattr(config, item.name)]
        return cls(num_samples, global_batch_size, **{name: getattr(config, name) for name in names})

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

    def train_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of augmented samples, given the size before augmentation."""
        return image_size if self.crop == (0, 0) else self.crop

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
    """Draw the order and the augmentation parameters of all samples in one epoch."""
    bits = np.random.Philox(key=[sampler.seed, epoch]).random_raw((22, sampler.num_samples))
    span = np.uint64(2 * sampler.shift + 1)
    more = {}
    if sampler.scale != (1.0, 1.0):
        low, high = sampler.scale
        more["step"] = np.rint(PIXEL / (low + (high - low) * _uniform(bits[4]))).astype(np.int64)
        more |= {
            name: (bits[i] % np.uint64(PLACES + 1)).astype(np.int64) for name, i in (("place_y", 5), ("place_x", 6))
        }
    if sampler.color:
        more |= _colors(sampler.color * (2 * _uniform(bits[7:12]) - 1))
    index = np.argsort(bits[0], kind="stable")
    if sampler.rotate or sampler.shear:
        more["matrix"] = _matrices(
            *(np.deg2rad(most) * (2 * _uniform(bits[i]) - 1) for most, i in ((sampler.rotate, 12), (sampler.shear, 13)))
        )
    if sampler.vertical_flip:
        more["vertical_flip"] = (bits[14] >> np.uint64(63)).astype(bool)
    if sampler.crop != (0, 0):
        more |= {name: _top(bits[i], CROP_BITS) for name, i in (("crop_y", 15), ("crop_x", 16))}
    if sampler.class_mix:
        distance = 1 + (bits[17] % np.uint64(max(sampler.num_samples - 1, 1))).astype(np.int64)
        distance *= _uniform(bits[18]) < sampler.class_mix
        more |= {"partner": (index + distance) % sampler.num_samples, "class_seed": _top(bits[19], 24)}
    if sampler.blur:
        more["kernel"] = _kernels(sampler.blur * _uniform(bits[20]), math.ceil(3 * sampler.blur))
    if sampler.augment:
        halves = bits[21].astype("<u8").view("<i4").reshape(-1, 2)
        more["key"] = halves.astype(np.int64)
    return AugmentationParams(
        index=index,
        flip=(bits[1] >> np.uint64(63)).astype(bool) & sampler.flip,
        shift_y=(bits[2] % span).astype(np.int64) - sampler.shift,
        shift_x=(bits[3] % span).astype(np.int64) - sampler.shift,
        **more,
    )


def _uniform(bits: np.ndarray) -> np.ndarray:
    """Convert raw bits to [0, 1), in multiples of 2^-53: exact on every machine."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _top(bits: np.ndarray, count: int) -> np.ndarray:
    """Return the highest `count` bits as int64."""
    return (bits >> np.uint64(64 - count)).astype(np.int64)


def _matrices(rotation: np.ndarray, shear: np.ndarray) -> np.ndarray:
    """Return matrices for `augment.warp`, int64 [n,4], for a shear to the right and then a counterclockwise rotation.

    Args:
      rotation: angles in radians, float64 [n].
      shear: angles in radians, float64 [n]; positive angles move the bottom to the right.
    """
    cosine, sine, tangent = np.cos(rotation), np.sin(rotation), np.tan(shear)
    rows = [cosine, sine, -sine - tangent * cosine, cosine - tangent * sine]
    return np.rint(PIXEL * np.stack(rows, axis=1)).astype(np.int64)


def _kernels(deviation: np.ndarray, reach: int) -> np.ndarray:
    """Return Gaussian kernels for `augment.blur`, int64 [n,2*reach+1], cut off at `reach` pixels.

    Args:
      deviation: standard deviations in pixels, float64 [n]; values below 0.001 do not blur.
      reach: at least three times the largest deviation.
    """
    place = np.arange(-reach, reach + 1)
    weights = np.exp(-((place / np.maximum(deviation, 1e-3)[:, None]) ** 2) / 2)
    kernel = np.rint(2**KERNEL_BITS * weights / weights.sum(axis=1, keepdims=True)).astype(np.int64)
    kernel[:, reach] += 2**KERNEL_BITS - kernel.sum(axis=1)  # rounding errors
    return kernel


def _colors(changes: np.ndarray) -> dict[str, np.ndarray]:
    """Return gains and offsets of channel * (contrast * (value - 128) + 128 + brightness), in 256ths.

    Contrast, brightness and a weaker gain per channel (von Kries) model the exposure, haze and light of other drives.

    Args:
      changes: float64 [5,n], changes of contrast, brightness, red, green and blue, from -strength to strength.
    """
    contrast, brightness = 1 + changes[0], 128 * changes[1]
    channel = 1 + changes[2:].T / 2  # [n,3]
    gain = np.rint(256 * channel * contrast[:, None])
    offset = np.rint(256 * channel * (128 - 128 * contrast + brightness)[:, None]) + 128  # 128: one half, for rounding
    return {"gain": gain.astype(np.int64), "offset": offset.astype(np.int64)}
