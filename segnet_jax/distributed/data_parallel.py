"""Data parallelism: which devices, what lies where, and the only `jax.pmap` of the project.

The state has no device axis and is replicated; a batch's leading axis is this process's devices. With several processes
every array here is local to its process, and `pmap` sums over all of them.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segnet_jax.system.errors import UserError

AXIS = "data"


@dataclass(frozen=True)
class Devices:
    """The devices of a training.

    Attributes:
      local: this process's.
      total: how many there are over all processes.
      deterministic: whether GPUs are to give the same bits at every start.
    """

    local: tuple[jax.Device, ...]
    total: int
    deterministic: bool = False

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


def choose_devices(devices: str, deterministic: bool = False) -> Devices:
    """Takes so many devices, or all.

    Args:
      devices: how many, or "all".
      deterministic: as `Devices`.

    Raises:
      UserError: when there are fewer, or when several processes would take only a part of theirs.
    """
    found = jax.devices()
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
        return Devices(tuple(jax.local_devices()), wanted, deterministic)
    return Devices(tuple(found[:wanted]), wanted, deterministic)


def parallel_train_step(step: Callable, devices: Devices, store_axis: int | None = None) -> Callable:
    """Maps (state, inputs, store) -> (state, measures) over the devices; the old state's memory is taken for the new.

    Args:
      step: as one device sees it.
      devices: to map over; `inputs` has them as its leading axis.
      store_axis: of the data that stay on the devices: 0 where they are cut over them, None where each has all.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, store_axis),
        out_axes=None,
        donate_argnums=0,
        devices=_pmap_devices(devices),
    )


def parallel_eval_step(step: Callable, devices: Devices, store_axis: int | None = None) -> Callable:
    """Maps (variables, inputs, store) -> (sums over all devices, outputs of each local device) over the devices."""
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, store_axis),
        out_axes=(None, 0),
        devices=_pmap_devices(devices),
    )


class AheadOfTime:
    """A mapped step that is compiled when its inputs' shapes are first met, which is told and timed in one process.

    There it is compiled with `gpu_options`; of several processes `XLA_FLAGS` must have them, for `pmap` takes none.

    Args:
      step: from `parallel_train_step` or `parallel_eval_step`.
      name: of what is compiled, for the line that tells it.
      devices: that it is mapped over.
      say: prints a line.
      store: the step's third argument, which stays on the devices.
    """

    def __init__(
        self, step: Callable, name: str, devices: Devices, say: Callable[[str], None] = lambda text: None, store=()
    ):
        self._step, self._name, self._say, self._store = step, name, say, store
        on_gpu = devices.local[0].platform == "gpu"
        self._options = gpu_options(devices.total > 1, devices.deterministic) if on_gpu else {}
        self._programs: dict[tuple, Callable] = {}
        self.seconds = 0.0

    def __call__(self, state, inputs):
        """Takes the step."""
        if jax.process_count() > 1:  # what is compiled ahead wants arrays over all processes, which `pmap` makes
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
            self._say(f"compiled {self._name} in {seconds:.1f} s")
            self.seconds += seconds
        return self._programs[shapes]


def gpu_options(are_several: bool, deterministic: bool) -> dict[str, bool]:
    """What XLA is told of programs for GPUs.

    Args:
      are_several: of several GPUs the gradients of the last layers are summed while the first layers' are still
        computed.
      deterministic: only operations are taken that sum in a fixed order, and of the algorithms of an operation the
        first, not the one that a trial has found the fastest, which may be another at every start.
    """
    overlap = {"xla_gpu_enable_latency_hiding_scheduler": True} if are_several else {}
    return overlap | ({"xla_gpu_deterministic_ops": True} if deterministic else {})


def with_options(xla_flags: str, options: dict[str, bool]) -> str:
    """The text of `XLA_FLAGS` with further options, but those that it has; the name of a file of flags stays alone."""
    if xla_flags.strip() and not xla_flags.lstrip().startswith("-"):
        return xla_flags
    there = {flag.partition("=")[0] for flag in xla_flags.split()}
    added = (f"--{name}={str(value).lower()}" for name, value in options.items() if f"--{name}" not in there)
    return " ".join([*xla_flags.split(), *added])


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
