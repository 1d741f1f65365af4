"""Roofline model: a network's work, the devices' peak rates, and how much of them a measured throughput attains."""

import math
import re
from dataclasses import dataclass

import jax.numpy as jnp

from segnet_jax.nn.segnet import SegNet
from segnet_jax.nn.segnet_basic import SIZE, SegNetBasic


@dataclass(frozen=True)
class Work:
    """Minimum work of a network for one image.

    Attributes:
      train_flop: floating-point operations of a training step's convolutions, multiply and add as two, taps on the
        padding counted, nothing recomputed.
      infer_flop: of a forward pass.
      train_bytes: moved between memory and chip by a training step, nothing fused across a convolution.
      infer_bytes: of a forward pass with BatchNorm folded.
    """

    train_flop: float
    infer_flop: float
    train_bytes: float
    infer_bytes: float


def work_of(model: SegNet, height: int, width: int) -> Work:
    """Counts the work from the layers' sizes, and the bytes as the model's dtype has them.

    The published network at 360x480 has 640 GFLOP an image, and 2.4 GB in 16 bits.
    """
    bytes_per_number = jnp.dtype(model.dtype).itemsize
    layers, pooled = _layers(model, height, width)
    forwards = [2 * math.prod(layer) for layer in layers]
    forward, first = sum(forwards), forwards[0]  # no gradient by the image
    read = bytes_per_number * sum(pixels * inputs for pixels, inputs, *_ in layers)
    written = bytes_per_number * sum(pixels * outputs for pixels, _, outputs, _ in layers)
    normalised = bytes_per_number * sum(pixels * outputs for pixels, _, outputs, _ in layers[:-1])
    # Pooling reads a map and writes a quarter of it, unpooling the reverse, each with a code of one byte.
    pools = sum(2 * (cells * 4 + cells) * bytes_per_number + 2 * cells for cells in pooled)
    # Forward: convolution, statistics, normalisation. Backward: both gradients of each.
    train = (read + written) * 3 + normalised * (1 + 2 + 2 + 3) + 2 * pools
    return Work(3 * forward - first, forward, train, read + written + pools)


Layer = tuple[int, int, int, int]
"""Of a convolution: pixels, channels that each output sees, channels out, and cells of the kernel."""


def _layers(model: SegNet, height: int, width: int) -> tuple[list[Layer], list[int]]:
    """Each convolution, and the cells (windows x channels) of each pooling."""
    layers, sizes, cells, channels = [], [], [], 3
    is_basic = isinstance(model, SegNetBasic)
    stages, taps = model.stages, (SIZE if is_basic else model.kernel_size) ** 2
    for outputs, count in stages:
        for _ in range(count):
            layers.append((height * width, channels, outputs, taps))
            channels = outputs
        sizes.append((height, width))
        half = (lambda size: -(-size // 2)) if model.pooling == "ceil" else (lambda size: max(size // 2, 1))
        height, width = half(height), half(width)
        cells.append(height * width * channels)
    for stage in reversed(range(len(stages))):
        height, width = sizes[stage]
        _, count = stages[stage]
        last = channels if is_basic else stages[stage - 1][0] if stage else model.num_classes
        for i in range(count):
            outputs = last if i == count - 1 else channels
            inputs = 1 if is_basic and model.decoder == "single-channel" else channels
            layers.append((height * width, inputs, outputs, taps))
            channels = outputs
    if is_basic:
        layers.append((height * width, channels, model.num_classes, 1))
    return layers, cells


PEAKS = {  # device kind -> TFLOP/s of its matrix units by precision (float32 as TF32 if supported), and GB/s
    "V100": ({"float16": 125, "float32": 15.7}, 900),
    "T4": ({"float16": 65, "float32": 8.1}, 320),
    "A100": ({"float16": 312, "bfloat16": 312, "float32": 156}, 2039),
    "H100": ({"float16": 989, "bfloat16": 989, "float32": 494}, 3350),
    "H200": ({"float16": 989, "bfloat16": 989, "float32": 494}, 4800),
    "TPU v4": ({"bfloat16": 275}, 1228),
    "TPU v5 lite": ({"bfloat16": 197}, 819),
    "TPU v5": ({"bfloat16": 459}, 2765),
    "TPU v5p": ({"bfloat16": 459}, 2765),  # another name of TPU v5
    "TPU v6 lite": ({"bfloat16": 918}, 1640),
}
"""Source: the vendors' data sheets; dense rates of the largest variant (A100 80 GB, H100 SXM)."""


def peak_of(device_kind: str, precision: str) -> tuple[float, float] | None:
    """Return a device's peak FLOP/s and bytes/s; None if the device or precision is not listed.

    Names match as whole words: an RTX A1000 is not an A100, a GH200 not an H200, and a "lite" chip a different one.
    """
    for kind, (tera_flops, gigabytes) in PEAKS.items():
        if re.search(rf"\b{kind}\b(?! lite)", device_kind) and precision in tera_flops:
            return tera_flops[precision] * 1e12, gigabytes * 1e9
    return None


def utilization(
    images_per_second: float, flop: float, num_bytes: float, device_kind: str, precision: str
) -> dict[str, float | None]:
    """Return how much of a device's peak rates a throughput attains.

    Args:
      images_per_second: throughput of one device.
      flop: floating-point operations per image.
      num_bytes: memory traffic per image, bytes.
      device_kind: name of the device in JAX.
      precision: dtype of activations.

    Returns:
      "tera_flops", the attained TFLOP/s; "fraction_of_peak", relative to the data sheet; "fraction_of_roofline",
      relative to the rate at which compute and memory traffic alternate at their peaks. The fractions are None for a
      device that is not listed.
    """
    attained = {"tera_flops": images_per_second * flop / 1e12, "fraction_of_peak": None, "fraction_of_roofline": None}
    if (peak := peak_of(device_kind, precision)) is None:
        return attained
    min_seconds = flop / peak[0] + num_bytes / peak[1]
    return attained | {
        "fraction_of_peak": images_per_second * flop / peak[0],
        "fraction_of_roofline": images_per_second * min_seconds,
    }
