"""Where batches come from: made on the host and sent, or made by the step from what lies on the devices."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from segnet_jax.data.input_pipeline import device_resident, tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit, in_words
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.data.input_pipeline.tf_data import BatchShard
from segnet_jax.distributed.data_parallel import AXIS, Devices, memory_of
from segnet_jax.distributed.rendezvous import in_words as processes_in_words
from segnet_jax.system.errors import UserError

logger = logging.getLogger(__name__)

MakeBatch = Callable[[dict[str, jax.Array], Any], dict[str, jax.Array]]
"""(inputs, store) -> batch, inside the step: from what the host sends and what stays on the devices."""


def as_sent(inputs: dict[str, jax.Array], _store: Any) -> dict[str, jax.Array]:
    """The batch where the host sends it whole."""
    return inputs


Place = Literal["host", "device", "shards"]
"""Where records lie while training: on the host, whole on each device, or cut over the devices."""

SHARE_OF_MEMORY = 1 / 4
"""Of a device's memory that records may take; the rest is the network's."""


@dataclass(frozen=True)
class Input:
    """One split on its way into the mapped step.

    Attributes:
      inputs: what the host sends for each call of the step: for training, given the calls' steps; for evaluation, given
        nothing.
      make_batch: inside the step, the batch from one step's inputs and the store.
      store: what stays on the devices.
      store_axis: of the devices in the store, or None where each device holds all of it.
    """

    inputs: Callable[..., Iterator[dict[str, np.ndarray]]]
    make_batch: MakeBatch
    store: Any = ()
    store_axis: int | None = None


def choose_placement(wanted: str, devices: Devices, *splits: CachedSplit) -> Place:
    """Chooses where the splits lie: on the devices where they fit, unless the host is wanted.

    Args:
      wanted: "auto", "host" or "device".
      devices: of the training.
      *splits: all that is to lie there.

    Raises:
      UserError: if the devices are wanted and the splits cannot lie there.
    """
    if wanted == "host":
        return "host"
    needed, room = sum(split.num_bytes for split in splits), int(SHARE_OF_MEMORY * memory_of(devices.local[0]))
    if all(split.images is not None for split in splits):
        if needed <= room:
            return "device"
        if needed <= room * devices.total:
            return "shards"
        why = f"the images take {in_words(needed)}, and {devices} may hold {in_words(room * devices.total)} of them"
    else:
        why = "the images are not kept decoded: the cache has no room for them; $SEGNET_JAX_CACHE names another folder"
    if wanted == "device":
        raise UserError(f"--input device is not possible: {why}; use --input host")
    return "host"


def agree_on_placement(place: Place, exchange: Callable[[str], list[str]]) -> Place:
    """Where the splits lie in all processes, which must compile one program: at the most modest place that any chooses.

    What each chooses by is its own: its disk for decoded images, its devices' memory.

    Args:
      place: that this process would choose.
      exchange: (its text) -> that of each process, in the order of their numbers.
    """
    places = exchange(place)
    agreed = max(places, key=("device", "shards", "host").index)
    if len(set(places)) > 1:
        who = processes_in_words([number for number, each in enumerate(places) if each == agreed])
        logger.info(
            f"input    {agreed} in all processes, for {who} cannot hold the images otherwise, on its devices or decoded"
        )
    return agreed


def training_input(
    place: Place, samples: CachedSplit, sampler: Sampler, shard: BatchShard, grad_accum_steps: int, devices: Devices
) -> Input:
    """The training split's batches, [L,K,A,B,...] for calls of K steps."""
    if place == "host":

        def inputs(calls: list[range]) -> Iterator[tf_data.Batch]:
            assert all(len(steps) == 1 for steps in calls), "one step a call where the host makes the batches"
            steps = range(calls[0].start, calls[-1].stop) if calls else range(0)
            for batch in tf_data.training_batches(samples, sampler, shard, grad_accum_steps, steps):
                yield {name: array[:, None] for name, array in batch.items()}

        return Input(inputs, as_sent)
    inputs = partial(device_resident.training_draws, sampler, shard, grad_accum_steps)
    return _on_devices(
        place, samples, shard, devices, inputs, partial(device_resident.training_batch, most=sampler.shift)
    )


def evaluation_input(place: Place, samples: CachedSplit, shard: BatchShard, devices: Devices) -> Input:
    """The scored split's batches, [L,B,...]."""
    if place == "host":
        return Input(partial(tf_data.evaluation_batches, samples, shard), as_sent)
    inputs = partial(device_resident.evaluation_draws, len(samples), shard)
    return _on_devices(place, samples, shard, devices, inputs, device_resident.evaluation_batch)


def _on_devices(
    place: Place, samples: CachedSplit, shard: BatchShard, devices: Devices, inputs: Callable, make_batch: Callable
) -> Input:
    if place == "shards":
        store = jax.device_put(device_resident.shards(samples, shard), devices.split)
        return Input(inputs, partial(make_batch, axis=AXIS), store, store_axis=0)
    return Input(inputs, make_batch, jax.device_put(device_resident.whole(samples), devices.replicated))


def calls_of(steps: range, most: int, steps_per_epoch: int) -> list[range]:
    """Cuts steps into calls of the mapped step: at most so many steps each, none across the end of an epoch."""
    calls = []
    start = steps.start
    while start < steps.stop:
        end_of_epoch = (start // steps_per_epoch + 1) * steps_per_epoch
        stop = min(start + most, end_of_epoch, steps.stop)
        calls.append(range(start, stop))
        start = stop
    return calls
