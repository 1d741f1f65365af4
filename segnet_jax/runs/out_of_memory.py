"""What to try where a device or the host has run out of memory."""

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
    """Tells what could fit where a device or the host runs out of memory; the batch is never changed in silence.

    Args:
      config: of what is computed.
      devices: that it is on.
      has_run: whether it is a training with a run folder, with which it would go on.
      flags: the dataclass of the command's flags: only what it has is advised.

    Raises:
      OutOfMemory: in the place of JAX's error.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = what_may_fit(config, devices.local[0], has_run, flags)
        raise OutOfMemory(
            f"out of memory on {devices}, which have {format_bytes(memory_of(devices.local[0]))} each, with "
            f"--batch-size-per-device {config.batch_size_per_device} at {config.image_size[0]}x{config.image_size[1]}; "
            + (f"try {advice}" if advice else "it takes a device with more")
        ) from error


def check_memory(config: Config, devices: Devices, *, has_run: bool = False, flags: type = Config) -> None:
    """Refuse, before anything is allocated, an image size of which one batch cannot fit into a device's memory.

    Only what every network holds at once is counted, a batch and the maps of its first convolution in 16 bits, so that
    nothing is refused that could run.

    Args:
      config: of what is to be computed.
      devices: that it is on.
      has_run: as `explain_out_of_memory`.
      flags: likewise.

    Raises:
      OutOfMemory: naming the sizes, and what may fit.
    """
    height, width = config.image_size
    channels = max(1, round(64 * config.width))
    needed = config.batch_size_per_device * height * width * (4 + 2 * channels)
    if needed > (memory := memory_of(devices.local[0])):
        advice = what_may_fit(config, devices.local[0], has_run, flags)
        raise OutOfMemory(
            f"{config.batch_size_per_device} images of {height}x{width} take at least {format_bytes(needed)}, and "
            f"{devices} have {format_bytes(memory)} each" + (f"; try {advice}" if advice else "")
        )


def what_may_fit(config: Config, device: jax.Device, has_run: bool, flags: type = Config) -> str:
    """The flags that ask for less memory, those first that change least; a run bears some only as a new one.

    Args:
      config: of what does not fit.
      device: that it does not fit on.
      has_run: as `explain_out_of_memory`.
      flags: likewise.
    """
    batch, names = config.batch_size_per_device, {item.name for item in dataclasses.fields(flags)}
    smaller = [f"--batch-size-per-device {batch // 2}"] * (batch > 1)
    if "grad_accum_steps" in names:
        divisors = (number for number in range(2, batch + 1) if batch % number == 0)  # of which the first is prime
        smaller = [
            f"--batch-size-per-device {batch // least} --grad-accum-steps {least * config.grad_accum_steps}"
            f"{' --override' * has_run}, the same global batch"
            for least in [*divisors][:1]
        ]
    host = (
        [f"--input host{' --steps-per-dispatch 1' * (config.steps_per_dispatch > 1)}"] if config.input != "host" else []
    )
    half = choose_precision("auto", device)  # of 16 bits, where the device computes with such
    is_wide = choose_precision(config.precision, device) == "float32" != half
    others = [f"--precision {half}"] * (is_wide and "precision" in names)
    others += ["a smaller --image-size"] * ("image_size" in names)
    other = [f"{'in a new --run ' * has_run}{' or '.join(others)}"] * bool(others)
    return ", or ".join([*smaller, *(host if "input" in names else []), *other])
