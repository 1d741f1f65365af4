"""Caffe's `.caffemodel`: a network's layers with their numbers, read without Caffe.

A NetParameter holds layers, a layer its name, type and blobs, a blob its shape and numbers; everything else is passed
over. Field numbers are those of BVLC Caffe's `caffe.proto`. The VGG authors' kernels are [out,in,3,3], trained on BGR
images less their mean.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segnet_jax.nn.preprocessing import CAFFE
from segnet_jax.weights.containers.protobuf import Span, Wire
from segnet_jax.weights.containers.stored import StoredTensor
from segnet_jax.weights.vgg import VGG, Table, assemble, conv_channels


class _Form(NamedTuple):
    """The fields of a layer."""

    name: int
    kind: int
    blobs: int


_FORMS = {2: _Form(4, 5, 6), 100: _Form(1, 2, 7)}  # NetParameter's `layers` of 2014 and `layer` of today
_KINDS_OF_2014 = {4: "Convolution", 6: "Dropout"}  # numbers of types that stand for their names of today
_LEGACY_SHAPE, _DATA, _SHAPE, _DOUBLES = (1, 2, 3, 4), 5, 7, 8  # in BlobProto: num channels height width, and so on

UNUSED = {f"{layer}/{blob}" for layer in ("fc6", "fc7", "fc8") for blob in (0, 1)}


@dataclass(frozen=True)
class Layer:
    """A layer of a network.

    Attributes:
      name: its own.
      kind: such as "Convolution"; empty for most types of 2014.
      blobs: its tensors in order.
    """

    name: str
    kind: str
    blobs: tuple[StoredTensor, ...]


def table(encoder: str) -> Table:
    """Layer and number of the blob -> places; Caffe's layers have our names."""
    entries: Table = {}
    for conv in conv_channels(encoder):
        entries[f"{conv}/0"] = (conv, "kernel")
        entries[f"{conv}/1"] = (conv, "bias")
    return entries


def read(path: Path, encoder: str) -> VGG:
    """Reads a VGG's `.caffemodel` of either form."""
    tensors = tensors_of(read_layers(path))
    convs = assemble(tensors, encoder, table, unused=UNUSED, layout="OIHW", channel_order="BGR")
    return VGG(encoder, convs, CAFFE)


def read_layers(path: Path) -> Iterator[Layer]:
    """The layers of a `.caffemodel` of either form, in its order; no number is read yet.

    Raises:
      ValueError: it is damaged, or holds what no published model does.
    """
    wire = Wire(np.memmap(path, np.uint8, mode="r"))
    for number, value in wire.fields(Span(0, wire.data.size)):
        if number in _FORMS and isinstance(value, Span):
            yield _layer(wire, value, _FORMS[number])


def tensors_of(layers: Iterable[Layer]) -> dict[str, StoredTensor]:
    """All blobs by the layer's name and their number in it, such as "conv1_1/0".

    Raises:
      ValueError: two layers have the same name.
    """
    tensors: dict[str, StoredTensor] = {}
    for layer in layers:
        for index, blob in enumerate(layer.blobs):
            if tensors.setdefault(f"{layer.name}/{index}", blob) is not blob:
                raise ValueError(f"holds the blob {layer.name}/{index} twice")
    return tensors


def _layer(wire: Wire, layer: Span, form: _Form) -> Layer:
    name, kind, blobs = "", "", []
    for number, value in wire.fields(layer):
        if number == form.kind and isinstance(value, int):
            kind = _KINDS_OF_2014.get(value, "")
        elif not isinstance(value, Span):
            continue
        elif number == form.name:
            name = _text(wire, value)
        elif number == form.kind:
            kind = _text(wire, value)
        elif number == form.blobs:
            blobs.append(_blob(wire, value))
    return Layer(name, kind, tuple(blobs))


def _text(wire: Wire, span: Span) -> str:
    return wire.data[span.start : span.stop][:80].tobytes().decode("utf-8", errors="replace")


def _blob(wire: Wire, blob: Span) -> StoredTensor:
    legacy_shape: dict[int, int] = {}
    shape: tuple[int, ...] | None = None
    numbers: list[Span] = []
    for number, value in wire.fields(blob):
        if number in _LEGACY_SHAPE and isinstance(value, int):
            legacy_shape[number] = value
        elif number == _DATA and isinstance(value, Span):
            numbers.append(value)
        elif number == _SHAPE and isinstance(value, Span):
            shape = tuple(dim for _, dims in wire.fields(value) for dim in _dims(wire, dims))
        elif number == _DOUBLES:
            raise ValueError("holds float64 numbers, which no published Caffe model does")
    if shape is None:
        shape = tuple(legacy_shape.get(number, 0) for number in _LEGACY_SHAPE)
        shape = shape[3:] if shape[:3] == (1, 1, 1) else shape  # a vector had four axes too
    return StoredTensor(shape, partial(_read, wire, numbers, shape))


def _dims(wire: Wire, dims: int | Span) -> list[int]:
    return [dims] if isinstance(dims, int) else wire.varints(dims)


def _read(wire: Wire, numbers: list[Span], shape: tuple[int, ...]) -> np.ndarray:
    return wire.floats(numbers, math.prod(shape)).reshape(shape)
