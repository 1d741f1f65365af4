"""Segment batches of images on several devices, each image at its own size."""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.data.images.fit import Fit, centered, overlap, resize_image, scaled_size
from segnet_jax.distributed.data_parallel import AheadOfTime, Devices, parallel_eval_step, replicate
from segnet_jax.inference.class_maps import bilinear_taps, classify, classify_on_host, classify_resized
from segnet_jax.inference.network import Network
from segnet_jax.inference.sampling import UNCERTAINTIES, sampled_maps
from segnet_jax.inference.tiles import blend, check_tiles, crops, cut
from segnet_jax.system.errors import UserError

_MAX_SIDE = 16_384  # pixels
_MAX_BATCH_PIXELS = 16_000_000  # pixels of a batch at the images' size
_ROUND = 64  # output sizes are rounded up to multiples of this, so that few programs are compiled


@dataclass(frozen=True)
class Prediction:
    """Prediction of one image.

    Attributes:
      class_ids: predicted classes, uint8 [H,W]; bits as in `nn.label_bits` if a pixel may have several.
      confidence: probability of the predicted class, uint8 [H,W], 0..255 for 0..1.
      milliseconds: device time per image of the batch, without compilation; for tiles, the time of the whole image,
        including host work.
      uncertainty: uncertainty maps of dropout samples by name, uint8 [H,W], 255 for the largest possible value; empty
        without samples.
      trained_ids: predicted classes at the training size, as scored by `evaluate`, uint8 [h,w]; None if the network's
        input had another size or no scores are needed.
    """

    class_ids: np.ndarray
    confidence: np.ndarray
    milliseconds: float
    uncertainty: dict[str, np.ndarray] = field(default_factory=dict)
    trained_ids: np.ndarray | None = None


Size = tuple[int, int] | Literal["trained", "native"]
"""Network input size of an image: the training size, the image's native size, or a height and width.

"trained" resizes as in training, with letterbox padding, except that "crop" does not crop: every pixel is segmented.
"""


