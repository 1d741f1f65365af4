"""Compute precise batch-norm statistics over the training images after training, and store them.

Running averages cover the last few dozen augmented batches, while the parameters were still changing. Precise
statistics are computed from all training images without augmentation, with the parameters that are scored: each batch's
mean and variance are averaged over batches of training size. SegNet's authors did the same before each test.

The statistics are stored in `checkpoints/statistics/SUM`, a folder with a manifest, where SUM is the checksum of the
checkpoint's state. They apply only to that state, and the checkpoint is not modified.

Source: SegNet-Tutorial, Scripts/compute_bn_statistics.py.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax import lax
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.distributed.data_parallel import AXIS, AheadOfTime, Devices, parallel_eval_step, prefetch, replicate
from segnet_jax.nn.network_interface import frozen_layers
from segnet_jax.nn.preprocessing import Preprocessing, normalize
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import UserError
from segnet_jax.training.choose_devices import device_shard
from segnet_jax.training.manifest import Damaged, NewerFormat, finalize, verify
from segnet_jax.training.state import named_leaves, split_layers


def average_statistics(
    model: nn.Module,
    variables: dict,
    batches: Iterable[dict[str, jax.Array]],
    preprocessing: Preprocessing,
    devices: Devices,
    on_batch: Callable[[], None] = lambda: None,
) -> dict:
    """Return the batch-norm statistics averaged over batches.

    Args:
      model: the network. If its BatchNorm is not synchronized, each device's shard of a batch counts as a batch.
      variables: variables of the network, replicated; the running statistics of frozen layers are used unchanged.
      batches: one or more batches on the devices: "image" uint8 [L,A,B,H,W,3], of which only the first of A is used.
      preprocessing: preprocessing of the network's input.
      devices: devices to compute on.
      on_batch: called after each batch.
    """
    batch_statistics = _batch_statistics(model, preprocessing)

    def statistics(variables, batch, _store):
        result = batch_statistics(variables, batch)
        return (result if model.sync_axis else lax.pmean(result, AXIS)), ()

    step = AheadOfTime(parallel_eval_step(statistics, devices), "the batch-norm statistics", devices)
    total, count = None, 0
    for batch in batches:
        result = jax.device_get(step(variables, batch)[0])
        total = result if total is None else jax.tree.map(lambda a, b: a + b, total, result)
        count += 1
        on_batch()
    mean = jax.tree.map(lambda sum_: (sum_ / count).astype(sum_.dtype), total)
    return mean | split_layers(jax.device_get(variables["batch_stats"]), frozen_layers(model))[0]


class CountedBatch(NamedTuple):
    """A batch for `population_statistics`.

    Attributes:
      batch: batch on the devices, as for `average_statistics`.
      num_images: number of images over which each mean and variance is computed.
      is_repeated: whether all devices have the same images, which are then counted as one batch.
    """

    batch: dict[str, jax.Array]
    num_images: int
    is_repeated: bool = False


def population_statistics(
    model: nn.Module,
    variables: dict,
    batches: Iterable[CountedBatch],
    preprocessing: Preprocessing,
    devices: Devices,
    on_batch: Callable[[int], None] = lambda num_images: None,
) -> dict:
    """Return the mean and variance of each BatchNorm's input over all pixels of all batches.

    Each batch passes through the network as in training, normalized by its own statistics, which are then pooled. With
    n images in a batch, N in total, and batch mean m and variance v:
    mean M = sum(n m) / N, variance = sum(n v) / N + sum(n (m - M)^2) / N: the mean of the variances plus the variance
    of the means.

    The arguments are as in `average_statistics`, but `on_batch` is called with the number of images.

    Returns:
      "batch_stats", float32 on the host.
    """
    batch_statistics = _batch_statistics(model, preprocessing)

    def statistics(variables, batch, _store):
        return lax.all_gather(batch_statistics(variables, batch), AXIS), ()  # leaves [devices, channels]

    step = AheadOfTime(parallel_eval_step(statistics, devices), "the batch-norm statistics", devices)
    moments, counts = [], []
    for batch, num_images, is_repeated in batches:
        by_device = jax.device_get(step(variables, batch)[0])
        # Synchronized statistics are the same on every device and cover the whole batch.
        num_groups = 1 if model.sync_axis or is_repeated else devices.total
        for group in range(num_groups):
            moments.append(jax.tree.map(lambda leaf, group=group: leaf[group], by_device))
            counts.append(num_images)
        on_batch(num_images * num_groups)
    pooled = {layer: pool_moments(counts, [each[layer] for each in moments]) for layer in moments[0]}
    return pooled | split_layers(jax.device_get(variables["batch_stats"]), frozen_layers(model))[0]


def pool_moments(counts: list[int], moments: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Combine the means and variances of parts into those of the whole in float64 (law of total variance).

    Args:
      counts: size of each part.
      moments: {"mean": [C], "var": [C]} of each part, with biased variance.

    Returns:
      {"mean": float32 [C], "var": float32 [C]}, with biased variance.
    """
    weights = np.asarray(counts, np.float64) / np.sum(counts)
    means, variances = (np.stack([each[name] for each in moments]).astype(np.float64) for name in ("mean", "var"))
    mean = weights @ means
    return {"mean": mean.astype(np.float32), "var": (weights @ (variances + (means - mean) ** 2)).astype(np.float32)}


