"""Caffe's `.caffemodel`: the VGG authors' own files, read without Caffe.

A NetParameter holds layers, a layer its name and blobs, a blob its shape and numbers; everything else is passed over.
Field numbers are those of BVLC Caffe's `caffe.proto`. Kernels are [out,in,3,3], trained on BGR images less their mean.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np

from segnet_jax.nn.preprocessing import CAFFE
from segnet_jax.weights.protobuf import Span, Wire
from segnet_jax.weights.vgg import VGG, StoredTensor, Table, assemble, conv_channels

_LAYERS = {2: (4, 6), 100: (1, 7)}  # NetParameter's `layers` of 2014 and `layer` of today -> their name, their blobs
_LEGACY_SHAPE, _DATA, _SHAPE, _DOUBLES = (1, 2, 3, 4), 5, 7, 8  # in BlobProto: num channels height width, and so on

UNUSED = {f"{layer}/{blob}" for layer in ("fc6", "fc7", "fc8") for blob in (0, 1)}


def table(encoder: str) -> Table:
    """Layer and number of the blob -> places; Caffe's layers have our names."""
    entries: Table = {}
    for conv in conv_channels(encoder):
        entries[f"{conv}/0"] = (conv, "kernel")
        entries[f"{conv}/1"] = (conv, "bias")
    return entries


def read(path: Path, encoder: str) -> VGG:
    """Reads a `.caffemodel` of either form."""
    wire = Wire(np.memmap(path, np.uint8, mode="r"))
    tensors: dict[str, StoredTensor] = {}
    for number, value in wire.fields(Span(0, wire.data.size)):
        if number in _LAYERS and isinstance(value, Span):
            for name, tensor in _layer(wire, value, *_LAYERS[number]).items():
                if name in tensors:
                    raise ValueError(f"holds the blob {name} twice")
                tensors[name] = tensor
    convs = assemble(tensors, encoder, table, unused=UNUSED, layout="OIHW", channel_order="BGR")
    return VGG(encoder, convs, CAFFE)


def _layer(wire: Wire, layer: Span, name_field: int, blobs_field: int) -> dict[str, StoredTensor]:
    name, blobs = "", []
    for number, value in wire.fields(layer):
        if not isinstance(value, Span):
            continue
        if number == name_field:
            name = wire.data[value.start : value.stop][:80].tobytes().decode("utf-8", errors="replace")
        elif number == blobs_field:
            blobs.append(_blob(wire, value))
    return {f"{name}/{index}": blob for index, blob in enumerate(blobs)}


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
