"""The host's input path: tf.data assembles each step's batch by the plan and keeps a few ready.

A batch is {"image": uint8 [L,A,B,H,W,3], "label": uint8 [L,A,B,H,W]}: L local devices, A accumulated batches (absent in
evaluation), B images a device. Each process makes its own devices' share of the global batch and nothing else.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.datasets.decode import resize
from segnet_jax.datasets.records import Split
from segnet_jax.errors import UserError
from segnet_jax.pipeline.augment import augment
from segnet_jax.pipeline.plan import Plan

Batch = dict[str, np.ndarray]
Read = Callable[[int], tuple[np.ndarray, np.ndarray]]

MEMORY_LIMIT = 8 * 2**30
"""Bytes up to which a decoded split is kept in memory; a larger one is decoded anew for each use."""


@dataclass(frozen=True)
class Share:
    """Which part of each global batch this process makes.

    Attributes:
      num_devices: over all processes.
      first_device: this process's first, among all.
      num_local_devices: this process's.
      batch_size_per_device: images a device takes at once.
    """

    num_devices: int
    first_device: int
    num_local_devices: int
    batch_size_per_device: int

    def places(self, accumulate: int = 1) -> np.ndarray:
        """Places in the global batch, int [L,A,B]; accumulated batch a holds the a-th part of all devices' images."""
        shape = (accumulate, self.num_devices, self.batch_size_per_device)
        places = np.arange(np.prod(shape)).reshape(shape).swapaxes(0, 1)
        return places[self.first_device : self.first_device + self.num_local_devices]


def decoded(split: Split, height: int, width: int, on_record: Callable[[], None] = lambda: None) -> Read:
    """Returns a reader of resized records that decodes the split once, where memory allows.

    Args:
      split: what to read.
      height: rows of what is returned.
      width: columns of what is returned.
      on_record: called after each record that is decoded ahead.

    Returns:
      index -> (image uint8 [height,width,3], label uint8 [height,width]); not to be written to.
    """

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        return resize(*split.read(index), height, width)

    if len(split) * height * width * 4 > MEMORY_LIMIT:
        return read

    images = np.empty((len(split), height, width, 3), np.uint8)
    labels = np.empty((len(split), height, width), np.uint8)

    def keep(index: int) -> None:
        images[index], labels[index] = read(index)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(keep, range(len(split))):
            on_record()
    images.flags.writeable = labels.flags.writeable = False
    return lambda index: (images[index], labels[index])


def training_batches(read: Read, plan: Plan, share: Share, accumulate: int, steps: range) -> Iterator[Batch]:
    """Yields the augmented batches of the given steps, counted from 0 over all epochs."""
    places = share.places(accumulate)

    def make(step: int) -> tuple[np.ndarray, np.ndarray]:
        draws = plan.batch(int(step))[places.ravel()]
        pairs = [
            augment(*read(int(index)), flip, shift_y, shift_x)
            for index, flip, shift_y, shift_x in zip(draws.index, draws.flip, draws.shift_y, draws.shift_x, strict=True)
        ]
        images, labels = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
        return images.reshape(*places.shape, *images.shape[1:]), labels.reshape(*places.shape, *labels.shape[1:])

    return _prefetched(make, steps)


def num_evaluation_steps(num_samples: int, share: Share) -> int:
    """Batches it takes to see every record once; the last one is padded."""
    return -(-num_samples // (share.num_devices * share.batch_size_per_device))


def evaluation_indices(num_samples: int, share: Share, step: int) -> np.ndarray:
    """Which record stands where in an evaluation batch, int [L,B]; -1 is padding."""
    indices = step * share.num_devices * share.batch_size_per_device + share.places()[:, 0]
    return np.where(indices < num_samples, indices, -1)


def evaluation_batches(read: Read, num_samples: int, share: Share) -> Iterator[Batch]:
    """Yields every record once, in order; the last batch is padded with black images whose labels are VOID."""
    height, width, _ = read(0)[0].shape

    def make(step: int) -> tuple[np.ndarray, np.ndarray]:
        indices = evaluation_indices(num_samples, share, int(step))
        images = np.zeros((*indices.shape, height, width, 3), np.uint8)
        labels = np.full((*indices.shape, height, width), VOID, np.uint8)
        for place in zip(*np.nonzero(indices >= 0), strict=True):
            images[place], labels[place] = read(int(indices[place]))
        return images, labels

    return _prefetched(make, range(num_evaluation_steps(num_samples, share)))


def _prefetched(make: Callable[[int], tuple[np.ndarray, np.ndarray]], steps: range) -> Iterator[Batch]:
    """Runs `make` for each step in tf.data's threads, a few steps ahead and in order.

    Raises:
      UserError: that of `make`, which TensorFlow would bury in an error of its own.
    """
    import tensorflow as tf  # not at the top: predicting and exporting need no TensorFlow

    tf.config.set_visible_devices([], "GPU")  # the GPU belongs to JAX
    faults = []

    def guarded(step: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            return make(step)
        except UserError as fault:
            faults.append(fault)
            raise

    options = tf.data.Options()
    options.autotune.enabled = False  # there is nothing to tune, and its thread holds up the end by half a minute
    batches = (
        tf.data.Dataset.range(steps.start, steps.stop)
        .map(
            lambda step: tf.numpy_function(guarded, [step], (tf.uint8, tf.uint8), stateful=False),
            num_parallel_calls=2,  # Python holds its lock for most of it: more threads would only queue up
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
