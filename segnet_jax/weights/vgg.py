"""A VGG encoder independent of file formats, and the check that a file contains exactly such an encoder.

The module of each format lists the tensors in a file and provides a table that maps their names to the network. Names
and shapes are compared in both directions before any number is read. All these modules raise a ValueError that
describes the fault; `load.read_vgg` adds the file's name.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.nn.segnet import ENCODERS
from segnet_jax.system.errors import UserError
from segnet_jax.weights.containers.stored_tensors import StoredTensor, misfits, read_numbers

Role = Literal["kernel", "bias", "bn_scale", "bn_bias", "bn_mean", "bn_var"]
Table = dict[str, tuple[str, Role]]
"""Name of a tensor in the file -> the convolution it belongs to, and its role."""


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
      convs: "conv1_1" to "conv5_3" or "conv5_4" -> weights; either all have BatchNorm or none.
      preprocessing: preprocessing of the training images.
      batch_norm_epsilon: added to the variance in BatchNorm; None without BatchNorm.
    """

    encoder: str
    convs: Mapping[str, ConvWeights]
    preprocessing: Preprocessing
    batch_norm_epsilon: float | None = None


def conv_channels(encoder: str) -> dict[str, tuple[int, int]]:
    """Return the input and output channels of each convolution, in forward order."""
    channels, inputs = {}, 3
    for stage, (outputs, num_convolutions) in enumerate(ENCODERS[encoder], start=1):
        for i in range(1, num_convolutions + 1):
            channels[f"conv{stage}_{i}"] = (inputs, outputs)
            inputs = outputs
    return channels


def check_stages(init: str, encoder: str, stages: Sequence[tuple[int, int]], kernel_size: int) -> None:
    """Check that a network has the stages, (channels, convolutions) at width 1, and the kernel size of a VGG.

    Raises:
      UserError: If the stages or the kernel size differ from the VGG's.
    """
    if kernel_size != 3:
        raise UserError(
            f"--init {init} needs 3x3 kernels, got --kernel-size {kernel_size}: use --init none to start from random "
            "weights"
        )
    if tuple(stages) != ENCODERS[encoder][: len(stages)]:
        convolutions, channels = (" ".join(map(str, each)) for each in ([c for _, c in stages], [c for c, _ in stages]))
        raise UserError(
            f"--init {init} needs the stages of {encoder}, got stages with {convolutions} convolutions and {channels} "
            "channels: use --init none to start from random weights"
        )


def assemble(
    tensors: Mapping[str, StoredTensor],
    encoder: str,
    table_of: Callable[[str], Table],
    *,
    unused: Collection[str] = (),
    layout: Literal["HWIO", "OIHW"],
    channel_order: Literal["RGB", "BGR"],
) -> dict[str, ConvWeights]:
    """Check a file's tensors against the format's table, then read the convolutions of the encoder.

    Args:
      tensors: all tensors in the file.
      encoder: "vgg16" or "vgg19".
      table_of: returns the format's table for an encoder.
      unused: names of other tensors that the file may contain, which are not read.
      layout: axis order of the file's kernels.
      channel_order: channel order of the training images.

    Raises:
      ValueError: If tensors are missing, unknown or have the wrong shape, or a number is not finite.
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
    if not (faults := _misfits(tensors, encoder, table_of, unused, layout)):
        return
    for other in ENCODERS:
        if other != encoder and not _misfits(tensors, other, table_of, {*unused, *tensors}, layout):
            raise ValueError(f"contains the weights of {other}, but the encoder is {encoder}")
    raise ValueError(f"does not contain the weights of {encoder}: of {len(table_of(encoder))} tensors, {faults}")


def _misfits(tensors, encoder, table_of, unused, layout) -> str:
    channels = conv_channels(encoder)
    needed = {
        name: channels[conv][1:] if role != "kernel" else _kernel_shape(*channels[conv], layout)
        for name, (conv, role) in table_of(encoder).items()
    }
    return misfits(tensors, needed, unused)


def _kernel_shape(inputs: int, outputs: int, layout: str) -> tuple[int, ...]:
    return (3, 3, inputs, outputs) if layout == "HWIO" else (outputs, inputs, 3, 3)


def _read(name: str, tensor: StoredTensor, role: Role) -> np.ndarray:
    values = read_numbers(name, tensor)
    if role == "bn_var" and values.min() < 0:
        raise ValueError(f"tensor {name} is a variance but has negative values")
    return values
