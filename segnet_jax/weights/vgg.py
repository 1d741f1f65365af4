"""A VGG encoder in one form, whatever file it came from, and the check that a file holds exactly that.

Each format's module lists the tensors of a file and gives a table from their names to places in the network. Here both
sides are compared, names and shapes, before a single number is read. All of them raise ValueError with what is wrong in
the file; `load.read_vgg` puts the file's name before it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.nn.segnet import ENCODERS
from segnet_jax.weights.containers.stored import StoredTensor, misfits, read_numbers

Role = Literal["kernel", "bias", "bn_scale", "bn_bias", "bn_mean", "bn_var"]
Table = dict[str, tuple[str, Role]]
"""Name of a tensor in the file -> convolution, and what the tensor is to it."""


@dataclass(frozen=True)
class BatchNormWeights:
    """BatchNorm after a convolution, each float32 [out]: y = scale * (x - mean) / sqrt(var + epsilon) + bias."""

    scale: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray


@dataclass(frozen=True)
class ConvWeights:
    """A 3x3 convolution: kernel float32 [3,3,in,out] for RGB input, bias float32 [out]."""

    kernel: np.ndarray
    bias: np.ndarray
    batch_norm: BatchNormWeights | None = None


@dataclass(frozen=True)
class VGG:
    """The convolutions of a trained VGG, without its classifier.

    Attributes:
      encoder: "vgg16" or "vgg19".
      convs: "conv1_1" and so on to "conv5_3" or "conv5_4"; all of them with BatchNorm or none.
      preprocessing: what the weights were trained on.
      batch_norm_epsilon: what the BatchNorm layers added to the variance; None without BatchNorm.
    """

    encoder: str
    convs: Mapping[str, ConvWeights]
    preprocessing: Preprocessing
    batch_norm_epsilon: float | None = None


def conv_channels(encoder: str) -> dict[str, tuple[int, int]]:
    """Each convolution's channels, in and out, in the order of the network."""
    channels, inputs = {}, 3
    for stage, (outputs, num_convolutions) in enumerate(ENCODERS[encoder], start=1):
        for i in range(1, num_convolutions + 1):
            channels[f"conv{stage}_{i}"] = (inputs, outputs)
            inputs = outputs
    return channels


def assemble(
    tensors: Mapping[str, StoredTensor],
    encoder: str,
    table_of: Callable[[str], Table],
    *,
    unused: Collection[str] = (),
    layout: Literal["HWIO", "OIHW"],
    channel_order: Literal["RGB", "BGR"],
) -> dict[str, ConvWeights]:
    """Reads the convolutions of an encoder after comparing the file with the table from both sides.

    Args:
      tensors: all that the file holds.
      encoder: "vgg16" or "vgg19".
      table_of: the format's table for an encoder.
      unused: names that may stand in the file and are not needed; nothing of them is read.
      layout: of the file's kernels.
      channel_order: of the images that the first kernel was trained on.

    Raises:
      ValueError: tensors are missing, unknown or of another shape, or one holds a number that is not finite.
    """
    table = table_of(encoder)
    _check(tensors, encoder, table_of, unused, layout)
    values: dict[tuple[str, Role], np.ndarray] = {}
    for name, (conv, role) in table.items():
        values[conv, role] = _read(name, tensors[name], role)
        if role == "kernel" and layout == "OIHW":
            values[conv, role] = np.ascontiguousarray(values[conv, role].transpose(2, 3, 1, 0))
    if channel_order == "BGR":
        values["conv1_1", "kernel"] = np.ascontiguousarray(values["conv1_1", "kernel"][:, :, ::-1])

    def batch_norm(conv: str) -> BatchNormWeights | None:
        if (conv, "bn_scale") not in values:
            return None
        return BatchNormWeights(*(values[conv, f"bn_{part}"] for part in ("scale", "bias", "mean", "var")))

    return {
        conv: ConvWeights(values[conv, "kernel"], values[conv, "bias"], batch_norm(conv))
        for conv in conv_channels(encoder)
    }


def _check(tensors, encoder, table_of, unused, layout) -> None:
    table, channels = table_of(encoder), conv_channels(encoder)
    needed = {
        name: channels[conv][1:] if role != "kernel" else _kernel_shape(*channels[conv], layout)
        for name, (conv, role) in table.items()
    }
    told = misfits(tensors, needed, unused)
    if not told:
        return
    for other in ENCODERS:
        if other != encoder and table_of(other).keys() == tensors.keys() - set(unused):
            raise ValueError(f"these are the weights of {other}, and the encoder is {encoder}")
    raise ValueError(f"does not hold the weights of {encoder}: of {len(table)} tensors {told}")


def _kernel_shape(inputs: int, outputs: int, layout: str) -> tuple[int, ...]:
    return (3, 3, inputs, outputs) if layout == "HWIO" else (outputs, inputs, 3, 3)


def _read(name: str, tensor: StoredTensor, role: Role) -> np.ndarray:
    values = read_numbers(name, tensor)
    if role == "bn_var" and values.min() < 0:
        raise ValueError(f"tensor {name} is a variance and holds negative numbers")
    return values
