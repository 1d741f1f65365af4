"""`.safetensors` files, with torchvision's names (timm's `vgg16.tv_in1k` among them) or with our own."""

import os
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.weights.npz import read_own_names
from segnet_jax.weights.stored import StoredTensor
from segnet_jax.weights.torch import read_torchvision_names
from segnet_jax.weights.vgg import VGG

_MAX_HEADER = 1 << 20  # bytes; a VGG's header has some ten thousand


def read(path: Path, encoder: str) -> VGG:
    """Read a `.safetensors` file; its header is checked completely before any tensor is read."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(_MAX_HEADER, os.path.getsize(path) - 8):  # the library would parse up to 100 MB
        raise ValueError(f"claims a header of {length} bytes; at most {_MAX_HEADER} within the file are read")
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: _stored(file, name) for name in file.keys()}  # noqa: SIM118  not a dictionary
            if "conv1_1/kernel" in tensors:
                return read_own_names(tensors, encoder)
            return read_torchvision_names(tensors, encoder, TORCH)
    except SafetensorError as error:
        raise ValueError(f"is damaged: {error}") from None


def _stored(file, name: str) -> StoredTensor:
    part = file.get_slice(name)
    return StoredTensor(tuple(part.get_shape()), partial(_read, file, name, part.get_dtype()))


def _read(file, name: str, dtype: str) -> np.ndarray:
    if dtype == "BF16" or dtype.startswith("F8"):  # numpy has no such types
        raise ValueError(f"tensor {name} has type {dtype}, which is not supported; save it as F32")
    return file.get_tensor(name)
