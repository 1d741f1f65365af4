"""Lower steps for platforms that may be absent on this machine."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import export
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from segnet_jax.distributed.data_parallel import AXIS, sharded
from segnet_jax.training.state import TrainState, named_leaves

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_OVER_DEVICES, _SAME = PartitionSpec(AXIS), PartitionSpec()


def lower_mapped(
    step: Callable[..., tuple],
    arguments: Sequence[Any],
    *,
    split: Sequence[bool],
    outputs_split: Sequence[bool],
    platform: str,
    num_devices: int = 1,
) -> export.Exported:
    """Lower a step mapped over devices, as in training, without needing the devices.

    Uses `shard_map` over an abstract mesh, as `--mapping shard_map` does, because `jax.export` does not support `pmap`;
    the results are bit-identical. The program contains collectives even for a single device.

    Args:
      step: the step of one device.
      arguments: trees of arrays or shapes; the leading axis of split arguments is the device axis.
      split: for each argument, whether it is split over the devices or replicated.
      outputs_split: the same for the outputs.
      platform: one of PLATFORMS.
      num_devices: number of devices to map over.
    """
    mesh = AbstractMesh((num_devices,), (AXIS,), axis_types=(AxisType.Auto,))
    in_axes, out_axes = ([0 if is_split else None for is_split in each] for each in (split, outputs_split))
    mapped = sharded(step, mesh, in_axes, out_axes)
    if num_devices > 1:  # the program's number of devices comes from its arguments' shardings
        specs = [_OVER_DEVICES if is_split else _SAME for is_split in split]
        arguments = [_placed(part, NamedSharding(mesh, spec)) for part, spec in zip(arguments, specs, strict=True)]
    return lower(mapped, arguments, platform)


def lower(function: Callable, arguments: Sequence[Any], platform: str) -> export.Exported:
    """Lower a pure function for a platform, which may be absent."""
    return export.export(jax.jit(function), platforms=[platform])(*arguments)


def _placed(tree, sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def with_named_state(step: Callable[..., tuple], state: TrainState) -> Callable[..., tuple]:
    """Return a step whose states are dicts from `named_leaves` instead of pytrees like `state`."""
    names, structure = list(named_leaves(state)), jax.tree.structure(state)

    def named(arrays, *rest):
        new, metrics = step(jax.tree.unflatten(structure, [arrays[name] for name in names]), *rest)
        return named_leaves(new), metrics

    return named
