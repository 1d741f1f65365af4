"""Data parallelism: choice of devices, placement of arrays, and all uses of `jax.pmap` and `jax.shard_map`.

The state is replicated and has no device axis; the leading axis of a batch is this process's devices. With several
processes, every array here is local to its process, and the mapped steps sum over all processes. Both mappings run the
same program with bit-identical results; `shard_map` can also be lowered for devices that are not present.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from segnet_jax.distributed.local_arrays import OnLocalArrays
from segnet_jax.distributed.xla_options import gpu_options
from segnet_jax.system.errors import UserError

logger = logging.getLogger(__name__)

AXIS = "data"
Mapping = Literal["pmap", "shard_map"]
Axis = int | None  # device axis of an argument or result: 0 if sharded along its leading axis, None if replicated


@dataclass(frozen=True)
class Devices:
    """The devices of a training run.

    Attributes:
      local: this process's devices.
      total: number of devices over all processes.
      deterministic: whether results on GPUs must be bit-identical from run to run.
      mapping: transformation that maps steps over the devices.
    """

    local: tuple[jax.Device, ...]
    total: int
    deterministic: bool = False
    mapping: Mapping = "pmap"

    @property
    def first(self) -> int:
        """Index of this process's first device among all."""
        return jax.process_index() * len(self.local)

    @property
    def is_writer(self) -> bool:
        """Whether this is process 0, the only one that writes files and prints."""
        return jax.process_index() == 0

    @property
    def kinds(self) -> list[str]:
        """The kind of each device over all processes, assumed to be the same for all."""
        return [self.local[0].device_kind] * self.total

    def __str__(self) -> str:
        return f"{self.total} x {self.local[0].device_kind}"

    @property
    def replicated(self) -> NamedSharding:
        """Sharding with the whole array on each local device."""
        return NamedSharding(Mesh(np.array(self.local), (AXIS,)), PartitionSpec())

    @property
    def split(self) -> NamedSharding:
        """Sharding with one element of the leading axis on each local device."""
        return NamedSharding(Mesh(np.array(self.local), (AXIS,)), PartitionSpec(AXIS))


def choose_devices(devices: str, deterministic: bool = False, mapping: Mapping = "pmap") -> Devices:
    """Return the first `devices` devices, or all of them if it is "all".

    Raises:
      UserError: If JAX finds too few devices or none, or several processes would leave devices unused.
    """
    try:
        available = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS names a platform that is not available
        platforms = os.environ.get("JAX_PLATFORMS") or "not set"
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        message = f"JAX finds no device ({why}); JAX_PLATFORMS is {platforms}: unset it, or set it to cpu"
        raise UserError(message) from None
    count = len(available) if devices == "all" else int(devices)
    kind = available[0].platform
    if count > len(available):
        raise UserError(
            f"{count} devices requested, but only {len(available)} found ({kind}); use --devices {len(available)}"
            + (f", or --fake-devices {count} to try it out" if kind == "cpu" else "")
        )
    if jax.process_count() > 1:
        if count != len(available):
            raise UserError(
                f"{jax.process_count()} processes must use all their {len(available)} devices: use --devices all"
            )
        return Devices(tuple(jax.local_devices()), count, deterministic, mapping)
    return Devices(tuple(available[:count]), count, deterministic, mapping)


def parallel_train_step(step: Callable, devices: Devices, store_axis: int | None = None) -> Callable:
    """Map a training step over the devices; the old state is donated.

    Args:
      step: per-device function of state, inputs and store that returns state and metrics.
      devices: devices to map over, along the leading axis of `inputs`.
      store_axis: device axis of the store: 0 if it is sharded over the devices, None if it is replicated.
    """
    return _mapped(step, devices, (None, 0, store_axis), (None, None), donate_argnums=0)


def parallel_eval_step(step: Callable, devices: Devices, store_axis: int | None = None) -> Callable:
    """Map an evaluation step over the devices; it returns sums over all devices and each local device's outputs."""
    return _mapped(step, devices, (None, 0, store_axis), (None, 0), donate_argnums=())


def _mapped(step: Callable, devices: Devices, in_axes: Sequence[Axis], out_axes: Sequence[Axis], donate_argnums):
    """Return a step mapped over the devices; like a jitted function, it has a `lower` method."""
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
    jitted = sharded_on(mesh, step, in_axes, out_axes, donate_argnums)
    if jax.process_count() == 1:
        return jitted
    specs = (tuple(map(_spec, axes)) for axes in (in_axes, out_axes))
    return OnLocalArrays(jitted, Mesh(np.array(devices.local), (AXIS,)), mesh, *specs)


