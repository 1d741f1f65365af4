"""BatchNorm's statistics over the whole training set, taken when the training is over: `--batch-norm recompute`.

The running averages are of the last few dozen batches, augmented, under parameters that were still changing. These are
of every training image as it is, under the parameters that are scored. `--batch-norm-variance` says which variance:

* "batches": mean over batches, as large as those of the training, of the batches' own means and variances. SegNet's
  authors did so before each test (SegNet-Tutorial, Scripts/compute_bn_statistics.py).
* "population": mean and variance over all pixels of the training set, as MATLAB takes them after training (MathWorks'
  page on batch normalization, an older text). It exceeds the former by the variance of the batches' means.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from flax import linen as nn

from segnet_jax import assembly
from segnet_jax.beginning import Beginning
from segnet_jax.config import Config
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.pipeline import host
from segnet_jax.pipeline.decoded import Records
from segnet_jax.pipeline.plan import Plan
from segnet_jax.training import statistics
from segnet_jax.training.calibration import CountedBatch, calibrate, population_statistics
from segnet_jax.training.parallel import Devices, prefetch, replicate
from segnet_jax.training.shelf import Which


def recompute(
    config: Config,
    global_batch_size: int,
    model: nn.Module,
    variables: dict[str, Any],
    records: Records,
    preprocessing: Preprocessing,
    devices: Devices,
    on_images: Callable[[int], None] = lambda number: None,
) -> dict[str, Any]:
    """The statistics of a trained network over its training images, each once.

    With `batch_norm_variance` "batches" the images that fill no whole batch are left out, as in the tutorial's script;
    with "population" they are passed in batches of their own.

    Args:
      config: the run's.
      global_batch_size: of its training.
      model: the network, BatchNorm apart.
      variables: its "params" and "batch_stats", replicated.
      records: the training images.
      preprocessing: what the network expects of an image.
      devices: to compute on. What is found does not depend on how many, where the run synchronised its statistics; else
        only the images left over do.
      on_images: called with the number of images after each batch.

    Returns:
      "batch_stats" on the host, to be replicated.
    """
    if config.sync_batch_norm:
        batch_size = global_batch_size // config.accumulate
        count = max(count for count in range(1, devices.total + 1) if batch_size % count == 0)
        if count < devices.total:
            devices = dataclasses.replace(devices, local=devices.local[:count], total=count)
            variables = replicate(variables, devices)
    else:
        batch_size = config.batch_size_per_device * devices.total
    # Shuffled, as in the tutorial's data layer: frames of one sequence are too alike to make the variance of a batch.
    plan = Plan(len(records), batch_size, config.seed, flip=False, shift=0)
    share = assembly.device_share(devices, batch_size // devices.total)
    batch_of = partial(host.training_batch, records, plan, share, 1)
    batches = prefetch(map(batch_of, range(plan.steps_per_epoch)), devices)
    if config.batch_norm_variance == "batches":
        return calibrate(model, variables, batches, preprocessing, devices, lambda: on_images(batch_size))
    num_images = batch_size if config.sync_batch_norm else config.batch_size_per_device
    whole = (CountedBatch(batch, num_images) for batch in batches)
    rest = _remaining_batches(records, plan, devices, config.batch_size_per_device)
    return population_statistics(model, variables, itertools.chain(whole, rest), preprocessing, devices, on_images)


def _remaining_batches(records: Records, plan: Plan, devices: Devices, batch_size: int) -> Iterator[CountedBatch]:
    """Yield the images of an epoch that fill no whole batch, at most `batch_size` at once, the same on each device."""
    remaining = plan.remainder(0)
    for first in range(0, len(remaining), batch_size):
        images = np.stack([records.read(int(index))[0] for index in remaining[first : first + batch_size]])
        repeated = np.broadcast_to(images, (len(devices.local), 1, *images.shape))
        (batch,) = prefetch([{"image": repeated}], devices)
        yield CountedBatch(batch, len(images), is_repeated=True)


def recompute_and_keep(start: Beginning, which: Which, step: int, variables: dict[str, Any]) -> dict[str, Any]:
    """Takes the statistics of a finished training's checkpoint and keeps them beside it; every process calls it.

    Args:
      start: the training.
      which: the best or the newest checkpoint.
      step: its.
      variables: its.

    Returns:
      The variables with them.
    """
    checkpoints, devices, setting = start.checkpoints, start.setting.devices, start.setting
    material = start.material
    network = (material.model, variables, material.records, material.preprocessing)
    batch_stats = recompute(start.config, setting.plan.global_batch_size, *network, devices)
    if devices.is_writer:
        sum_of_state = checkpoints.confirm(which, step)
        variance = start.config.batch_norm_variance
        facts = {"step": step, "data": setting.train_split.fingerprint, "variance": variance}
        start.room(partial(statistics.keep, start.folder / "checkpoints", sum_of_state, batch_stats, facts))
    return variables | {"batch_stats": replicate(batch_stats, devices)}
