"""Choose the devices and check that they can do what training needs, before anything long begins.

A GPU older than its cuDNN, or a cuDNN that JAX cannot use, otherwise shows itself minutes later and in a hundred lines.
"""

import importlib
import importlib.util
import logging
import os
import re
from importlib import metadata

import jax
import numpy as np
from jax import lax

from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.distributed.data_parallel import (
    Devices,
    choose_devices,
)
from segnet_jax.distributed.xla_options import gpu_options, with_options
from segnet_jax.system.compilation_cache import keep_compiled_programs
from segnet_jax.system.errors import UserError
from segnet_jax.training.precision import DTYPES, choose_precision

logger = logging.getLogger(__name__)

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin", "jaxlib.cuda")  # in the order in which JAX takes them
CUDNN_PACKAGES = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
OLDEST_CAPABILITY = (7, 5)  # that cuDNN serves from 9.11 on (pytorch/pytorch#162574): Turing; a V100 is 7.0
FIRST_WITHOUT_VOLTA = (9, 11)
BROKEN = (9, 10, 0)  # incompatible with what JAX was built with; JAX refuses it too, unless told not to check
CUDNN_PIN = "nvidia-cudnn-cu12==9.10.2.21"

# The numbers tried are -1, 0 and 1, so that all sums are exact in every format, TF32 and a TPU's bfloat16 passes too.
# What remains are cuDNN's Winograd and FFT algorithms, which round on their way.
TOLERANCE = 0.02  # of the largest number expected


def check_device(device: jax.Device, precision: str) -> None:
    """Refuses a device that cannot train at a precision.

    Raises:
      UserError: if cuDNN does not serve the GPU, or a convolution fails on it or gives wrong numbers.
    """
    if device.platform == "cpu":
        return  # XLA's own code, nothing to be missing: the trial would only make every start slower
    if device.platform == "gpu":
        check_cudnn(device, cudnn_version())
    check_convolution(device, precision)


def cudnn_version() -> tuple[int, ...] | None:
    """The cuDNN that JAX has loaded, else the one installed by pip, as (9, 10, 2); None where there is none."""
    for plugin in PLUGINS:
        try:
            number = importlib.import_module(f"{plugin}._versions").cudnn_get_version()
            return number // 10_000, number // 100 % 100, number % 100  # 91002 is 9.10.2, since cuDNN 9
        except (ImportError, RuntimeError):  # no such plugin; a plugin that finds no cuDNN
            pass
    for package in CUDNN_PACKAGES:
        try:
            return tuple(int(part) for part in metadata.version(package).split(".")[:3])
        except metadata.PackageNotFoundError:
            pass
    return None


def check_cudnn(device: jax.Device, version: tuple[int, ...] | None) -> None:
    """Refuses a cuDNN that does not serve the device; what is no NVIDIA GPU, or no known cuDNN, passes.

    Raises:
      UserError: for a GPU older than Turing with cuDNN 9.11 or newer, and for cuDNN 9.10.0 with any GPU.
    """
    capability = str(getattr(device, "compute_capability", ""))  # "7.0" on NVIDIA, "gfx90a" on AMD, absent on CPU
    if device.platform != "gpu" or version is None or not re.fullmatch(r"\d+\.\d+", capability):
        return
    gpu = f"{device.device_kind} (compute capability {capability})"
    found = f"cuDNN {'.'.join(map(str, version))}"
    if version[:3] == BROKEN:
        raise UserError(f'{found}, found for {gpu}, is broken: pip install "{CUDNN_PIN}"')
    if version >= FIRST_WITHOUT_VOLTA and tuple(map(int, capability.split("."))) < OLDEST_CAPABILITY:
        raise UserError(
            f"{gpu} is too old for {found}, which needs 7.5: in an environment without CUDA 13, "
            f'pip install -e ".[v100]", which takes {CUDNN_PIN}'
        )


def check_convolution(device: jax.Device, precision: str) -> None:
    """Tries the network's first convolution on a device, forwards and backwards, against numpy.

    Raises:
      UserError: if it fails there or gives wrong numbers.
    """
    rng = np.random.default_rng(0)
    shapes = (1, 8, 8, 3), (3, 3, 3, 64), (1, 8, 8, 64)  # full width: algorithms depend on the channels
    arrays = [rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes]
    try:
        sent = [jax.device_put(array.astype(DTYPES[precision]), device) for array in arrays]
        results = jax.device_get(jax.jit(convolve)(*sent))
    except RuntimeError as error:  # XLA's and "not implemented" are; any other exception is a fault of ours
        raise _failed(device, precision, first_line(error)) from error
    names = "result", "image gradient", "kernel gradient"
    for name, result, expected in zip(names, results, by_hand(*arrays), strict=True):
        difference = np.abs(result.astype(np.float32) - expected).max()
        if not difference <= TOLERANCE * np.abs(expected).max():  # NaN is not
            raise _failed(device, precision, f"its {name} is off by {difference:g}")


