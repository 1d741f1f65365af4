"""Precise batch-norm statistics: computed over the training images after training, and stored.

The running averages cover the last few dozen batches, augmented, under parameters that were still changing. Precise
statistics are of every training image as it is, under the parameters that are scored: the mean over batches, as large
as those of the training, of the batches' own means and variances. SegNet's authors did so before each test.

They are kept in `checkpoints/statistics/SUM`, a sealed folder named by the sum of the checkpoint's state: they are
found for that state alone, and the checkpoint itself, from which training resumes bit for bit, stays as it was saved.

Source: SegNet-Tutorial, Scripts/compute_bn_statistics.py.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import lax
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.distributed.data_parallel import AXIS, AheadOfTime, Devices, parallel_eval_step, prefetch, replicate
from segnet_jax.nn.preprocessing import Preprocessing, normalize
from segnet_jax.training.devices import device_shard
from segnet_jax.training.manifest import Damaged, NewerFormat, seal, verify


def calibrate(
    model: nn.Module,
    variables: dict,
    batches: Iterable[dict[str, jax.Array]],
    preprocessing: Preprocessing,
    devices: Devices,
    on_batch: Callable[[], None] = lambda: None,
) -> dict:
    """Returns the running statistics that the given batches have under the given parameters.

    Args:
      model: the network. Where its BatchNorm is not synchronised, the batches are those of single devices.
      variables: the network's, replicated; its running statistics do not matter.
      batches: at least one, on the devices: "image" uint8 [L,A,B,H,W,3], of which the first of A is used.
      preprocessing: what the network expects of an image.
      devices: to compute on.
      on_batch: called after each batch.
    """
    forgetful = model.clone(batch_norm_momentum=0.0)  # whose new running statistics are the batch's own

    def statistics(variables, batch, _store):
        image = normalize(batch["image"][0], preprocessing, model.dtype)
        _, updated = forgetful.apply(variables, image, train=True, mutable=["batch_stats"])
        found = updated["batch_stats"]
        return (found if model.sync_axis else lax.pmean(found, AXIS)), ()

    step = AheadOfTime(parallel_eval_step(statistics, devices), "the calibration", devices)
    total, count = None, 0
    for batch in batches:
        found = jax.device_get(step(variables, batch)[0])
        total = found if total is None else jax.tree.map(lambda a, b: a + b, total, found)
        count += 1
        on_batch()
    return jax.tree.map(lambda sum_: (sum_ / count).astype(sum_.dtype), total)


_FOLDER, _FILE = "statistics", "batch_stats.safetensors"


def keep(checkpoints: pathlib.Path, state: str, batch_stats: dict[str, Any], facts: dict[str, Any]) -> None:
    """Keeps statistics; the same are not kept twice.

    Args:
      checkpoints: the folder of the run's checkpoints.
      state: the sum of the checkpoint's state.
      batch_stats: of its network.
      facts: how they were taken, as JSON.

    Raises:
      OSError: from the disk.
    """
    folder = _place(checkpoints, state)
    if kept(checkpoints, state, batch_stats) is not None:
        return
    partial = folder.with_name(f".{folder.name}.partial")
    for path in (partial, folder):  # what a kill has left, or what is damaged
        shutil.rmtree(path, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_named(batch_stats), partial / _FILE)
    seal(partial, folder, {"state": state, **facts})


def kept(checkpoints: pathlib.Path, state: str, like: dict[str, Any]) -> dict[str, Any] | None:
    """The statistics that are kept for a checkpoint; None where there are none that are whole.

    Args:
      checkpoints: the folder of the run's checkpoints.
      state: the sum of the checkpoint's state.
      like: statistics of the same shapes.
    """
    folder = _place(checkpoints, state)
    wanted = _named(like)
    try:
        if verify(folder)["state"] != state:
            return None
        found = load_file(folder / _FILE)
    except (Damaged, NewerFormat, OSError, KeyError, ValueError, SafetensorError):
        return None
    if {name: array.shape for name, array in found.items()} != {name: array.shape for name, array in wanted.items()}:
        return None
    leaves = [found[name].astype(array.dtype) for name, array in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _place(checkpoints: pathlib.Path, state: str) -> pathlib.Path:
    return checkpoints / _FOLDER / state[:16]


def _named(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """The leaves in their order, each by its path."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in paths}


def recompute(
    config: Config,
    global_batch_size: int,
    model: nn.Module,
    variables: dict[str, Any],
    samples: CachedSplit,
    preprocessing: Preprocessing,
    devices: Devices,
    on_images: Callable[[int], None] = lambda number: None,
) -> dict[str, Any]:
    """The statistics of a trained network over its training images, each once, as far as whole batches go.

    Args:
      config: the run's.
      global_batch_size: of its training.
      model: the network, BatchNorm apart.
      variables: its "params" and "batch_stats", replicated.
      samples: the training images.
      preprocessing: what the network expects of an image.
      devices: to compute on. What is found does not depend on how many, where the run synchronised its statistics; else
        only the images left over do.
      on_images: called with the number of images after each batch.

    Returns:
      "batch_stats" on the host, to be replicated.
    """
    if config.sync_batch_norm:
        batch_size = global_batch_size // config.grad_accum_steps
        count = max(count for count in range(1, devices.total + 1) if batch_size % count == 0)
        if count < devices.total:
            devices = dataclasses.replace(devices, local=devices.local[:count], total=count)
            variables = replicate(variables, devices)
    else:
        batch_size = config.batch_size_per_device * devices.total
    # Shuffled, as in the tutorial's data layer: frames of one sequence are too alike to make the variance of a batch.
    sampler = Sampler(len(samples), batch_size, config.seed, flip=False, shift=0)
    shard = device_shard(devices, batch_size // devices.total)
    batch_of = partial(tf_data.training_batch, samples, sampler, shard, 1)
    batches = prefetch(map(batch_of, range(sampler.steps_per_epoch)), devices)
    return calibrate(model, variables, batches, preprocessing, devices, lambda: on_images(batch_size))
