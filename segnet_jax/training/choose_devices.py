"""Choose the devices and check that they can train, before anything slow starts.

A GPU too old for its cuDNN, or a cuDNN that JAX cannot use, would otherwise fail minutes later with a long traceback.
"""

import importlib
import importlib.util
import logging
import math
import os
import re
from importlib import metadata

import jax
import numpy as np
from jax import lax

from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.distributed.data_parallel import Devices, choose_devices
from segnet_jax.distributed.xla_options import gpu_options, with_options
from segnet_jax.system.compilation_cache import keep_compiled_programs
from segnet_jax.system.errors import UserError
from segnet_jax.training.precision import DTYPES, choose_precision

logger = logging.getLogger(__name__)

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin", "jaxlib.cuda")  # in JAX's order of preference
CUDNN_PACKAGES = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
OLDEST_CAPABILITY = (7, 5)  # Turing, the oldest since cuDNN 9.11 (pytorch/pytorch#162574); a V100 is 7.0
FIRST_WITHOUT_VOLTA = (9, 11)
BROKEN = (9, 10, 0)  # incompatible with JAX's builds; JAX also rejects it unless its check is disabled
CUDNN_PIN = "nvidia-cudnn-cu12==9.10.2.21"

# The test values are -1, 0 and 1, so that all sums are exact in every format, including TF32 and a TPU's bfloat16
# passes. Only cuDNN's Winograd and FFT algorithms round.
TOLERANCE = 0.02  # of the largest expected value


def check_device(device: jax.Device, precision: str) -> None:
    """Check that a device can train at a precision.

    Raises:
      UserError: If cuDNN does not support the GPU, or a convolution fails on it or gives wrong results.
    """
    if device.platform == "cpu":
        return  # XLA needs no library there; the check would only slow down every start
    if device.platform == "gpu":
        check_cudnn(device, cudnn_version())
    check_convolution(device, precision)


def cudnn_version() -> tuple[int, ...] | None:
    """Return the version of the cuDNN that JAX loaded or that is installed, such as (9, 10, 2), or None."""
    for plugin in PLUGINS:
        try:
            number = importlib.import_module(f"{plugin}._versions").cudnn_get_version()
            return number // 10_000, number // 100 % 100, number % 100  # 91002 is 9.10.2, since cuDNN 9
        except (ImportError, RuntimeError):  # plugin not installed; plugin without cuDNN
            pass
    for package in CUDNN_PACKAGES:
        try:
            return tuple(int(part) for part in metadata.version(package).split(".")[:3])
        except metadata.PackageNotFoundError:
            pass
    return None


def check_cudnn(device: jax.Device, version: tuple[int, ...] | None) -> None:
    """Check that cuDNN supports an NVIDIA GPU; other devices and unknown cuDNN versions pass.

    Raises:
      UserError: If the GPU is older than Turing and cuDNN is 9.11 or newer, or cuDNN is 9.10.0.
    """
    capability = str(getattr(device, "compute_capability", ""))  # "7.0" on NVIDIA, "gfx90a" on AMD, absent on CPU
    if device.platform != "gpu" or version is None or not re.fullmatch(r"\d+\.\d+", capability):
        return
    gpu = f"{device.device_kind} (compute capability {capability})"
    cudnn = f"cuDNN {'.'.join(map(str, version))}"
    if version[:3] == BROKEN:
        raise UserError(f'{cudnn}, found for {gpu}, is broken: run pip install "{CUDNN_PIN}"')
    if version >= FIRST_WITHOUT_VOLTA and tuple(map(int, capability.split("."))) < OLDEST_CAPABILITY:
        raise UserError(
            f"{gpu} is too old for {cudnn}, which needs 7.5: in an environment without CUDA 13, run "
            f'pip install -e ".[v100]", which installs {CUDNN_PIN}'
        )


def check_convolution(device: jax.Device, precision: str) -> None:
    """Compare the network's first convolution on a device, forward and backward, with numpy.

    Raises:
      UserError: If the convolution fails or gives wrong results.
    """
    rng = np.random.default_rng(0)
    shapes = (1, 8, 8, 3), (3, 3, 3, 64), (1, 8, 8, 64)  # full width, because the algorithms depend on the channels
    arrays = [rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes]
    try:
        arguments = [jax.device_put(array.astype(DTYPES[precision]), device) for array in arrays]
        results = jax.device_get(jax.jit(convolve)(*arguments))
    except RuntimeError as error:  # XLA's errors and NotImplementedError; any other exception is a bug
        raise _convolution_failed(device, precision, first_line(error)) from error
    names = "output", "image gradient", "kernel gradient"
    for name, result, expected in zip(names, results, convolve_in_numpy(*arrays), strict=True):
        difference = np.abs(result.astype(np.float32) - expected).max()
        if not difference <= TOLERANCE * np.abs(expected).max():  # also true for NaN
            raise _convolution_failed(device, precision, f"its {name} is off by {difference:g}")


