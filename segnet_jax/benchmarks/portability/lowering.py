"""The steps lowered and serialised for platforms that are not here."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import export
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from segnet_jax.distributed.data_parallel import AXIS
from segnet_jax.training.state import TrainState

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

    `jax.export` takes no `pmap`. That is a `jit` of a `shard_map` itself, which is what is written out here, over a
    mesh of devices that need not exist; the sums over devices stay what they are, also over one.

    Args:
      step: as one device sees it.
      arguments: trees of arrays or shapes; of those that are split, the leading axis is the devices.
      split: of each argument, whether it is split over the devices, or the same on all.
      outputs_split: likewise of what the step returns.
      platform: of PLATFORMS.
      num_devices: that it is mapped over.
    """

    def of_a_device(*parts):
        taken = [_each(part, 0) if is_split else part for part, is_split in zip(parts, split, strict=True)]
        outputs = zip(step(*taken), outputs_split, strict=True)
        return tuple(_each(output, None) if is_split else output for output, is_split in outputs)

    mesh = AbstractMesh((num_devices,), (AXIS,), axis_types=(AxisType.Auto,))
    specs = tuple(_OVER_DEVICES if is_split else _SAME for is_split in split)
    mapped = jax.shard_map(
        of_a_device,
        mesh=mesh,
        in_specs=specs,
        out_specs=tuple(_OVER_DEVICES if is_split else _SAME for is_split in outputs_split),
        check_vma=False,  # else gradients of what is the same on all devices would be summed twice
    )
    if num_devices > 1:  # what lies where tells the program how many there are
        arguments = [_placed(part, NamedSharding(mesh, spec)) for part, spec in zip(arguments, specs, strict=True)]
    return lower(mapped, arguments, platform)


def lower(function: Callable, arguments: Sequence[Any], platform: str) -> export.Exported:
    """Lowers a pure function of trees for a platform, whatever device is here."""
    return export.export(jax.jit(function), platforms=[platform])(*arguments)


def _placed(tree, sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _each(tree, index):
    return jax.tree.map(lambda array: array[index], tree)


def by_name(state: TrainState) -> dict[str, Any]:
    """A state's arrays by their paths, such as "params/conv1_1/kernel": no class of ours is needed to call the file."""
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def with_named_state(step: Callable[..., tuple], state: TrainState) -> Callable[..., tuple]:
    """The step (state, ...) -> (state, measures) with both states as `by_name` gives them; `state` is one like them."""
    names, structure = list(by_name(state)), jax.tree.structure(state)

    def named(arrays, *rest):
        new, measures = step(jax.tree.unflatten(structure, [arrays[name] for name in names]), *rest)
        return by_name(new), measures

    return named
