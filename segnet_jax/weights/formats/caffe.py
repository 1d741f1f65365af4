"""Read a network's layers and weights from a `.caffemodel`, without Caffe.

A NetParameter has layers; a layer has a name, a type and blobs; a blob has a shape and numbers. The field numbers are
those of BVLC Caffe's `caffe.proto`. The VGG authors' kernels are [out,in,3,3], for BGR images minus ImageNet's mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segnet_jax.nn.preprocessing import CAFFE
from segnet_jax.weights.containers.protobuf import floats, message_classes, parse, text
from segnet_jax.weights.containers.stored_tensors import StoredTensor
from segnet_jax.weights.vgg import VGG, Table, assemble, conv_channels

_LEGACY_AXES = ("num", "channels", "height", "width")
_BLOB = {axis: (number, "int32") for number, axis in enumerate(_LEGACY_AXES, start=1)}
_MESSAGES = message_classes(
    "caffe",
    {
        "Net": {"layers": (2, "repeated V1Layer"), "layer": (100, "repeated Layer")},
        "V1Layer": {"name": (4, "bytes"), "type": (5, "int32"), "blobs": (6, "repeated Blob")},
        "Layer": {"name": (1, "bytes"), "type": (2, "bytes"), "blobs": (7, "repeated Blob")},
        "Blob": _BLOB | {"data": (5, "repeated float"), "shape": (7, "Shape")},
        "Shape": {"dim": (1, "repeated int64")},
    },
)
_V1_TYPES = {4: "Convolution", 6: "Dropout"}  # of V1LayerParameter, used until 2014

UNUSED = {f"{layer}/{blob}" for layer in ("fc6", "fc7", "fc8") for blob in (0, 1)}


@dataclass(frozen=True)
class Layer:
    """A layer of a network.

    Attributes:
      name: name of the layer.
      kind: type such as "Convolution"; empty for most types in the 2014 format.
      blobs: the layer's tensors.
    """

    name: str
    kind: str
    blobs: tuple[StoredTensor, ...]


def table(encoder: str) -> Table:
    """Map "LAYER/BLOB" to parts of the network, whose layers have the same names as in Caffe."""
    entries: Table = {}
    for conv in conv_channels(encoder):
        entries[f"{conv}/0"] = (conv, "kernel")
        entries[f"{conv}/1"] = (conv, "bias")
    return entries


def read(path: Path, encoder: str) -> VGG:
    """Read a VGG from a `.caffemodel` with V1 or current layers."""
    tensors = tensors_of(read_layers(path))
    convs = assemble(tensors, encoder, table, unused=UNUSED, layout="OIHW", channel_order="BGR")
    return VGG(encoder, convs, CAFFE)


def read_layers(path: Path) -> list[Layer]:
    """Return the layers of a `.caffemodel`: those in the 2014 format (`layers`), then those in the current (`layer`).

    Raises:
      ValueError: If the file is damaged or too large.
    """
    net = parse(path, _MESSAGES["Net"])
    v1_layers = [(layer, _V1_TYPES.get(layer.type, "")) for layer in net.layers]
    layers = v1_layers + [(layer, text(layer.type)) for layer in net.layer]
    return [Layer(text(layer.name), kind, tuple(map(_stored, layer.blobs))) for layer, kind in layers]


def tensors_of(layers: Iterable[Layer]) -> dict[str, StoredTensor]:
    """Return all blobs by layer name and index, such as "conv1_1/0".

    Raises:
      ValueError: If two layers have the same name.
    """
    tensors: dict[str, StoredTensor] = {}
    for layer in layers:
        for index, blob in enumerate(layer.blobs):
            if tensors.setdefault(f"{layer.name}/{index}", blob) is not blob:
                raise ValueError(f"contains the blob {layer.name}/{index} twice")
    return tensors


def _stored(blob) -> StoredTensor:
    if blob.HasField("shape"):
        shape = tuple(blob.shape.dim)
    else:
        shape = tuple(getattr(blob, axis) for axis in _LEGACY_AXES)
        shape = shape[3:] if shape[:3] == (1, 1, 1) else shape  # vectors also had four axes
    return StoredTensor(shape, partial(floats, blob.data, shape))