def convolve(image: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Convolve [1,H,W,I] with a kernel [3,3,I,O]; return [1,H,W,O] and the image and kernel gradients."""

    def convolution(image, kernel):
        return lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    result, vjp = jax.vjp(convolution, image, kernel)
    return result, *vjp(gradient)


def convolve_in_numpy(
    image: np.ndarray, kernel: np.ndarray, gradient: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute `convolve` with numpy, as one matrix product for each of the kernel's nine offsets."""
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
    """Return the first line of an exception's message, at most 200 characters, or its class name if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _convolution_failed(device: jax.Device, precision: str, reason: str) -> UserError:
    others = " or ".join(name for name in ("float32", "float16") if name != precision)
    return UserError(
        f"a {precision} convolution fails on {device.device_kind} ({reason}): try --precision {others}, check whether "
        "another program fills the device's memory, or update the driver and cuDNN"
    )


def device_shard(devices: Devices, batch_size_per_device: int) -> tf_data.BatchShard:
    """Return this process's shard of each global batch."""
    return tf_data.BatchShard(devices.total, devices.first, len(devices.local), batch_size_per_device)


NVIDIA_DRIVER = "/proc/driver/nvidia/version"
"""File that exists on Linux with an NVIDIA driver, whether or not JAX can use the GPU."""


MOST_STEPS_PER_DISPATCH = 16
"""Maximum chosen automatically: signals take effect only between dispatches, of which three are in flight."""


def steps_per_dispatch(config: Config, devices: Devices, *lengths: int) -> int:
    """Return the number of optimizer steps per dispatch: 1 on the CPU, where more would only enlarge the program.

    Args:
      config: config of the run; `steps_per_dispatch` 0 chooses the number automatically.
      devices: devices to train on.
      *lengths: numbers of steps after which a dispatch must end, such as the steps of an epoch; 0 for none. The chosen
        number divides them all, so that all dispatches have equal length and the step is compiled once.
    """
    if devices.local[0].platform == "cpu":
        return 1
    if config.steps_per_dispatch:
        return config.steps_per_dispatch
    common = math.gcd(*lengths) or 1
    return max(number for number in range(1, MOST_STEPS_PER_DISPATCH + 1) if common % number == 0)


def start_devices(config: Config) -> tuple[Devices, str]:
    """Choose and check the devices and the precision. Call this before anything else uses a JAX device.

    Raises:
      UserError: If there are fewer devices than requested, or they cannot train.
    """
    if config.fake_devices:
        flag = f"--xla_force_host_platform_device_count={config.fake_devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"  # read when the backend is initialized
        jax.config.update("jax_platforms", "cpu")
    # see AheadOfTime for the options of a single program
    if jax.distributed.is_initialized() and config.mapping == "pmap" and _expects_cuda():
        options = gpu_options(are_several=True, deterministic=config.deterministic)
        os.environ["XLA_FLAGS"] = with_options(os.environ.get("XLA_FLAGS", ""), options)
    keep_compiled_programs()
    devices = choose_devices(config.devices, config.deterministic, config.mapping)
    if devices.local[0].platform == "cpu" and not config.fake_devices and os.path.exists(NVIDIA_DRIVER):
        logger.warning('an NVIDIA GPU is present, but JAX sees only the CPU: run pip install -U "jax[cuda12]"')
    precision = choose_precision(config.precision, devices.local[0])
    check_device(devices.local[0], precision)
    return devices, precision


def _expects_cuda() -> bool:
    """Return whether JAX is expected to choose NVIDIA GPUs, without initializing its backend.

    XLA aborts the process on unknown flags, so flags for NVIDIA GPUs must not be set for other platforms.
    """
    platforms = (jax.config.jax_platforms or "cuda").split(",")
    has_plugin = any(importlib.util.find_spec(plugin) for plugin in PLUGINS)
    return has_plugin and os.path.exists(NVIDIA_DRIVER) and not {"cuda", "gpu"}.isdisjoint(platforms)
