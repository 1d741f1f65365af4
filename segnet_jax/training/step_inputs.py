"""Build the input of the mapped steps: batches made on the host, or in the step from a split in device memory."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from segnet_jax.data.input_pipeline import device_resident, tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.data.input_pipeline.tf_data import BatchShard
from segnet_jax.distributed.data_parallel import AXIS, Devices, memory_of
from segnet_jax.distributed.rendezvous import list_processes
from segnet_jax.system.disk import format_bytes
from segnet_jax.system.errors import UserError
from segnet_jax.training.custom_augmentation import CustomAugmentation

logger = logging.getLogger(__name__)

MakeBatch = Callable[[dict[str, jax.Array], Any], dict[str, jax.Array]]
"""Function that makes the batch inside the step from `inputs`, sent by the host, and the device-resident `store`."""


def as_sent(inputs: dict[str, jax.Array], _store: Any) -> dict[str, jax.Array]:
    """Return the inputs unchanged, as whole batches from the host."""
    return inputs


Placement = Literal["host", "device", "shards"]
"""Where samples reside during training: on the host, replicated on each device, or sharded over the devices."""

MEMORY_FRACTION = 1 / 4
"""Maximum fraction of a device's memory for samples."""


@dataclass(frozen=True)
class Input:
    """The input of a mapped step for one split.

    Attributes:
      inputs: function that yields the host's data for each dispatch. In training it takes the dispatches' steps, in
        evaluation no arguments.
      make_batch: function that makes the batch inside the step from one step's inputs and the store.
      store: arrays resident on the devices.
      store_axis: device axis of the store; None if it is replicated.
    """

    inputs: Callable[..., Iterator[dict[str, np.ndarray]]]
    make_batch: MakeBatch
    store: Any = ()
    store_axis: int | None = None


def choose_placement(requested: str, devices: Devices, *splits: CachedSplit) -> Placement:
    """Choose where the splits reside: on the devices if they all fit, unless "host" is requested.

    Raises:
      UserError: If "device" is requested, but the splits do not fit.
    """
    if requested == "host":
        return "host"
    needed, limit = sum(split.num_bytes for split in splits), int(MEMORY_FRACTION * memory_of(devices.local[0]))
    if all(split.images is not None for split in splits):
        if needed <= limit:
            return "device"
        if needed <= limit * devices.total:
            return "shards"
        total = format_bytes(limit * devices.total)
        why = f"the images take {format_bytes(needed)}, but the limit on {devices} is {total}"
    else:
        why = "the decoded images do not fit in the cache; set $SEGNET_JAX_CACHE to a folder with more space"
    if requested == "device":
        raise UserError(f"--input device is not possible: {why}; use --input host")
    return "host"


def agree_on_placement(placement: Placement, all_gather: Callable[[str], list[str]]) -> Placement:
    """Return the least demanding placement that any process chose, because all must compile the same program.

    Processes may choose differently because of their disk space (for decoded images) or device memory. `all_gather`
    returns the texts of all processes in order.
    """
    choices = all_gather(placement)
    agreed = max(choices, key=("device", "shards", "host").index)
    if len(set(choices)) > 1:
        limiting = list_processes([number for number, each in enumerate(choices) if each == agreed])
        logger.info(f"input    {agreed} in all processes, because of the memory or the cache of {limiting}")
    return agreed


def training_input(
    place: Placement,
    samples: CachedSplit,
    sampler: Sampler,
    shard: BatchShard,
    grad_accum_steps: int,
    devices: Devices,
    own: CustomAugmentation | None = None,
) -> Input:
    """Return the input of the training split: batches [L,K,A,B,...] for dispatches of K steps.

    The custom augmentation `own` is applied inside the step, wherever the samples reside.
    """
    after = (lambda make_batch: make_batch) if own is None else partial(_followed_by, own)
    if place == "host":

        def inputs(calls: list[range]) -> Iterator[tf_data.Batch]:
            assert all(len(steps) == 1 for steps in calls), "batches from the host need one step per dispatch"
            steps = range(calls[0].start, calls[-1].stop) if calls else range(0)
            batches = tf_data.training_batches(samples, sampler, shard, grad_accum_steps, steps)
            for step, batch in zip(steps, batches, strict=True):
                if own is not None:
                    batch["key"] = sampler.batch(step).keys(shard.places(grad_accum_steps))
                yield {name: array[:, None] for name, array in batch.items()}

        return Input(inputs, after(as_sent))
    inputs = partial(device_resident.training_draws, sampler, shard, grad_accum_steps)
    make_batch = partial(device_resident.training_batch, most=sampler.shift, crop=sampler.crop, fill=sampler.fill)
    source = _on_devices(place, samples, shard, devices, inputs, make_batch)
    return dataclasses.replace(source, make_batch=after(source.make_batch))


def _followed_by(own: CustomAugmentation, make_batch: MakeBatch) -> MakeBatch:
    """Return a function that makes a batch and applies the custom augmentation to it."""

    def make(inputs: dict[str, jax.Array], store: Any) -> dict[str, jax.Array]:
        batch = make_batch(inputs, store)
        return own(batch["image"], batch["label"], inputs["key"])

    return make


def evaluation_input(place: Placement, samples: CachedSplit, shard: BatchShard, devices: Devices) -> Input:
    """Return the input of a split for evaluation: batches [L,B,...]."""
    if place == "host":
        return Input(partial(tf_data.evaluation_batches, samples, shard), as_sent)
    inputs = partial(device_resident.evaluation_draws, len(samples), shard)
    return _on_devices(place, samples, shard, devices, inputs, device_resident.evaluation_batch)


def _on_devices(
    place: Placement, samples: CachedSplit, shard: BatchShard, devices: Devices, inputs: Callable, make_batch: Callable
) -> Input:
    if place == "shards":
        store = jax.device_put(device_resident.shards(samples, shard), devices.split)
        return Input(inputs, partial(make_batch, axis=AXIS), store, store_axis=0)
    return Input(inputs, make_batch, jax.device_put(device_resident.whole(samples), devices.replicated))


def split_into_dispatches(steps: range, steps_per_dispatch: int, steps_per_epoch: int) -> list[range]:
    """Split steps into dispatches of at most `steps_per_dispatch` steps that do not cross the end of an epoch.

    Dispatches end at multiples of `steps_per_dispatch` within the epoch, wherever the first one starts.
    """
    dispatches = []
    start = steps.start
    while start < steps.stop:
        epoch, in_epoch = divmod(start, steps_per_epoch)
        end = min((in_epoch // steps_per_dispatch + 1) * steps_per_dispatch, steps_per_epoch)
        stop = min(epoch * steps_per_epoch + end, steps.stop)
        dispatches.append(range(start, stop))
        start = stop
    return dispatches
