"""Data parallelism: which devices, what lies where, and the only `jax.pmap` and `jax.shard_map` of the project.

The state has no device axis and is replicated; a batch's leading axis is this process's devices. With several processes
every array here is local to its process, and the mapped steps sum over all of them. Both mappings run the same program
and give the same bits; `shard_map` can also be lowered for devices that are not here.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from segnet_jax.distributed.xla_options import gpu_options
from segnet_jax.system.errors import UserError

logger = logging.getLogger(__name__)

AXIS = "data"
Mapping = Literal["pmap", "shard_map"]
Axis = int | None  # of an argument or result: 0 where the devices are its leading axis, None where it is replicated


@dataclass(frozen=True)
class Devices:
    """The devices of a training.

    Attributes:
      local: this process's.
      total: how many there are over all processes.
      deterministic: whether GPUs are to give the same bits at every start.
      mapping: how steps are mapped over them.
    """

    local: tuple[jax.Device, ...]
    total: int
    deterministic: bool = False
    mapping: Mapping = "pmap"

    @property
    def first(self) -> int:
        """Place of this process's first device among all."""
        return jax.process_index() * len(self.local)

    @property
    def is_writer(self) -> bool:
        """Whether this process writes and prints: one of several does."""
        return jax.process_index() == 0

    @property
    def kinds(self) -> list[str]:
        """The kind of each device over all processes, taken to be alike."""
        return [self.local[0].device_kind] * self.total

    def __str__(self) -> str:
        return f"{self.total} x {self.local[0].device_kind}"

    @property
    def replicated(self) -> NamedSharding:
        """The whole array on each local device."""
        return NamedSharding(Mesh(np.array(self.local), (AXIS,)), PartitionSpec())

    @property
    def split(self) -> NamedSharding:
        """One element of the leading axis on each local device."""
        return NamedSharding(Mesh(np.array(self.local), (AXIS,)), PartitionSpec(AXIS))


def choose_devices(devices: str, deterministic: bool = False, mapping: Mapping = "pmap") -> Devices:
    """Takes so many devices, or all.

    Args:
      devices: how many, or "all".
      deterministic: as `Devices`.
      mapping: as `Devices`.

    Raises:
      UserError: when there are fewer, or when several processes would take only a part of theirs.
    """
    try:
        found = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS asks for what is not here
        asked = os.environ.get("JAX_PLATFORMS") or "none"
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"JAX finds no device ({why}); JAX_PLATFORMS is {asked}: unset it, or set it to cpu") from None
    wanted = len(found) if devices == "all" else int(devices)
    kind = found[0].platform
    if wanted > len(found):
        raise UserError(
            f"{wanted} devices asked, {len(found)} found ({kind}); use --devices {len(found)}"
            + (f", or --fake-devices {wanted} to try it out" if kind == "cpu" else "")
        )
    if jax.process_count() > 1:
        if wanted != len(found):
            raise UserError(f"{jax.process_count()} processes take all their {len(found)} devices: use --devices all")
        return Devices(tuple(jax.local_devices()), wanted, deterministic, mapping)
    return Devices(tuple(found[:wanted]), wanted, deterministic, mapping)


def parallel_train_step(step: Callable, devices: Devices, store_axis: int | None = None) -> Callable:
    """Maps (state, inputs, store) -> (state, measures) over the devices; the old state's memory is taken for the new.

    Args:
      step: as one device sees it.
      devices: to map over; `inputs` has them as its leading axis.
      store_axis: of the data that stay on the devices: 0 where they are cut over them, None where each has all.
    """
    return _mapped(step, devices, (None, 0, store_axis), (None, None), donate_argnums=0)


def parallel_eval_step(step: Callable, devices: Devices, store_axis: int | None = None) -> Callable:
    """Maps (variables, inputs, store) -> (sums over all devices, outputs of each local device) over the devices."""
    return _mapped(step, devices, (None, 0, store_axis), (None, 0), donate_argnums=())