def sharded_on(mesh: Mesh, step: Callable, in_axes: Sequence[Axis], out_axes: Sequence[Axis], donate_argnums=()):
    """Jit the result of `sharded`, as `--mapping shard_map` does; the devices need not be present to compile."""
    return jax.jit(
        sharded(step, mesh, in_axes, out_axes),
        in_shardings=tuple(NamedSharding(mesh, _spec(axis)) for axis in in_axes),
        out_shardings=tuple(NamedSharding(mesh, _spec(axis)) for axis in out_axes),
        donate_argnums=donate_argnums,
    )


def sharded(
    step: Callable[..., tuple], mesh: Mesh | AbstractMesh, in_axes: Sequence[Axis], out_axes: Sequence[Axis]
) -> Callable[..., tuple]:
    """Map a step with `shard_map` and the semantics of `pmap`; call the result inside `jax.jit`.

    Args:
      step: per-device function that returns a tuple.
      mesh: mesh with the axis AXIS; its devices need not be present if the step is only lowered.
      in_axes: device axis of each argument.
      out_axes: device axis of each result.
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
        check_vma=False,  # otherwise gradients of replicated values are summed over the devices a second time
    )


def _spec(axis: Axis) -> PartitionSpec:
    return PartitionSpec(AXIS) if axis == 0 else PartitionSpec()


def _each(tree, index):
    return jax.tree.map(lambda array: array[index], tree)


def _all_devices(devices: Devices) -> list[jax.Device]:
    """Return the devices of all processes in the order of `pmap` (see `Devices.first`)."""
    if jax.process_count() == 1:
        return list(devices.local)
    return [device for process in range(jax.process_count()) for device in jax.local_devices(process)]


class AheadOfTime:
    """A mapped step that is compiled before its first call with new input shapes; compilation is timed and logged.

    Programs for GPUs are compiled with `gpu_options`. Exception: with several processes, `pmap` compiles the step
    itself, untimed and without these options, which must then be set in `XLA_FLAGS`.

    Args:
      step: mapped step from `parallel_train_step` or `parallel_eval_step`.
      name: name of the step, for the log.
      devices: devices that the step is mapped over.
      store: the step's third argument, resident on the devices.
    """

    def __init__(self, step: Callable, name: str, devices: Devices, store=()):
        self._step, self._name, self._store = step, name, store
        # With several processes, a compiled `pmap` takes global arrays, which only `pmap` itself constructs.
        self._is_compiled_ahead = jax.process_count() == 1 or devices.mapping == "shard_map"
        on_gpu = devices.local[0].platform == "gpu"
        self._options = gpu_options(devices.total > 1, devices.deterministic) if on_gpu else {}
        self._programs: dict[tuple, Callable] = {}
        self.seconds = 0.0

    def __call__(self, state, inputs):
        """Run the step."""
        if not self._is_compiled_ahead:
            return self._step(state, inputs, self._store)
        return self.program(state, inputs)(state, inputs, self._store)

    def program(self, state, inputs):
        """Return the compiled program for these input shapes; `seconds` accumulates the compilation time."""
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
    """Copy a tree to every local device.

    The copy goes through the host: `device_put` alone may alias its argument, which the first step would then delete
    by donating the state.
    """
    return jax.device_put(jax.device_get(tree), devices.replicated)


def prefetch(batches: Iterable, devices: Devices, ahead: int = 2) -> Iterator:
    """Transfer host batches to the devices, prefetching `ahead` batches."""
    queue = deque()
    for batch in batches:
        queue.append(jax.device_put(batch, devices.split))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue


def sum_over_processes(array: np.ndarray) -> np.ndarray:
    """Return the sum of an array of 32-bit integers over all processes; every process must call it."""
    if jax.process_count() == 1:
        return array
    from jax.experimental.multihost_utils import process_allgather

    return np.sum(process_allgather(array), axis=0)


def memory_of(device: jax.Device) -> int:
    """Return the memory limit of a device in bytes; on the CPU, the machine's memory divided by the local devices."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def peak_memory_of(device: jax.Device) -> int | None:
    """Return this process's peak memory use on a device in bytes, or None if the device does not report it."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
