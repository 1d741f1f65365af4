"""`.safetensors` files, with torchvision's names (timm's `vgg16.tv_in1k` among them) or with our own.

The file is the length of its header, the header as JSON, and the numbers of all tensors, one behind the other.
Source: the format's description in the README of github.com/huggingface/safetensors.
"""

import json
import math
import os
from functools import partial
from pathlib import Path

import numpy as np

from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.weights.containers.stored import StoredTensor
from segnet_jax.weights.formats.npz import read_own_names
from segnet_jax.weights.formats.torch import read_torchvision_names
from segnet_jax.weights.vgg import VGG

_HEADER_BYTES = 1 << 20  # of a VGG's header there are some ten thousand
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def read(path: Path, encoder: str) -> VGG:
    """Reads a `.safetensors` file; its header is checked whole before anything is read."""
    tensors = _tensors(path)
    if "conv1_1/kernel" in tensors:
        return read_own_names(tensors, encoder)
    return read_torchvision_names(tensors, encoder, TORCH)


def _tensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors; together they must be what lies behind the header, without a gap or an overlap."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_HEADER_BYTES, size - 8):
            raise ValueError(f"claims a header of {length} bytes: at most {_HEADER_BYTES}, in a file of {size}")
        header = _parse(file.read(length))
    start = end = 8 + length
    tensors: dict[str, StoredTensor] = {}
    spans = {name: _span(name, entry) for name, entry in header.items() if name != "__metadata__"}
    for name, (dtype, shape, first, last) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if start + first != end or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name} of shape {shape} lies at {first} to {last}: a gap, an overlap, or too few")
        end = start + last
        tensors[name] = StoredTensor(shape, partial(_read, path, name, dtype, shape, start + first))
    if end != size:
        raise ValueError(f"is cut off or damaged: its tensors end at byte {end} of {size}")
    return tensors


def _parse(header: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(header.decode(), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("the header is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("the header is no dictionary of tensors")
    return parsed


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("the header has a name twice")
    return entries


def _span(name: str, entry: object) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """A tensor's type, shape, and where it begins and ends behind the header."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [first, last], **rest} if not rest:
            if dtype not in _DTYPES:
                raise ValueError(f"tensor {name} holds {dtype}, which is not read here: save it as F32")
            if len(shape) <= 8 and all(type(count) is int and 0 <= count < 1 << 40 for count in (*shape, first, last)):
                return np.dtype(_DTYPES[dtype]), tuple(shape), first, last
    raise ValueError(f"tensor {name} is not described by dtype, shape and data_offsets alone")


def _read(path: Path, name: str, dtype: np.dtype, shape: tuple[int, ...], start: int) -> np.ndarray:
    num_bytes = math.prod(shape) * dtype.itemsize
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(num_bytes)
    if len(data) != num_bytes:
        raise ValueError(f"tensor {name} is cut off")
    return np.frombuffer(data, dtype).reshape(shape)