@dataclass(frozen=True)
class Sizing:
    """The choice of the network input size of an image.

    Attributes:
      size: see `Size`.
      trained: height and width of training images.
      fit: how training images were resized to that size.
      multiple: total downsampling factor of the network.
      tile: height and width of tiles at native size; None for whole images.
      overlap: minimum overlap of neighboring tiles, pixels.
    """

    size: Size
    trained: tuple[int, int]
    fit: Fit
    multiple: int
    tile: tuple[int, int] | None
    overlap: int

    @classmethod
    def of(cls, config: Config, size: Size, tile: tuple[int, int], overlap: int) -> "Sizing":
        """Create from a run's config and the flags; `tile` (0, 0) means whole images.

        Raises:
          UserError: If the flags contradict each other or are out of range.
        """
        multiple = 2**config.num_stages
        if tile == (0, 0):
            tile = None
        elif size not in ("trained", "native"):
            raise UserError("--tile segments images at native size; remove --size")
        else:
            check_tiles(tile, overlap, multiple)
        if isinstance(size, tuple) and not all(1 <= side <= _MAX_SIDE for side in size):
            raise UserError(f"--size must be between 1 and {_MAX_SIDE}, got {' '.join(map(str, size))}")
        return cls(size, config.image_size, config.fit, multiple, tile, overlap)

    def scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width that an image is resized to, without padding."""
        if self.size == "native" or self.tile:
            return size
        return scaled_size(size, self.trained, self.fit) if self.size == "trained" else self.size

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of the network's input, including padding."""
        is_padded = self.size == "trained" and self.fit == "letterbox" and not self.tile
        return self.trained if is_padded else self.scaled_size(size)

    @property
    def is_as_evaluated(self) -> bool:
        """Whether the network's input is the same as in `evaluate`."""
        return self.size == "trained" and not self.tile and self.fit != "crop"

    def place(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns of the network's input that the image occupies."""
        rows, columns = map(overlap, self.scaled_size(size), self.input_size(size))
        return rows[1], columns[1]


class PreparedImage(NamedTuple):
    """An image, uint8 or uint16 [H,W,C], and the network input prepared from it, [h,w,C]."""

    image: np.ndarray
    input: np.ndarray


class Predictor:
    """A predictor that segments batches of images on all devices.

    Args:
      network: the network.
      devices: devices of this process.
      batch_size_per_device: images per device; smaller batches are padded to it, to avoid recompilation.
      sizing: choice of the network input size.
      num_samples: number of dropout samples whose mean is predicted; 0 for no sampling.
      scores: whether to return class ids also at the training size.
      temperature: divides the logits for the confidence; does not change the class ids.

    Attributes:
      batch_size: images per batch over all devices; 1 with tiles.
      multi_label: whether the class ids of predictions are bits, for several classes per pixel.
    """

    def __init__(
        self,
        network: Network,
        devices: Devices,
        batch_size_per_device: int,
        sizing: Sizing,
        num_samples: int = 0,
        scores: bool = False,
        temperature: float = 1.0,
    ):
        self._sizing, self._num_classes = sizing, len(network.classes)
        self.multi_label = network.classes.multi_label
        self._uncertainties = UNCERTAINTIES if num_samples else ()
        self._devices, self._shape = devices, (len(devices.local), batch_size_per_device)
        self._variables = replicate(network.variables, devices)

        def forward(variables, images, _store):
            if not num_samples:
                return (), network.forward(variables, images)
            return (), sampled_maps(partial(network.forward, variables), images, num_samples, self._num_classes)

        self._forward = AheadOfTime(parallel_eval_step(forward, devices), "the network", devices)
        classifying = {"num_classes": self._num_classes, "temperature": temperature, "multi_label": self.multi_label}
        self._classify_on_host = partial(classify_on_host, **classifying)
        resize = partial(classify_resized, **classifying)
        self._classify_resized = AheadOfTime(parallel_eval_step(resize, devices), "the resizing", devices)
        argmax = partial(classify, num_classes=self._num_classes, multi_label=self.multi_label)
        self._classify = AheadOfTime(parallel_eval_step(argmax, devices), "the argmax", devices)
        self._scores = scores and sizing.is_as_evaluated
        self._num_inputs = devices.total * batch_size_per_device
        self.batch_size = 1 if sizing.tile else self._num_inputs

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Resize and pad an image for the network; thread-safe."""
        size = image.shape[:2]
        scaled = resize_image(image, *self._sizing.scaled_size(size))
        return PreparedImage(image, centered(scaled, self._sizing.input_size(size), 0))

    def predict(self, batch: Sequence[PreparedImage]) -> list[Prediction]:
        """Segment at most `batch_size` images whose network inputs have one size."""
        if self._sizing.tile:
            return [self._predict_tiled(prepared.image) for prepared in batch]
        return self._predict_whole([each.input for each in batch], [each.image.shape[:2] for each in batch])

    def _predict_whole(self, inputs: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        """Segment inputs of one size, each at its image's own size.

        Logits are resized before the argmax; resized class ids would have jagged boundaries.
        """
        batch = self._send(_padded(inputs, self._num_inputs))
        height, width = (-(-max(lengths) // _ROUND) * _ROUND for lengths in zip(*sizes, strict=True))
        regions = map(self._sizing.place, sizes)
        taps = [
            (*bilinear_taps(h, rows, height), *bilinear_taps(w, columns, width))
            for (h, w), (rows, columns) in zip(sizes, regions, strict=True)
        ]
        taps = tuple(self._send(_padded(each, self._num_inputs)) for each in zip(*taps, strict=True))
        self._forward.program(self._variables, batch)
        started = time.perf_counter()
        _, logits = self._forward(self._variables, batch)
        jax.block_until_ready(logits)
        seconds = time.perf_counter() - started
        # Large images are resized one per device at a time, which also skips the padding of the batch.
        per_device = self._shape[1]
        at_once = per_device if self._num_inputs * height * width <= _MAX_BATCH_PIXELS else 1
        maps: list[list[np.ndarray]] = [[] for _ in sizes]
        for start in range(0, min(per_device, len(sizes)), at_once):
            part = jax.tree.map(lambda each, start=start: each[:, start : start + at_once], (logits, *taps))
            self._classify_resized.program((), part)
            started = time.perf_counter()
            _, found = self._classify_resized((), part)
            found = [np.asarray(each) for each in found]
            seconds += time.perf_counter() - started
            for i, (h, w) in enumerate(sizes):
                device, index = divmod(i, per_device)
                if start <= index < start + at_once:
                    maps[i] = [each[device, index - start, :h, :w].copy() for each in found]
        milliseconds = 1e3 * seconds / len(inputs)
        predictions = [self._prediction(each, milliseconds) for each in maps]
        if self._scores:
            _, ids = self._classify((), logits)
            ids = np.asarray(ids).reshape(-1, *inputs[0].shape[:2])
            predictions = [replace(each, trained_ids=ids[i]) for i, each in enumerate(predictions)]
        return predictions

    def _predict_tiled(self, image: np.ndarray) -> Prediction:
        """Segment one image by tiles at its native size."""
        started, before = time.perf_counter(), self._forward.seconds
        sizing = self._sizing
        rows, columns = (
            cut(length, side, sizing.overlap, sizing.multiple)
            for length, side in zip(image.shape[:2], sizing.tile, strict=True)
        )
        maps = [np.empty(image.shape[:2], np.uint8) for _ in ("ids", "confidence", *self._uncertainties)]
        for block in blend(self._logits(crops(image, rows, columns)), rows, columns):
            for whole, part in zip(maps, self._classify_on_host(block.values), strict=True):
                whole[block.rows, block.columns] = part
        seconds = time.perf_counter() - started - (self._forward.seconds - before)
        return self._prediction(maps, 1e3 * seconds)

    def _prediction(self, maps: Sequence[np.ndarray], milliseconds: float) -> Prediction:
        ids, confidence, *uncertainty = maps
        return Prediction(ids, confidence, milliseconds, dict(zip(self._uncertainties, uncertainty, strict=True)))

    def _logits(self, inputs: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the logits, float32 [h,w,C], of inputs of one size.

        The next batch is dispatched before the host waits for the previous one.
        """
        inputs, previous = iter(inputs), None
        while batch := list(itertools.islice(inputs, self._num_inputs)):
            dispatched = len(batch), self._forward(self._variables, self._send(_padded(batch, self._num_inputs)))
            if previous:
                yield from _receive(*previous)
            previous = dispatched
        if previous:
            yield from _receive(*previous)

    def _send(self, batch: np.ndarray) -> jax.Array:
        return jax.device_put(batch.reshape(*self._shape, *batch.shape[1:]), self._devices.split)


def _receive(count: int, outputs: tuple[tuple, jax.Array]) -> Iterator[np.ndarray]:
    """Wait for a batch and yield its first `count` logits."""
    logits = np.asarray(outputs[1])
    yield from logits.reshape(-1, *logits.shape[2:])[:count]


def _padded(arrays: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Stack arrays, repeating the last one up to `count`."""
    return np.stack([*arrays, *[arrays[-1]] * (count - len(arrays))])
