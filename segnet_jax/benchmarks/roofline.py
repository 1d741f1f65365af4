"""The network's work, the devices' peaks, and what part of the possible a measured rate is."""

import re
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from segnet_jax.benchmarks.program_counts import flop, products_of
from segnet_jax.nn.contract import NetworkContract, collect_taps, frozen_layers
from segnet_jax.training.state import split_layers


@dataclass(frozen=True)
class Work:
    """What the network must at least do for one image.

    Attributes:
      train_flop: floating-point operations of a training step's convolutions and matrix products, counted from the
        program: multiply and add as two, taps on the padding counted, nothing recomputed.
      infer_flop: of a forward pass.
      train_bytes: moved between memory and chip by a training step, nothing fused across a convolution.
      infer_bytes: of a forward pass with BatchNorm folded.
    """

    train_flop: float
    infer_flop: float
    train_bytes: float
    infer_bytes: float


def work_of(model: NetworkContract, height: int, width: int, channels: int = 3) -> Work:
    """Count a network's work from its programs, and the bytes as the model's dtype has them.

    The published network at 360x480 has 640 GFLOP an image, and 2.4 GB in 16 bits.

    Args:
      model: the network, not folded; layers in frozen stages are not trained.
      height: rows of the image.
      width: columns of the image.
      channels: of the image.
    """
    bytes_per_number = jnp.dtype(model.dtype).itemsize
    model = model.clone(sync_axis=None, dtype=jnp.float32)  # in 16 bits, channels are filled up with zeros
    image = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    frozen, trainable = split_layers(variables["params"], frozen_layers(model))

    def infer(variables, image):
        return model.apply(variables, image, train=False)

    def loss(trainable, frozen, statistics, image):
        variables = {"params": trainable | frozen, "batch_stats": statistics}
        logits, _ = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return jnp.sum(logits * logits)  # as of any loss, its gradient needs the logits

    inference = products_of(infer, variables, image)
    training = products_of(jax.grad(loss), trainable, frozen, variables["batch_stats"], image)
    _, taps = jax.eval_shape(partial(collect_taps, model, kinds=("batch_norm",)), variables, image)
    read, written = (bytes_per_number * sum(getattr(p, side) for p in inference) for side in ("inputs", "outputs"))
    norms = {layer.name for layer in model.layers if layer.kind == "batch_norm"}
    normalised = bytes_per_number * sum(each.size for name, each in taps.items() if name in norms)
    # Pooling reads a map and writes a quarter of it, unpooling the reverse, each with a code of one byte.
    cells = [each.size for name, each in taps.items() if name.startswith("code")]
    pools = sum(2 * (each * 4 + each) * bytes_per_number + 2 * each for each in cells)
    # Forward: convolution, statistics, normalisation. Backward: both gradients of each.
    train_bytes = (read + written) * 3 + normalised * (1 + 2 + 2 + 3) + 2 * pools
    return Work(flop(training), flop(inference), train_bytes, read + written + pools)


PEAKS = {  # device kind -> TFLOP/s of its matrix units by precision (float32 as TF32 where there is such), and GB/s
    "V100": ({"float16": 125, "float32": 15.7}, 900),
    "T4": ({"float16": 65, "float32": 8.1}, 320),
    "A100": ({"float16": 312, "bfloat16": 312, "float32": 156}, 2039),
    "H100": ({"float16": 989, "bfloat16": 989, "float32": 494}, 3350),
    "H200": ({"float16": 989, "bfloat16": 989, "float32": 494}, 4800),
    "TPU v4": ({"bfloat16": 275}, 1228),
    "TPU v5 lite": ({"bfloat16": 197}, 819),
    "TPU v5": ({"bfloat16": 459}, 2765),
    "TPU v5p": ({"bfloat16": 459}, 2765),  # another name of it
    "TPU v6 lite": ({"bfloat16": 918}, 1640),
}
"""From the makers' data sheets, dense, of the largest variant (A100 of 80 GB, H100 SXM)."""


def peak_of(device_kind: str, precision: str) -> tuple[float, float] | None:
    """FLOP/s and bytes/s that a device's data sheet promises; None for a device or precision that is not listed.

    A name is one of whole words: an RTX A1000 is no A100, a GH200 no H200, and a "lite" chip another one.
    """
    for kind, (tera_flops, gigabytes) in PEAKS.items():
        if re.search(rf"\b{kind}\b(?! lite)", device_kind) and precision in tera_flops:
            return tera_flops[precision] * 1e12, gigabytes * 1e9
    return None


def shares(
    images_per_second: float, flop: float, num_bytes: float, device_kind: str, precision: str
) -> dict[str, float | None]:
    """What part of the possible an image rate of one device is.

    Args:
      images_per_second: of one device.
      flop: of one image.
      num_bytes: of one image.
      device_kind: as JAX names it.
      precision: of activations.

    Returns:
      "tera_flops", done; "share_of_peak", of the data sheet's; "share_of_roofline", of what is possible when compute
      and memory traffic take turns. The shares are None for a device that is not listed.
    """
    done = {"tera_flops": images_per_second * flop / 1e12, "share_of_peak": None, "share_of_roofline": None}
    if (peak := peak_of(device_kind, precision)) is None:
        return done
    least_seconds = flop / peak[0] + num_bytes / peak[1]
    return done | {
        "share_of_peak": images_per_second * flop / peak[0],
        "share_of_roofline": images_per_second * least_seconds,
    }