def _mapped(step: Callable, devices: Devices, in_axes: Sequence[Axis], out_axes: Sequence[Axis], donate_argnums):
    """Return a step, as one device sees it, mapped over the devices; it has `lower`, as what `jax.jit` returns."""
    if devices.mapping == "pmap":
        return jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=tuple(in_axes),
            out_axes=tuple(out_axes),
            donate_argnums=donate_argnums,
            devices=_pmap_devices(devices),
        )
    mesh = Mesh(np.array(_all_devices(devices)), (AXIS,))
    jitted = jax.jit(
        sharded(step, mesh, in_axes, out_axes),
        in_shardings=tuple(NamedSharding(mesh, _spec(axis)) for axis in in_axes),
        out_shardings=tuple(NamedSharding(mesh, _spec(axis)) for axis in out_axes),
        donate_argnums=donate_argnums,
    )
    return jitted if jax.process_count() == 1 else _OfLocalArrays(jitted, devices, mesh, in_axes, out_axes)


def sharded(
    step: Callable[..., tuple], mesh: Mesh | AbstractMesh, in_axes: Sequence[Axis], out_axes: Sequence[Axis]
) -> Callable[..., tuple]:
    """Return a step mapped by `shard_map` as `pmap` would map it; to be called inside `jax.jit`.

    Args:
      step: as one device sees it; it returns a tuple.
      mesh: with the axis AXIS; its devices need not exist where the step is only lowered.
      in_axes: of each argument.
      out_axes: of each result.
    """

    def on_device(*arguments):
        arguments = [_each(x, 0) if axis == 0 else x for x, axis in zip(arguments, in_axes, strict=True)]
        results = zip(step(*arguments), out_axes, strict=True)
        return tuple(_each(x, None) if axis == 0 else x for x, axis in results)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=tuple(map(_spec, in_axes)),
        out_specs=tuple(map(_spec, out_axes)),
        check_vma=False,  # else the gradient of what is replicated would be summed over the devices a second time
    )


def _spec(axis: Axis) -> PartitionSpec:
    return PartitionSpec(AXIS) if axis == 0 else PartitionSpec()


def _each(tree, index):
    return jax.tree.map(lambda array: array[index], tree)


def _all_devices(devices: Devices) -> list[jax.Device]:
    """Return the devices of all processes, in the order of `pmap`, which is that of `Devices.first`."""
    if jax.process_count() == 1:
        return list(devices.local)
    return [device for process in range(jax.process_count()) for device in jax.local_devices(process)]


@dataclass(frozen=True)
class _OfLocalArrays:
    """A function of arrays over all processes that is called with those of this one, as `pmap` is; no number is copied.

    Attributes:
      function: jitted, lowered or compiled.
      devices: of this process.
      mesh: of all processes.
      in_axes: of each argument.
      out_axes: of each result.
    """

    function: Any
    devices: Devices
    mesh: Mesh
    in_axes: Sequence[Axis]
    out_axes: Sequence[Axis]

    def lower(self, *arguments):
        """Lower the function for arguments like these."""
        return replace(self, function=self.function.lower(*self._all(arguments)))

    def compile(self, compiler_options: dict | None = None):
        """Compile what is lowered."""
        return replace(self, function=self.function.compile(compiler_options))

    def __call__(self, *arguments):
        """Call the function."""
        results = zip(self.function(*self._all(arguments)), self.out_axes, strict=True)
        return tuple(jax.tree.map(lambda x, axis=axis: self._local_part(x, axis), tree) for tree, axis in results)

    def _all(self, arguments):
        pairs = zip(arguments, self.in_axes, strict=True)
        return [jax.tree.map(lambda x, axis=axis: self._over_all(x, axis), tree) for tree, axis in pairs]

    def _over_all(self, x, axis: Axis) -> jax.Array:
        x = jax.device_put(x, self.devices.split if axis == 0 else self.devices.replicated)
        shape = x.shape if axis is None else (self.devices.total, *x.shape[1:])
        return _rewrap(x, shape, NamedSharding(self.mesh, _spec(axis)))

    def _local_part(self, x: jax.Array, axis: Axis) -> jax.Array:
        shape = x.shape if axis is None else (len(self.devices.local), *x.shape[1:])
        return _rewrap(x, shape, self.devices.replicated if axis is None else self.devices.split)


