"""The steps lowered and serialised for platforms that are not here."""

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
    """Lowers a step that is mapped over devices, as training maps it, without any of them.

    It is lowered by the `shard_map` of `--mapping shard_map`, over a mesh of devices that need not exist; `jax.export`
    takes no `pmap`, which gives the same bits. The sums over devices stay what they are, also over one.

    Args:
      step: as one device sees it.
      arguments: trees of arrays or shapes; of those that are split, the leading axis is the devices.
      split: of each argument, whether it is split over the devices, or the same on all.
      outputs_split: likewise of what the step returns.
      platform: of PLATFORMS.
      num_devices: that it is mapped over.
    """
    mesh = AbstractMesh((num_devices,), (AXIS,), axis_types=(AxisType.Auto,))
    in_axes, out_axes = ([0 if is_split else None for is_split in each] for each in (split, outputs_split))
    mapped = sharded(step, mesh, in_axes, out_axes)
    if num_devices > 1:  # what lies where tells the program how many there are
        specs = [_OVER_DEVICES if is_split else _SAME for is_split in split]
        arguments = [_placed(part, NamedSharding(mesh, spec)) for part, spec in zip(arguments, specs, strict=True)]
    return lower(mapped, arguments, platform)


def lower(function: Callable, arguments: Sequence[Any], platform: str) -> export.Exported:
    """Lowers a pure function of trees for a platform, whatever device is here."""
    return export.export(jax.jit(function), platforms=[platform])(*arguments)


def _placed(tree, sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def with_named_state(step: Callable[..., tuple], state: TrainState) -> Callable[..., tuple]:
    """Return the step with both states as `named_leaves` gives them, so that a file needs none of our classes.

    Args:
      step: (state, ...) -> (state, metrics).
      state: an example of the state.
    """
    names, structure = list(named_leaves(state)), jax.tree.structure(state)

    def named(arrays, *rest):
        new, measures = step(jax.tree.unflatten(structure, [arrays[name] for name in names]), *rest)
        return named_leaves(new), measures

    return named
