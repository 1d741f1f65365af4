"""Convert SegNets that their authors published as `.caffemodel` to variables of our networks.

Layers have the names of SegNet-Tutorial's prototxts: `conv1_1` to `conv5_3` and `conv5_3_D` to `conv1_1_D`, or, in
SegNet-Basic, `conv1` to `conv4`, `conv_decode4` to `conv_decode1` and a classifier; each but the last is followed by
`NAME_bn`. Kernels are [out,in,k,k], for BGR images 0..255. The files were written by `compute_bn_statistics.py`: the
two blobs of BatchNorm are a scale and a shift with the statistics folded in, y = scale * x + shift.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.nn import segnet_basic
from segnet_jax.weights.containers.stored_tensors import StoredTensor, misfits, read_numbers
from segnet_jax.weights.formats import caffe
from segnet_jax.weights.vgg import conv_channels

BATCH_NORM_EPSILON = 1e-9
"""Epsilon of converted SegNets. In float32, 1 + 1e-9 is 1: with running mean 0 and variance 1, BatchNorm is exactly
scale * x + shift."""

_CLASSIFIERS = ("conv_classifier", "dense_softmax_inner_prod")
"""Names of SegNet-Basic's last layer, in the training prototxts and in the published files."""

LAST_LAYERS = {"conv1_1_D", *_CLASSIFIERS}
"""Every SegNet has one of these layers, and no VGG has any."""


@dataclass(frozen=True)
class CaffeSegNet:
    """A trained SegNet.

    Attributes:
      network: "segnet", with 13 + 13 convolutions, or "segnet-basic".
      num_classes: number of classes.
      has_dropout: whether there are dropout layers, as in Bayesian SegNet.
      params: "conv1_1" -> {"kernel", "bias"}, "conv1_1_bn" -> {"scale", "bias"} and so on, float32, for RGB.
      batch_stats: "conv1_1_bn" -> {"mean", "var"} and so on.
    """

    network: Literal["segnet", "segnet-basic"]
    num_classes: int
    has_dropout: bool
    params: dict[str, Any]
    batch_stats: dict[str, Any]


@dataclass(frozen=True)
class _Conv:
    """The expected channels and kernel size of a convolution, and whether BatchNorm follows it."""

    inputs: int
    outputs: int
    side: int
    batch_norm: bool = True


def read(path: Path) -> CaffeSegNet:
    """Read a SegNet or SegNet-Basic from a `.caffemodel` with V1 or current layers.

    Raises:
      ValueError: If the file is damaged or contains anything but such a network.
    """
    layers = caffe.read_layers(path)
    tensors = caffe.tensors_of(layers)
    network, last, convs = _network_of(tensors)
    needed: dict[str, tuple[int, ...]] = {}
    for name, conv in convs.items():
        needed[f"{name}/0"] = (conv.outputs, conv.inputs, conv.side, conv.side)
        vectors = [f"{name}/1", *([f"{name}_bn/0", f"{name}_bn/1"] if conv.batch_norm else [])]
        needed |= dict.fromkeys(vectors, (conv.outputs,))
        tensors |= {vector: _as_vector(tensors[vector]) for vector in vectors if vector in tensors}
    if faults := misfits(tensors, needed):
        raise ValueError(f"does not contain the weights of {network}: of {len(needed)} tensors, {faults}")

    params, batch_stats = {}, {}
    for name, conv in convs.items():
        kernel = read_numbers(f"{name}/0", tensors[f"{name}/0"]).transpose(2, 3, 1, 0)
        if conv.inputs == 3:  # the first convolution, trained on BGR
            kernel = kernel[:, :, ::-1]
        target = "conv_classifier" if name in _CLASSIFIERS else name
        params[target] = {"kernel": np.ascontiguousarray(kernel), "bias": _vector(tensors, f"{name}/1")}
        if conv.batch_norm:
            ones = np.ones(conv.outputs, np.float32)
            scale, shift = (_vector(tensors, f"{name}_bn/{blob}") for blob in (0, 1))
            params[f"{target}_bn"] = {"scale": scale, "bias": shift}
            batch_stats[f"{target}_bn"] = {"mean": 0 * ones, "var": ones}
    has_dropout = any(layer.kind == "Dropout" for layer in layers)
    return CaffeSegNet(network, convs[last].outputs, has_dropout, params, batch_stats)


def _network_of(tensors: dict[str, StoredTensor]) -> tuple[str, str, dict[str, _Conv]]:
    """Recognize the network by its layer names; return its name, last layer, and all convolutions in order."""
    if "conv1_1_D/0" in tensors:
        network, last = "segnet", "conv1_1_D"
        down = {name: _Conv(*channels, side=3) for name, channels in conv_channels("vgg16").items()}
        up = {f"{name}_D": _Conv(conv.outputs, conv.inputs, side=3) for name, conv in reversed(down.items())}
        inputs, side = down["conv1_2"].inputs, 3
    elif found := [name for name in _CLASSIFIERS if f"{name}/0" in tensors]:
        network, last = "segnet-basic", found[0]
        inputs, side = segnet_basic.CHANNELS, 1
        down = {f"conv{i}": _Conv(3 if i == 1 else inputs, inputs, side=segnet_basic.SIZE) for i in (1, 2, 3, 4)}
        up = {f"conv_decode{i}": _Conv(inputs, inputs, side=segnet_basic.SIZE) for i in (4, 3, 2, 1)}
    else:
        raise ValueError(f"contains no SegNet: it has neither conv1_1_D nor {' nor '.join(_CLASSIFIERS)}")
    num_classes = (*tensors[f"{last}/0"].shape, 0)[0]
    if not 1 <= num_classes <= VOID:
        raise ValueError(f"has {num_classes} classes, but 1 to {VOID} are supported")
    return network, last, down | up | {last: _Conv(inputs, num_classes, side, batch_norm=False)}


def _as_vector(tensor: StoredTensor) -> StoredTensor:
    """Reshape a BatchNorm blob [1,channels,1,1] to [channels]; return other tensors unchanged."""
    shape = tensor.shape
    if len(shape) != 4 or (shape[0], *shape[2:]) != (1, 1, 1):
        return tensor
    return StoredTensor(shape[1:2], lambda: tensor.read().reshape(shape[1]))


def _vector(tensors: dict[str, StoredTensor], name: str) -> np.ndarray:
    return read_numbers(name, tensors[name])
