"""The SegNets that their authors published as `.caffemodel`, as variables of the networks here.

Layers have the names of SegNet-Tutorial's prototxts: `conv1_1` to `conv5_3`, `conv5_3_D` to `conv1_1_D`, or, of
SegNet-Basic, `conv1` to `conv4`, `conv_decode4` to `conv_decode1` and a classifier; behind each but the last `NAME_bn`.
Kernels are [out,in,k,k], of BGR images 0..255. A file holds what `compute_bn_statistics.py` has left: BatchNorm's two
blobs are no longer what was trained but scale and shift with the statistics folded in, y = scale * x + shift.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.nn import segnet_basic
from segnet_jax.weights.containers.stored import StoredTensor, misfits, read_numbers
from segnet_jax.weights.formats import caffe
from segnet_jax.weights.vgg import conv_channels

BATCH_NORM_EPSILON = 1e-9
"""Caffe SegNet's. In float32, 1 + 1e-9 is 1: with a running mean of 0 and a variance of 1, BatchNorm is
scale * x + shift to the last bit."""

_CLASSIFIERS = ("conv_classifier", "dense_softmax_inner_prod")
"""What SegNet-Basic's last layer is called, in the training prototxts and in the published files."""


@dataclass(frozen=True)
class CaffeSegNet:
    """A trained SegNet.

    Attributes:
      network: "segnet", of 13 + 13 convolutions, or "segnet-basic".
      num_classes: C.
      has_dropout: whether it was made with dropout layers, as Bayesian SegNet.
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
    """What a convolution must be: its channels, its kernel's side, and whether BatchNorm follows."""

    inputs: int
    outputs: int
    side: int
    batch_norm: bool = True


def read(path: Path) -> CaffeSegNet:
    """Reads a SegNet of either kind from a `.caffemodel` of either form.

    Raises:
      ValueError: it is damaged, no SegNet, or not just one.
    """
    layers = list(caffe.read_layers(path))
    tensors = caffe.tensors_of(layers)
    network, last, convs = _network_of(tensors)
    needed: dict[str, tuple[int, ...]] = {}
    for name, conv in convs.items():
        needed[f"{name}/0"] = (conv.outputs, conv.inputs, conv.side, conv.side)
        vectors = [f"{name}/1", *([f"{name}_bn/0", f"{name}_bn/1"] if conv.batch_norm else [])]
        needed |= dict.fromkeys(vectors, (conv.outputs,))
        tensors |= {vector: _as_vector(tensors[vector]) for vector in vectors if vector in tensors}
    if told := misfits(tensors, needed):
        raise ValueError(f"does not hold the weights of {network}: of {len(needed)} tensors {told}")

    params, batch_stats = {}, {}
    for name, conv in convs.items():
        kernel = read_numbers(f"{name}/0", tensors[f"{name}/0"]).transpose(2, 3, 1, 0)
        if conv.inputs == 3:  # the first one, which is made for BGR
            kernel = kernel[:, :, ::-1]
        ours = "conv_classifier" if name in _CLASSIFIERS else name
        params[ours] = {"kernel": np.ascontiguousarray(kernel), "bias": _vector(tensors, f"{name}/1")}
        if conv.batch_norm:
            ones = np.ones(conv.outputs, np.float32)
            scale, shift = (_vector(tensors, f"{name}_bn/{blob}") for blob in (0, 1))
            params[f"{ours}_bn"] = {"scale": scale, "bias": shift}
            batch_stats[f"{ours}_bn"] = {"mean": 0 * ones, "var": ones}
    has_dropout = any(layer.kind == "Dropout" for layer in layers)
    return CaffeSegNet(network, convs[last].outputs, has_dropout, params, batch_stats)


def _network_of(tensors: dict[str, StoredTensor]) -> tuple[str, str, dict[str, _Conv]]:
    """Which network the names tell of: its name, its last layer, and all of its convolutions in order."""
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
        raise ValueError(f"holds no SegNet: it has neither conv1_1_D nor {' nor '.join(_CLASSIFIERS)}")
    num_classes = (*tensors[f"{last}/0"].shape, 0)[0]
    if not 1 <= num_classes <= VOID:
        raise ValueError(f"tells {num_classes} classes apart, and from 1 to {VOID} can be")
    return network, last, down | up | {last: _Conv(inputs, num_classes, side, batch_norm=False)}


def _as_vector(tensor: StoredTensor) -> StoredTensor:
    """BatchNorm's blobs are [1,channels,1,1]; of four axes, the one that counts."""
    shape = tensor.shape
    if len(shape) != 4 or (shape[0], *shape[2:]) != (1, 1, 1):
        return tensor
    return StoredTensor(shape[1:2], lambda: tensor.read().reshape(shape[1]))


def _vector(tensors: dict[str, StoredTensor], name: str) -> np.ndarray:
    return read_numbers(name, tensors[name])