def _batch_statistics(model: nn.Module, preprocessing: Preprocessing) -> Callable[[dict, dict], dict]:
    """Return a function (variables, a device's batch) -> batch statistics, as in a training step."""
    model = model.clone(batch_norm_momentum=0.0)  # the updated running statistics are then the batch statistics

    def batch_statistics(variables, batch):
        image = normalize(batch["image"][0], preprocessing, model.dtype)
        _, updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return updated["batch_stats"]

    return batch_statistics


_FOLDER, _FILE = "statistics", "batch_stats.safetensors"


def save_statistics(checkpoints: pathlib.Path, state: str, batch_stats: dict[str, Any], facts: dict[str, Any]) -> None:
    """Save the statistics of the checkpoint with the checksum `state`, unless valid ones with the same facts exist.

    `facts` is JSON that describes how the statistics were computed.

    Raises:
      OSError: If the disk fails.
    """
    folder = _folder_of(checkpoints, state)
    if load_statistics(checkpoints, state, batch_stats) is not None and facts.items() <= verify(folder).items():
        return
    partial = folder.with_name(f".{folder.name}.partial")
    run = checkpoints.parent
    for path in (partial, folder):  # left by a killed process, or damaged
        untrusted_files.remove(run, path.relative_to(run).as_posix())
    untrusted_files.make_folder(run, partial.relative_to(run).as_posix())
    save_file(named_leaves(batch_stats), partial / _FILE)
    finalize(partial, folder, {"state": state, **facts})


def load_statistics(checkpoints: pathlib.Path, state: str, like: dict[str, Any]) -> dict[str, Any] | None:
    """Load the statistics saved for the checkpoint with the checksum `state`, in the shapes of `like`.

    Return None if they are missing or damaged.
    """
    folder = _folder_of(checkpoints, state)
    expected = named_leaves(like)
    try:
        if untrusted_files.status(checkpoints.parent, folder.relative_to(checkpoints.parent).as_posix()) is None:
            return None
        if verify(folder)["state"] != state:
            return None
        loaded = load(untrusted_files.read_bytes(folder, _FILE))
    except (Damaged, NewerFormat, OSError, UserError, KeyError, ValueError, SafetensorError):
        return None
    if {name: array.shape for name, array in loaded.items()} != {name: array.shape for name, array in expected.items()}:
        return None
    leaves = [loaded[name].astype(array.dtype) for name, array in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _folder_of(checkpoints: pathlib.Path, state: str) -> pathlib.Path:
    return checkpoints / _FOLDER / state[:16]


def precise_statistics(
    config: Config,
    global_batch_size: int,
    model: nn.Module,
    variables: dict[str, Any],
    samples: CachedSplit,
    preprocessing: Preprocessing,
    devices: Devices,
    on_images: Callable[[int], None] = lambda number: None,
) -> dict[str, Any]:
    """Compute the precise batch-norm statistics of a trained network over its training images, using each once.

    With `batch_norm_variance` "batches" the incomplete last batch is dropped, as in the tutorial's script; with
    "population" it is processed in separate batches. The number of devices does not affect the result if the run
    synchronized its statistics; otherwise it only affects which images are dropped. The network must not be folded, and
    the variables must be replicated. `on_images` is called with the number of images after each batch.

    Returns:
      "batch_stats" on the host, not replicated.
    """
    if config.sync_batch_norm:
        batch_size = global_batch_size // config.grad_accum_steps
        count = max(count for count in range(1, devices.total + 1) if batch_size % count == 0)
        if count < devices.total:
            devices = dataclasses.replace(devices, local=devices.local[:count], total=count)
            variables = replicate(variables, devices)
    else:
        batch_size = config.batch_size_per_device * devices.total
    # Shuffled, as in the tutorial's data layer: batches of similar consecutive frames would underestimate the variance.
    sampler = Sampler(len(samples), batch_size, config.seed, flip=False, shift=0)
    shard = device_shard(devices, batch_size // devices.total)
    batch_of = partial(tf_data.training_batch, samples, sampler, shard, 1)
    batches = prefetch(map(batch_of, range(sampler.steps_per_epoch)), devices)
    if config.batch_norm_variance == "batches":
        return average_statistics(model, variables, batches, preprocessing, devices, lambda: on_images(batch_size))
    num_images = batch_size if config.sync_batch_norm else config.batch_size_per_device
    whole = (CountedBatch(batch, num_images) for batch in batches)
    rest = _remaining_batches(samples, sampler, devices, config.batch_size_per_device)
    return population_statistics(model, variables, itertools.chain(whole, rest), preprocessing, devices, on_images)


def _remaining_batches(
    samples: CachedSplit, sampler: Sampler, devices: Devices, batch_size: int
) -> Iterator[CountedBatch]:
    """Yield an epoch's incomplete last batch in batches of at most `batch_size` images, the same on each device."""
    remaining = sampler.remainder(0)
    for first in range(0, len(remaining), batch_size):
        images = np.stack([samples.read(int(index))[0] for index in remaining[first : first + batch_size]])
        repeated = np.broadcast_to(images, (len(devices.local), 1, *images.shape))
        (batch,) = prefetch([{"image": repeated}], devices)
        yield CountedBatch(batch, len(images), is_repeated=True)
