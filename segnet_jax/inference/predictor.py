"""A trained network over many images and devices; each is labelled at its own size."""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.data.images.fit import Fit, centred, overlap, resize_image, scaled_size
from segnet_jax.distributed.data_parallel import AheadOfTime, Devices, parallel_eval_step, replicate
from segnet_jax.inference.class_maps import bilinear_taps, compare, compare_enlarged, compare_on_host
from segnet_jax.inference.network import Network
from segnet_jax.inference.sampling import MEASURES, sampled_maps
from segnet_jax.inference.tiles import blend, check_tiles, crops, cut
from segnet_jax.system.errors import UserError

_LARGEST = 16_384  # pixels of a side
_MOST_AT_ONCE = 16_000_000  # pixels of a batch at the size of its pictures
_ROUND = 64  # sizes are rounded up to multiples of this many pixels, so that few programs serve all of them


@dataclass(frozen=True)
class Prediction:
    """What the network makes of one image.

    Attributes:
      class_ids: uint8 [H,W].
      confidence: uint8 [H,W], the probability of that class, 0..255 for 0..1.
      milliseconds: that the devices took, as its share of the batch; of tiles, from cutting the first to blending the
        last, the host's work among it. Without compiling.
      uncertainty: of samples: name of the measure -> uint8 [H,W], 255 for its largest value; else empty.
      trained_ids: uint8 [h,w], the classes at the size that the network was trained at, as `evaluate` scores them;
        None where the network saw the image otherwise, or nothing is scored.
    """

    class_ids: np.ndarray
    confidence: np.ndarray
    milliseconds: float
    uncertainty: dict[str, np.ndarray] = field(default_factory=dict)
    trained_ids: np.ndarray | None = None


Size = tuple[int, int] | Literal["trained", "native"]
"""What the network sees of an image: brought to the size it was trained at, as it is, or at a height and width.

Brought there as in training, between the bars of a letterbox; but "crop" cuts nothing off, for all is to be labelled.
"""


