"""Read VGGs from ONNX files, whatever their tensor names.

The graph is followed from its input through convolutions, biases, BatchNorm, ReLU and max pooling. Everything after the
VGG's last convolution is ignored. Kernels are [out,in,3,3].
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from segnet_jax.nn.preprocessing import CAFFE, Preprocessing
from segnet_jax.nn.segnet import ENCODERS
from segnet_jax.weights.containers.onnx_graph import Graph, Node, read_graph
from segnet_jax.weights.containers.onnx_input import InputScaling, per_channel
from segnet_jax.weights.containers.stored_tensors import StoredTensor, shape_text
from segnet_jax.weights.formats.npz import table
from segnet_jax.weights.formats.published_sums import is_published
from segnet_jax.weights.vgg import VGG, assemble, conv_channels

_NEUTRAL = ("Identity", "Dropout", "Cast")
_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
_MAX_INPUTS = 100
_BATCH_NORM_EPSILON = 1e-5  # ONNX's default
_BATCH_NORM_PARTS = ("scale", "bias", "mean", "var")  # the order of the operands


class _End(Exception):
    """Raised at the end of a chain; the message describes the node that ends it."""


@dataclass
class _Conv:
    """A convolution and the operations that directly follow it."""

    node: Node
    kernel: StoredTensor
    biases: list[StoredTensor]
    batch_norm: list[StoredTensor] | None = None
    epsilon: float | None = None
    active: bool = False
    pooled: bool = False


@dataclass
class _Chain:
    """The chain of convolutions that follows an input of the graph.

    Attributes:
      scaling: image scaling before the first convolution.
      convs: the convolutions.
      end: description of what ends the chain.
    """

    scaling: InputScaling
    convs: list[_Conv] = field(default_factory=list)
    end: str = ""


def read(path: Path, encoder: str, preprocessing: Preprocessing | None = None) -> VGG:
    """Read a VGG from an ONNX file.

    `preprocessing` is the one used in training; CAFFE means BGR. If it is None, it is inferred from the graph, unless
    the weights are the published ones.

    Raises:
      ValueError: If the file is damaged, does not begin with this encoder, or its preprocessing is unknown.
    """
    graph = read_graph(path)
    if not 1 <= len(graph.inputs) <= _MAX_INPUTS:
        raise ValueError(f"has {len(graph.inputs)} inputs, but must have 1 to {_MAX_INPUTS}")
    chain = max((_follow(graph, name) for name in graph.inputs), key=lambda chain: len(chain.convs))
    _check_is_vgg(chain, encoder)
    tensors, batch_norm, epsilon = _tensors(chain, encoder)

    def convs(channel_order):
        entries = (encoder, lambda name: table(name, batch_norm))
        return assemble(tensors, *entries, layout="OIHW", channel_order=channel_order)

    if is_published(as_bgr := convs("BGR"), encoder):
        return VGG(encoder, as_bgr, preprocessing or CAFFE, epsilon)
    if preprocessing is None:
        preprocessing, channel_order = chain.scaling.expected()
    else:
        channel_order = "BGR" if preprocessing == CAFFE else "RGB"
    return VGG(encoder, as_bgr if channel_order == "BGR" else convs("RGB"), preprocessing, epsilon)


def _follow(graph: Graph, name: str) -> _Chain:
    """Collect the convolutions that follow an input, up to the first node that is not part of a VGG."""
    chain = _Chain(InputScaling(channels_last=_begins_channels_last(graph, name)))
    try:
        for node, operand in _walk(graph, name):
            if not chain.convs and node.op != "Conv":
                _before(chain, graph, node, operand)
            else:
                _after(chain, graph, node, operand)
    except (_End, ValueError) as end:
        chain.end = str(end)
    return chain


def _walk(graph: Graph, tensor: str) -> Iterator[tuple[Node, str]]:
    """Yield each node along the only path from a tensor, with the name of its operand on that path."""
    for _ in range(len(graph.consumers) + 1):
        consumers = graph.consumers.get(tensor, [])
        if not consumers:
            raise _End("the end of the graph")
        if len(consumers) > 1:
            raise _End(f"a branch into {len(consumers)} nodes: {', '.join(map(str, consumers[:3]))}")
        yield consumers[0], tensor
        tensor = consumers[0].output
    raise _End("a loop")


def _begins_channels_last(graph: Graph, name: str) -> bool:
    """Return whether the input is [B,H,W,C] (an odd number of transpositions precedes the first convolution)."""
    transpositions = 0
    try:
        for node, _ in _walk(graph, name):
            if node.op == "Conv":
                break
            transpositions += node.op == "Transpose"
    except _End:
        pass
    return transpositions % 2 == 1


def _before(chain: _Chain, graph: Graph, node: Node, operand: str) -> None:
    """Process a node before the first convolution."""
    if node.op == "Transpose":
        _transpose(chain, node)
    elif node.op not in _NEUTRAL:
        constants = [None if name == operand else _constant(graph, node, name) for name in node.inputs]
        chain.scaling.apply(node, constants)


def _after(chain: _Chain, graph: Graph, node: Node, operand: str) -> None:
    """Process a convolution or a node after one."""
    if chain.scaling.channels_last and node.op in ("Conv", "MaxPool", "BatchNormalization"):
        raise _End(f"{node} on channels-last maps")
    if node.op == "Conv":
        if chain.convs and not chain.convs[-1].active:
            raise _End(f"{node} without a ReLU before it")
        chain.convs.append(_convolution(graph, node, operand))
        return
    conv = chain.convs[-1]
    match node.op:
        case "Add" if not conv.active and conv.batch_norm is None and len(node.inputs) == 2:
            bias = _constant(graph, node, node.inputs[node.inputs[0] == operand])
            values = per_channel(bias, chain.scaling.axis, num_channels=conv.kernel.shape[0])
            conv.biases.append(StoredTensor(values.shape, lambda: values))
        case "BatchNormalization" if not conv.active and conv.batch_norm is None and len(node.inputs) == 5:
            conv.batch_norm = [_constant(graph, node, name) for name in node.inputs[1:]]
            conv.epsilon = node.attributes.get("epsilon", _BATCH_NORM_EPSILON)
        case "Relu":
            conv.active = True
        case "Clip" if _lower_bound(graph, node) == 0:
            conv.active = True
        case "MaxPool" if conv.active and not conv.pooled and _is_vgg_pooling(node):
            conv.pooled = True
        case "Transpose":
            _transpose(chain, node)
        case op if op not in _NEUTRAL:
            raise _End(str(node))


def _constant(graph: Graph, node: Node, name: str) -> StoredTensor:
    if name not in graph.constants:
        raise _End(f"{node}, whose operand {name!r} is not a constant")
    return graph.constants[name]


def _transpose(chain: _Chain, node: Node) -> None:
    """Process a transposition, which must be from or to channels last."""
    if (order := node.attributes.get("perm")) not in (_TO_NCHW, _TO_NHWC):
        raise _End(f"{node} with the permutation {order}")
    chain.scaling.channels_last = order == _TO_NHWC


def _convolution(graph: Graph, node: Node, operand: str) -> _Conv:
    if not 2 <= len(node.inputs) <= 3 or node.inputs[0] != operand:
        raise _End(f"{node} with {len(node.inputs)} operands")
    kernel, *biases = (_constant(graph, node, name) for name in node.inputs[1:] if name)
    attributes = node.attributes
    same = attributes.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    one = set(attributes.get("strides", ())) | set(attributes.get("dilations", ())) | {attributes.get("group", 1)}
    padded = same or attributes.get("pads") == (1, 1, 1, 1)
    if len(kernel.shape) != 4 or kernel.shape[2:] != (3, 3) or one != {1} or not padded:
        raise _End(f"{node} with the kernel {shape_text(kernel.shape)}, which is not 3x3 of stride 1 with padding 1")
    return _Conv(node, kernel, biases)


def _lower_bound(graph: Graph, node: Node) -> float | None:
    """Return the lower limit of a Clip, or None without a limit."""
    if len(node.inputs) < 2:
        return node.attributes.get("min")
    return float(_constant(graph, node, node.inputs[1]).read().reshape(())) if node.inputs[1] else None


def _is_vgg_pooling(node: Node) -> bool:
    attributes = node.attributes
    unpadded = not any(attributes.get("pads", ())) and not any(each != 1 for each in attributes.get("dilations", ()))
    return unpadded and attributes.get("kernel_shape") == attributes.get("strides") == (2, 2)


def _check_is_vgg(chain: _Chain, encoder: str) -> None:
    """Raise ValueError with the first difference if a chain is not the encoder."""
    if (difference := _difference(chain, encoder)) is None:
        return
    for other in ENCODERS:
        if other != encoder and _difference(chain, other) is None:
            raise ValueError(f"contains the weights of {other}, but the encoder is {encoder}")
    raise ValueError(f"does not begin with a {encoder}: {difference}")


def _difference(chain: _Chain, encoder: str) -> str | None:
    needed = conv_channels(encoder)
    for (name, (inputs, outputs)), conv in zip(needed.items(), chain.convs, strict=False):
        if conv.kernel.shape[:2] != (outputs, inputs):
            shape, wanted = shape_text(conv.kernel.shape), shape_text((outputs, inputs, 3, 3))
            return f"{conv.node} has the kernel {shape} where {name} has {wanted}"
    if len(chain.convs) < len(needed):
        found = f"{len(chain.convs)} of its {len(needed)} convolutions"
        return f"after {found} comes {chain.end}"
    for (name, following), conv in zip(pairwise(needed), chain.convs, strict=False):
        if conv.pooled != (name[:5] != following[:5]):
            return f"{conv.node} is {'' if conv.pooled else 'not '}followed by 2x2 max pooling, unlike {name}"
    return None


def _tensors(chain: _Chain, encoder: str) -> tuple[dict[str, StoredTensor], bool, float | None]:
    """Return the tensors by our names, whether there is BatchNorm, and BatchNorm's epsilon."""
    tensors: dict[str, StoredTensor] = {}
    convs = dict(zip(conv_channels(encoder), chain.convs, strict=False))
    for name, conv in convs.items():
        tensors[f"{name}/kernel"] = conv.kernel
        tensors[f"{name}/bias"] = _sum(conv.biases, conv.kernel.shape[0])
        parts = zip(_BATCH_NORM_PARTS, conv.batch_norm or (), strict=False)
        tensors |= {f"{name}_bn/{part}": tensor for part, tensor in parts}
    epsilons = {conv.epsilon for conv in convs.values()}
    if len(epsilons) > 1:
        raise ValueError("has BatchNorm after only some of the convolutions, or with different epsilons")
    (epsilon,) = epsilons
    return tensors, epsilon is not None, epsilon


def _sum(biases: list[StoredTensor], num_channels: int) -> StoredTensor:
    """Return the only bias, the sum of several, or zeros."""
    if len(biases) == 1:
        return biases[0]
    if any(bias.shape != (num_channels,) for bias in biases):
        raise ValueError(f"has a bias whose length differs from its convolution's {num_channels} channels")
    return StoredTensor((num_channels,), lambda: sum((bias.read() for bias in biases), np.zeros(num_channels, "f4")))
