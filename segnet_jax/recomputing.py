"""BatchNorm's statistics over the whole training set, taken when the training is over: `--batch-norm recompute`.

The running averages are of the last few dozen batches, augmented, under parameters that were still changing. These are
of every training image as it is, under the parameters that are scored: the mean over batches, as large as those of the
training, of the batches' own means and variances. SegNet's authors did so before each test.

Source: SegNet-Tutorial, Scripts/compute_bn_statistics.py.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn

from segnet_jax import assembly
from segnet_jax.beginning import Beginning
from segnet_jax.config import Config
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.pipeline import host
from segnet_jax.pipeline.decoded import Records
from segnet_jax.pipeline.plan import Plan
from segnet_jax.training import statistics
from segnet_jax.training.calibration import calibrate
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
    """The statistics of a trained network over its training images, each once, as far as whole batches go.

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
    return calibrate(model, variables, batches, preprocessing, devices, lambda: on_images(batch_size))


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
        facts = {"step": step, "data": setting.train_split.fingerprint}
        start.room(partial(statistics.keep, start.folder / "checkpoints", sum_of_state, batch_stats, facts))
    return variables | {"batch_stats": replicate(batch_stats, devices)}