def _rewrap(x: jax.Array, shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
    """Return an array of another shape and sharding that has the same memory on each device of this process."""
    on_device = {shard.device: shard.data for shard in x.addressable_shards}
    parts = [on_device[device] for device in sharding.addressable_devices_indices_map(shape)]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


class AheadOfTime:
    """A mapped step that is compiled when its inputs' shapes are first met, which is told and timed in one process.

    There it is compiled with `gpu_options`. So it is in several processes with `shard_map`; with `pmap`, which takes
    none there, `XLA_FLAGS` must have them.

    Args:
      step: from `parallel_train_step` or `parallel_eval_step`.
      name: of what is compiled, for the line that tells it.
      devices: that it is mapped over.
      store: the step's third argument, which stays on the devices.
    """

    def __init__(self, step: Callable, name: str, devices: Devices, store=()):
        self._step, self._name, self._store = step, name, store
        # What `pmap` is compiled to wants arrays over all processes, which `pmap` itself makes.
        self._is_compiled_ahead = jax.process_count() == 1 or devices.mapping == "shard_map"
        on_gpu = devices.local[0].platform == "gpu"
        self._options = gpu_options(devices.total > 1, devices.deterministic) if on_gpu else {}
        self._programs: dict[tuple, Callable] = {}
        self.seconds = 0.0

    def __call__(self, state, inputs):
        """Takes the step."""
        if not self._is_compiled_ahead:
            return self._step(state, inputs, self._store)
        return self.program(state, inputs)(state, inputs, self._store)

    def program(self, state, inputs):
        """The compiled program for inputs of these shapes; `seconds` tells how long all compiling has taken."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(inputs))
        if shapes not in self._programs:
            start = time.monotonic()
            lowered = self._step.lower(state, inputs, self._store)
            self._programs[shapes] = lowered.compile(compiler_options=self._options)
            seconds = time.monotonic() - start
            logger.info(f"compiled {self._name} in {seconds:.1f} s")
            self.seconds += seconds
        return self._programs[shapes]


def _pmap_devices(devices: Devices) -> list[jax.Device] | None:
    return list(devices.local) if jax.process_count() == 1 else None  # None: all devices of all processes


def replicate(tree, devices: Devices):
    """Copies a tree to every local device.

    It goes through the host: `device_put` alone may share the memory of the array it is given, and the first step,
    which takes the state's memory over, would then delete that array under its owner.
    """
    return jax.device_put(jax.device_get(tree), devices.replicated)


def prefetch(batches: Iterable, devices: Devices, ahead: int = 2) -> Iterator:
    """Sends host batches to the devices a few steps before they are wanted."""
    sent = deque()
    for batch in batches:
        sent.append(jax.device_put(batch, devices.split))
        if len(sent) > ahead:
            yield sent.popleft()
    yield from sent


def sum_over_processes(array: np.ndarray) -> np.ndarray:
    """The sum over all processes, in each of them, of integers that fit into 32 bits; every process calls it."""
    if jax.process_count() == 1:
        return array
    from jax.experimental.multihost_utils import process_allgather

    return np.sum(process_allgather(array), axis=0)


def memory_of(device: jax.Device) -> int:
    """Bytes that programs may use on a device: as it says itself, or its part of the machine's where it is the CPU."""
    told = (device.memory_stats() or {}).get("bytes_limit")
    return told or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def peak_memory_of(device: jax.Device) -> int | None:
    """Bytes that a device has had in use at most since this process began; None where it does not count them."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
