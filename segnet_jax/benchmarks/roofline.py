"""Roofline model: a network's work, the peak rates of devices, and the fraction of them that a throughput attains."""

import re
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from segnet_jax.benchmarks.program_counts import flop, products_of
from segnet_jax.nn.network_interface import NetworkInterface, collect_taps, frozen_layers
from segnet_jax.training.state import split_layers


@dataclass(frozen=True)
class Work:
    """Minimum work of a network for one image.

    Attributes:
      train_flop: floating-point operations of the convolutions and matrix products in a training step, two per
        multiply-add; padding is included, and nothing is recomputed.
      infer_flop: the same for a forward pass.
      train_bytes: bytes moved between memory and chip by a training step without fusion across convolutions.
      infer_bytes: bytes moved by a forward pass with BatchNorm folded.
    """

    train_flop: float
    infer_flop: float
    train_bytes: float
    infer_bytes: float


def work_of(model: NetworkInterface, height: int, width: int, channels: int = 3) -> Work:
    """Count a network's operations from its traced programs, and its memory traffic in the model's dtype.

    Training the published network at 360x480 needs 640 GFLOP per image and, in 16 bits, moves 2.4 GB.

    Args:
      model: the network, not folded; layers in frozen stages are not trained.
      height: rows of the image.
      width: columns of the image.
      channels: number of channels of the image.
    """
    bytes_per_number = jnp.dtype(model.dtype).itemsize
    model = model.clone(sync_axis=None, dtype=jnp.float32)  # in 16 bits, channels are padded with zeros
    image = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    frozen, trainable = split_layers(variables["params"], frozen_layers(model))

    def infer(variables, image):
        return model.apply(variables, image, train=False)

    def loss(trainable, frozen, statistics, image):
        variables = {"params": trainable | frozen, "batch_stats": statistics}
        logits, _ = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return jnp.sum(logits * logits)  # like any loss, its gradient needs the logits

    inference = products_of(infer, variables, image)
    training = products_of(jax.grad(loss), trainable, frozen, variables["batch_stats"], image)
    _, taps = jax.eval_shape(partial(collect_taps, model, kinds=("batch_norm",)), variables, image)
    read, written = (bytes_per_number * sum(getattr(p, side) for p in inference) for side in ("inputs", "outputs"))
    norms = {layer.name for layer in model.layers if layer.kind == "batch_norm"}
    normalized = bytes_per_number * sum(each.size for name, each in taps.items() if name in norms)
    # Pooling reads features and writes a quarter of them; unpooling does the reverse. A code takes one byte.
    cells = [each.size for name, each in taps.items() if name.startswith("code")]
    pools = sum(2 * (each * 4 + each) * bytes_per_number + 2 * each for each in cells)
    # Forward: convolution, statistics, normalization. Backward: the gradients of inputs and parameters.
    train_bytes = (read + written) * 3 + normalized * (1 + 2 + 2 + 3) + 2 * pools
    return Work(flop(training), flop(inference), train_bytes, read + written + pools)


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
    """Return a device's peak FLOP/s and bytes/s, or None if the device or precision is not listed.

    Names match as whole words: an RTX A1000 is not an A100, and a TPU v5 lite is not a TPU v5.
    """
    for kind, (tera_flops, gigabytes) in PEAKS.items():
        if re.search(rf"\b{kind}\b(?! lite)", device_kind) and precision in tera_flops:
            return tera_flops[precision] * 1e12, gigabytes * 1e9
    return None


def utilization(
    images_per_second: float, flop: float, num_bytes: float, device_kind: str, precision: str
) -> dict[str, float | None]:
    """Return the fractions of a device's peak rates that a throughput attains.

    Args:
      images_per_second: throughput of one device.
      flop: floating-point operations per image.
      num_bytes: memory traffic per image in bytes.
      device_kind: JAX's name of the device.
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
