"""The host input path: tf.data assembles and prefetches each step's batch.

A batch is {"image": uint8 or uint16 [L,A,B,H,W,C], "label": uint8 [L,A,B,H,W]}: L local devices, A accumulated batches
(absent in evaluation), B images per device. Each process makes only its shard of the global batch. It prefetches one
batch per thread (one thread per CPU, at most 16) and two more.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import loky
import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.input_pipeline.augment import ON_HOST, augment
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.system.errors import UserError

Batch = dict[str, np.ndarray]

_MAX_THREADS = 16
"""Maximum number of threads; each stores a batch, and 192 would take 51 GB at 1024x2048 with 8 devices of 4 images."""


@dataclass(frozen=True)
class BatchShard:
    """The shard of each global batch that this process makes.

    Attributes:
      num_devices: number of devices of all processes.
      first_device: global index of this process's first device.
      num_local_devices: number of devices of this process.
      batch_size_per_device: number of images per device in one forward pass.
    """

    num_devices: int
    first_device: int
    num_local_devices: int
    batch_size_per_device: int

    def places(self, grad_accum_steps: int = 1) -> np.ndarray:
        """Return indices into the global batch, int [L,A,B]; accumulated batches are consecutive parts of it."""
        shape = (grad_accum_steps, self.num_devices, self.batch_size_per_device)
        places = np.arange(np.prod(shape)).reshape(shape).swapaxes(0, 1)
        return places[self.first_device : self.first_device + self.num_local_devices]


def training_batch(
    samples: CachedSplit, sampler: Sampler, shard: BatchShard, grad_accum_steps: int, step: int
) -> Batch:
    """Make the augmented batch of one step, counted from 0 over all epochs."""
    places = shard.places(grad_accum_steps)
    images, labels = _empty(places.shape, samples, sampler.train_size(samples.image_size))
    draws = {name: array.astype(np.int32) for name, array in sampler.batch(step).drawn().items()}
    for place, i in np.ndenumerate(places):
        params = {name: array[i] for name, array in draws.items()}
        own, other = (samples.read(int(params[name])) if name in params else None for name in ("index", "partner"))
        images[place], labels[place] = augment(*own, params, ON_HOST, other, sampler.crop, sampler.fill)
    return {"image": images, "label": labels}


def training_batches(
    samples: CachedSplit, sampler: Sampler, shard: BatchShard, grad_accum_steps: int, steps: range
) -> Iterator[Batch]:
    """Yield the batches of the given steps; tf.data's threads prefetch up to 18."""
    return _prefetched(partial(training_batch, samples, sampler, shard, grad_accum_steps), steps, samples)


def num_evaluation_steps(num_samples: int, shard: BatchShard) -> int:
    """Return the number of batches that cover every sample once; the last one is padded."""
    return -(-num_samples // (shard.num_devices * shard.batch_size_per_device))


def evaluation_indices(num_samples: int, shard: BatchShard, step: int) -> np.ndarray:
    """Return the sample indices of an evaluation batch, int [L,B]; -1 is padding."""
    indices = step * shard.num_devices * shard.batch_size_per_device + shard.places()[:, 0]
    return np.where(indices < num_samples, indices, -1)


def evaluation_batch(samples: CachedSplit, shard: BatchShard, step: int) -> Batch:
    """Make an evaluation batch: samples in order, padded with black images whose labels are VOID."""
    indices = evaluation_indices(len(samples), shard, step)
    images, labels = _empty(indices.shape, samples)
    for place, index in np.ndenumerate(indices):
        images[place], labels[place] = samples.read(int(index)) if index >= 0 else (0, VOID)
    return {"image": images, "label": labels}


def evaluation_batches(samples: CachedSplit, shard: BatchShard) -> Iterator[Batch]:
    """Yield batches of every sample once, in order; tf.data's threads prefetch up to 18."""
    steps = range(num_evaluation_steps(len(samples), shard))
    return _prefetched(partial(evaluation_batch, samples, shard), steps, samples)


def _empty(
    places: tuple[int, ...], samples: CachedSplit, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    shape, pixels = (*places, *(size or samples.image_size)), samples.pixels
    return np.empty((*shape, pixels.channels), pixels.dtype), np.empty(shape, np.uint8)


def _prefetched(make: Callable[[int], Batch], steps: range, samples: CachedSplit) -> Iterator[Batch]:
    """Yield `make(step)` for each step in order, prefetched by tf.data's threads.

    Raises:
      UserError: If `make` raises it; TensorFlow would wrap it in its own error.
    """
    import tensorflow as tf  # not at the top: prediction and export need no TensorFlow

    tf.config.set_visible_devices([], "GPU")  # the GPU belongs to JAX
    faults = []

    def guarded(step: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            batch = make(int(step))
            return batch["image"], batch["label"]
        except UserError as fault:
            faults.append(fault)
            raise

    types = tf.as_dtype(samples.pixels.dtype), tf.uint8
    options = tf.data.Options()
    options.autotune.enabled = False  # nothing to tune, and its thread delays exit by half a minute
    batches = (
        tf.data.Dataset.range(steps.start, steps.stop)
        .map(
            lambda step: tf.numpy_function(guarded, [step], types, stateful=False),
            num_parallel_calls=min(loky.cpu_count(), _MAX_THREADS),  # loky respects container limits
            deterministic=True,
        )
        .prefetch(2)
        .with_options(options)
    )
    try:
        for image, label in batches.as_numpy_iterator():
            yield {"image": image, "label": label}
    except tf.errors.OpError:
        if faults:
            raise faults[0] from None
        raise
