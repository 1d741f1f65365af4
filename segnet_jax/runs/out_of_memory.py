"""Out-of-memory errors that suggest flags."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import Devices, memory_of
from segnet_jax.system.disk import format_bytes
from segnet_jax.system.errors import OutOfMemory, is_out_of_memory
from segnet_jax.training.precision import choose_precision


@contextlib.contextmanager
def explain_out_of_memory(
    config: Config, devices: Devices, *, has_run: bool = False, flags: type = Config
) -> Iterator[None]:
    """Replace an out-of-memory error with one that suggests flags. The batch size is never changed automatically.

    Args:
      config: config of the computation.
      devices: devices of the computation.
      has_run: whether the suggested flags are for resuming an existing run.
      flags: dataclass of the command's flags; no others are suggested.

    Raises:
      OutOfMemory: If the device or the host runs out of memory.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = memory_advice(config, devices.local[0], has_run, flags)
        raise OutOfMemory(
            f"out of memory on {devices}, which have {format_bytes(memory_of(devices.local[0]))} each, with "
            f"--batch-size-per-device {config.batch_size_per_device} at {config.image_size[0]}x{config.image_size[1]}; "
            + (f"try {advice}" if advice else "use a device with more memory")
        ) from error


def check_memory(config: Config, devices: Devices, *, has_run: bool = False, flags: type = Config) -> None:
    """Check, before anything is allocated, that a batch can fit in a device's memory.

    The estimate is a lower bound (a batch and the output of the first convolution in 16 bits), so that no config that
    could run is rejected. The arguments are those of `explain_out_of_memory`.

    Raises:
      OutOfMemory: If the batch cannot fit.
    """
    height, width = config.image_size
    channels = max(1, round(64 * config.width))
    needed = config.batch_size_per_device * height * width * (4 + 2 * channels)
    if needed > (memory := memory_of(devices.local[0])):
        advice = memory_advice(config, devices.local[0], has_run, flags)
        raise OutOfMemory(
            f"{config.batch_size_per_device} images of {height}x{width} take at least {format_bytes(needed)}, but "
            f"{devices} have {format_bytes(memory)} each" + (f"; try {advice}" if advice else "")
        )


def memory_advice(config: Config, device: jax.Device, has_run: bool, flags: type = Config) -> str:
    """Return suggested flags that reduce memory use, least intrusive first, as text."""
    batch, names = config.batch_size_per_device, {item.name for item in dataclasses.fields(flags)}
    smaller = [f"--batch-size-per-device {batch // 2}"] * (batch > 1)
    if "grad_accum_steps" in names:
        divisors = (number for number in range(2, batch + 1) if batch % number == 0)
        smaller = [
            f"--batch-size-per-device {batch // divisor} --grad-accum-steps {divisor * config.grad_accum_steps}"
            f"{' --override' * has_run}, the same global batch"
            for divisor in [*divisors][:1]
        ]
    host = (
        [f"--input host{' --steps-per-dispatch 1' * (config.steps_per_dispatch > 1)}"] if config.input != "host" else []
    )
    half = choose_precision("auto", device)  # 16 bits if the device supports it, otherwise float32
    can_halve = choose_precision(config.precision, device) == "float32" != half
    others = [f"--precision {half}"] * (can_halve and "precision" in names)
    others += ["a smaller --image-size"] * ("image_size" in names)
    other = [f"{'in a new --run ' * has_run}{' or '.join(others)}"] * bool(others)
    return ", or ".join([*smaller, *(host if "input" in names else []), *other])