@dataclass(frozen=True)
class Sizing:
    """At which size the network is applied.

    Attributes:
      size: as `Size`.
      trained: height and width that the network was trained at.
      fit: how images came to that.
      multiple: what its poolings shrink by.
      tile: height and width of tiles at the image's own size, or None for whole images.
      overlap: least pixels that two tiles share.
    """

    size: Size
    trained: tuple[int, int]
    fit: Fit
    multiple: int
    tile: tuple[int, int] | None
    overlap: int

    @classmethod
    def of(cls, config: Config, size: Size, tile: tuple[int, int], overlap: int) -> "Sizing":
        """From a run's config and what was asked for; a tile of 0 0 is none.

        Raises:
          UserError: if it cannot be so.
        """
        multiple = 2**config.num_stages
        if tile == (0, 0):
            tile = None
        elif size not in ("trained", "native"):
            raise UserError("--tile takes an image at its native size: leave --size out")
        else:
            check_tiles(tile, overlap, multiple)
        if isinstance(size, tuple) and not all(1 <= side <= _LARGEST for side in size):
            raise UserError(f"--size must be between 1 and {_LARGEST}, got {' '.join(map(str, size))}")
        return cls(size, config.image_size, config.fit, multiple, tile, overlap)

    def scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width to which an image of a size is brought for the network."""
        if self.size == "native" or self.tile:
            return size
        return scaled_size(size, self.trained, self.fit) if self.size == "trained" else self.size

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what the network is to see of it, bars included."""
        has_bars = self.size == "trained" and self.fit == "letterbox" and not self.tile
        return self.trained if has_bars else self.scaled_size(size)

    @property
    def is_as_evaluated(self) -> bool:
        """Whether the network sees an image exactly as in `evaluate`."""
        return self.size == "trained" and not self.tile and self.fit != "crop"

    def place(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """The rows and columns of that in which the image lies."""
        rows, columns = map(overlap, self.scaled_size(size), self.input_size(size))
        return rows[1], columns[1]


class Prepared(NamedTuple):
    """An image, uint8 [H,W,3], and what the network is to see of it, uint8 [h,w,3]."""

    image: np.ndarray
    input: np.ndarray


class Predictor:
    """Labels batches of images on all devices.

    Args:
      network: the network.
      devices: to compute on, of this process alone.
      batch_size_per_device: images a device takes at once; fewer are padded, so that no count compiles anew.
      sizing: at which size.
      num_samples: under dropout, whose mean is what is found; 0 for none.
      scores: whether class ids at the size of training are wanted too.

    Attributes:
      batch_size: images over all devices; one where a single one is cut into many tiles.
    """

    def __init__(
        self,
        network: Network,
        devices: Devices,
        batch_size_per_device: int,
        sizing: Sizing,
        num_samples: int = 0,
        scores: bool = False,
    ):
        self._sizing, self._num_classes = sizing, len(network.classes)
        self._measures = MEASURES if num_samples else ()
        self._devices, self._shape = devices, (len(devices.local), batch_size_per_device)
        self._variables = replicate(network.variables, devices)

        def forward(variables, images, _store):
            if not num_samples:
                return (), network.forward(variables, images)
            return (), sampled_maps(partial(network.forward, variables), images, num_samples, self._num_classes)

        self._forward = AheadOfTime(parallel_eval_step(forward, devices), "the network", devices)
        look = partial(compare_enlarged, num_classes=self._num_classes)
        self._look = AheadOfTime(parallel_eval_step(look, devices), "the enlargement", devices)
        classify = partial(compare, num_classes=self._num_classes)
        self._classify = AheadOfTime(parallel_eval_step(classify, devices), "the comparison", devices)
        self._scores = scores and sizing.is_as_evaluated
        self._num_inputs = devices.total * batch_size_per_device
        self.batch_size = 1 if sizing.tile else self._num_inputs

    def prepare(self, image: np.ndarray) -> Prepared:
        """Brings an image to what the network is to see of it; safe to be called from several threads."""
        size = image.shape[:2]
        scaled = resize_image(image, *self._sizing.scaled_size(size))
        return Prepared(image, centred(scaled, self._sizing.input_size(size), 0))

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        """Labels images, at most `batch_size`, all of which the network sees at one size."""
        if self._sizing.tile:
            return [self._predict_tiled(prepared.image) for prepared in batch]
        return self._predict_whole([each.input for each in batch], [each.image.shape[:2] for each in batch])

    def _predict_whole(self, inputs: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        """Labels inputs of one size, each at a size of its own.

        Logits are brought to the image's size before the classes are compared: class ids themselves could only be
        repeated, in steps as coarse as the network's pixels.
        """
        batch = self._send(_padded(inputs, self._num_inputs))
        height, width = (-(-max(lengths) // _ROUND) * _ROUND for lengths in zip(*sizes, strict=True))
        places = map(self._sizing.place, sizes)
        taps = [
            (*bilinear_taps(h, rows, height), *bilinear_taps(w, columns, width))
            for (h, w), (rows, columns) in zip(sizes, places, strict=True)
        ]
        taps = tuple(self._send(_padded(each, self._num_inputs)) for each in zip(*taps, strict=True))
        self._forward.program(self._variables, batch)
        started = time.perf_counter()
        _, logits = self._forward(self._variables, batch)
        jax.block_until_ready(logits)
        seconds = time.perf_counter() - started
        # Of large pictures one for each device at once; filled places of a batch then cost nothing.
        per_device = self._shape[1]
        at_once = per_device if self._num_inputs * height * width <= _MOST_AT_ONCE else 1
        maps: list[list[np.ndarray]] = [[] for _ in sizes]
        for start in range(0, min(per_device, len(sizes)), at_once):
            part = jax.tree.map(lambda each, start=start: each[:, start : start + at_once], (logits, *taps))
            self._look.program((), part)
            started = time.perf_counter()
            _, found = self._look((), part)
            found = [np.asarray(each) for each in found]
            seconds += time.perf_counter() - started
            for i, (h, w) in enumerate(sizes):
                device, place = divmod(i, per_device)
                if start <= place < start + at_once:
                    maps[i] = [each[device, place - start, :h, :w].copy() for each in found]
        each_ms = 1e3 * seconds / len(inputs)
        found = [self._prediction(each, each_ms) for each in maps]
        if self._scores:
            _, ids = self._classify((), logits)
            ids = np.asarray(ids).reshape(-1, *inputs[0].shape[:2])
            found = [replace(each, trained_ids=ids[i]) for i, each in enumerate(found)]
        return found

    def _predict_tiled(self, image: np.ndarray) -> Prediction:
        """Labels one image by tiles at its own size."""
        started, before = time.perf_counter(), self._forward.seconds
        sizing = self._sizing
        rows, columns = (
            cut(length, side, sizing.overlap, sizing.multiple)
            for length, side in zip(image.shape[:2], sizing.tile, strict=True)
        )
        blended = blend(self._logits(crops(image, rows, columns)), rows, columns)
        bands = (compare_on_host(band, self._num_classes) for band in blended)
        maps = [np.concatenate(each) for each in zip(*bands, strict=True)]
        seconds = time.perf_counter() - started - (self._forward.seconds - before)
        return self._prediction(maps, 1e3 * seconds)

    def _prediction(self, maps: Sequence[np.ndarray], milliseconds: float) -> Prediction:
        ids, confidence, *measured = maps
        return Prediction(ids, confidence, milliseconds, dict(zip(self._measures, measured, strict=True)))

    def _logits(self, inputs: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Logits, float32 [h,w,C], of images of one size, one after another.

        The devices have the next batch already while the host takes what they found in the last one.
        """
        inputs, before = iter(inputs), None
        while batch := list(itertools.islice(inputs, self._num_inputs)):
            sent = len(batch), self._forward(self._variables, self._send(_padded(batch, self._num_inputs)))
            if before:
                yield from _received(*before)
            before = sent
        if before:
            yield from _received(*before)

    def _send(self, batch: np.ndarray) -> jax.Array:
        return jax.device_put(batch.reshape(*self._shape, *batch.shape[1:]), self._devices.split)


def _received(count: int, found: tuple[tuple, jax.Array]) -> Iterator[np.ndarray]:
    """Waits for what the network makes of a batch, and gives its first `count` logits."""
    logits = np.asarray(found[1])
    yield from logits.reshape(-1, *logits.shape[2:])[:count]


def _padded(arrays: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Stacks arrays, the last one as often as is needed to make so many."""
    return np.stack([*arrays, *[arrays[-1]] * (count - len(arrays))])