def convolve(image: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A 3x3 convolution [1,H,W,I], [3,3,I,O] -> [1,H,W,O] and, from its gradient, the image's and the kernel's."""

    def convolution(image, kernel):
        return lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    result, backwards = jax.vjp(convolution, image, kernel)
    return result, *backwards(gradient)


def by_hand(image: np.ndarray, kernel: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `convolve` should return, in numpy: one matrix product for each of the kernel's nine places."""
    height, width = image.shape[1:3]
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    result, padded_gradient, kernel_gradient = np.zeros_like(gradient), np.zeros_like(padded), np.zeros_like(kernel)
    for i, j in np.ndindex(3, 3):
        window = slice(None), slice(i, i + height), slice(j, j + width)
        result += padded[window] @ kernel[i, j]
        padded_gradient[window] += gradient @ kernel[i, j].T
        kernel_gradient[i, j] = np.tensordot(padded[window], gradient, axes=((0, 1, 2), (0, 1, 2)))
    return result, padded_gradient[:, 1:-1, 1:-1], kernel_gradient


def first_line(error: Exception) -> str:
    """The first line of an exception's text, cut at 200 characters; its class's name where it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _failed(device: jax.Device, precision: str, reason: str) -> UserError:
    others = " or ".join(name for name in ("float32", "float16") if name != precision)
    return UserError(
        f"a {precision} convolution fails on {device.device_kind} ({reason}): try --precision {others}, see whether "
        "another program fills the device's memory, or update driver and cuDNN"
    )


def device_shard(devices: Devices, batch_size_per_device: int) -> tf_data.BatchShard:
    """This process's part of each global batch."""
    return tf_data.BatchShard(devices.total, devices.first, len(devices.local), batch_size_per_device)


NVIDIA_DRIVER = "/proc/driver/nvidia/version"
"""Is there where Linux has a driver for an NVIDIA GPU, whether JAX can use it or not."""


def steps_per_dispatch(config: Config, devices: Devices) -> int:
    """Steps that the devices take at one bidding; one on the CPU, where more would only make the program larger."""
    return 1 if devices.local[0].platform == "cpu" else config.steps_per_dispatch


def start_devices(config: Config) -> tuple[Devices, str]:
    """Chooses devices and precision and tries them; to be called before anything else asks JAX for a device.

    Raises:
      UserError: if there are fewer devices than asked for, or they cannot train.
    """
    if config.fake_devices:
        flag = f"--xla_force_host_platform_device_count={config.fake_devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"  # read when the first device is asked for
        jax.config.update("jax_platforms", "cpu")
    # XLA reads them with the first device; see AheadOfTime
    if jax.distributed.is_initialized() and config.mapping == "pmap" and _expects_cuda():
        options = gpu_options(are_several=True, deterministic=config.deterministic)
        os.environ["XLA_FLAGS"] = with_options(os.environ.get("XLA_FLAGS", ""), options)
    keep_compiled_programs()
    devices = choose_devices(config.devices, config.deterministic, config.mapping)
    if devices.local[0].platform == "cpu" and not config.fake_devices and os.path.exists(NVIDIA_DRIVER):
        logger.warning('an NVIDIA GPU is present but jax sees only the CPU: pip install -U "jax[cuda12]"')
    precision = choose_precision(config.precision, devices.local[0])
    check_device(devices.local[0], precision)
    return devices, precision


def _expects_cuda() -> bool:
    """Whether JAX will choose NVIDIA GPUs, as far as can be told before it is asked for a device.

    Of a CPU, a TPU or another maker's GPU XLA never sees a flag that is for these, for it ends the process at an
    unknown one.
    """
    wanted = (jax.config.jax_platforms or "cuda").split(",")
    has_plugin = any(importlib.util.find_spec(plugin) for plugin in PLUGINS)
    return has_plugin and os.path.exists(NVIDIA_DRIVER) and not {"cuda", "gpu"}.isdisjoint(wanted)
