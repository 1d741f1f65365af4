"""The device on which JAX and PyTorch are compared, and the settings that depend on whether it is a CPU or a GPU."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import torch

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import Devices
from segnet_jax.system.errors import UserError
from segnet_jax.training.choose_devices import start_devices

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Run = Callable[[int], object]
"""A function that runs this many steps and returns when their results are ready."""


@dataclass(frozen=True)
class Machine:
    """The device on which JAX and PyTorch are compared.

    Attributes:
      devices: the device, as JAX devices.
      precision: precision of activations, never "auto".
      compiled: `torch.compile`'s mode, or "off".
    """

    devices: Devices
    precision: str
    compiled: str

    @property
    def is_cpu(self) -> bool:
        """Whether the device is the CPU."""
        return self.devices.local[0].platform == "cpu"

    @property
    def is_exact(self) -> bool:
        """Whether the device computes in full float32; on a GPU both sides use TF32."""
        return self.is_cpu and self.precision == "float32"

    @property
    def torch_device(self) -> str:
        """PyTorch's name of the device."""
        return "cpu" if self.is_cpu else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of PyTorch's activations."""
        return DTYPES[self.precision]

    def __str__(self) -> str:
        where = f"{num_cores()} cores of an {processor()}"
        return f"{where}, no GPU" if self.is_cpu else f"{torch.cuda.get_device_name()} and {where}"

    def compile(self, function: Callable) -> Callable:
        """Compile a function with `torch.compile`, if configured."""
        return function if self.compiled == "off" else torch.compile(function, mode=self.compiled)

    def ours(self, function: Callable, *arguments) -> Run:
        """Return a function that runs a jitted function repeatedly on arrays on the device."""

        def run(steps: int) -> None:
            for _ in range(steps):
                result = function(*arguments)
                if self.is_cpu:  # there, calls that do not depend on each other might run at once
                    jax.block_until_ready(result)
            jax.block_until_ready(result)

        return run

    def theirs(self, function: Callable, *arguments) -> Run:
        """Return the same as `ours` for a PyTorch function."""

        def run(steps: int) -> None:
            for _ in range(steps):
                function(*arguments)
            self.synchronize()

        return run

    def synchronize(self) -> None:
        """Wait for PyTorch's pending work."""
        if not self.is_cpu:
            torch.cuda.synchronize()

    @contextlib.contextmanager
    def exactly(self) -> Iterator["Machine"]:
        """Yield the same device in full float32, without torch.compile."""
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        try:
            with jax.default_matmul_precision("highest"):
                yield dataclasses.replace(self, precision="float32", compiled="off")
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]


def start(precision: str, compiled: str | None) -> Machine:
    """Choose the device and configure PyTorch as its users would.

    Args:
      precision: precision of activations, or "auto".
      compiled: `torch.compile`'s mode or "off"; None selects by device.

    Raises:
      UserError: If JAX and PyTorch do not see the same kind of device.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU's memory is for both
    devices, precision = start_devices(Config(devices="1", precision=precision))
    platform = devices.local[0].platform
    if platform != ("gpu" if torch.cuda.is_available() else "cpu"):
        theirs = "a CUDA GPU" if torch.cuda.is_available() else "the CPU"
        raise UserError(
            f"JAX has {platform}, PyTorch {theirs}: install both for the same, or set JAX_PLATFORMS=cpu and "
            "CUDA_VISIBLE_DEVICES= to compare on the CPU"
        )
    torch.set_num_threads(num_cores())  # as many as XLA takes
    if platform == "gpu":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # TF32, which XLA takes too
    return Machine(devices, precision, compiled or ("off" if platform == "cpu" else "default"))


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Return the CPU's model name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0].replace("/", " ") if names else "unknown CPU"
