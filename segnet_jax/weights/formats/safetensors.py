"""VGGs in `.safetensors` files, under our names or torchvision's, which timm's `vgg16.tv_in1k` also uses."""

from functools import partial
from pathlib import Path

import numpy as np

from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.weights.containers.stored_tensors import StoredTensor
from segnet_jax.weights.formats.npz import read_own_names
from segnet_jax.weights.formats.torch import read_torchvision_names
from segnet_jax.weights.safetensors_file import open_checked
from segnet_jax.weights.vgg import VGG


def read(path: Path, encoder: str) -> VGG:
    """Read a `.safetensors` file; the whole header is checked before any tensor is read."""
    with open_checked(path) as file:
        tensors = {name: _stored(file, name) for name in file.keys()}  # noqa: SIM118  not a dictionary
        if "conv1_1/kernel" in tensors:
            return read_own_names(tensors, encoder)
        return read_torchvision_names(tensors, encoder, TORCH)


def _stored(file, name: str) -> StoredTensor:
    part = file.get_slice(name)
    return StoredTensor(tuple(part.get_shape()), partial(_read, file, name, part.get_dtype()))


def _read(file, name: str, dtype: str) -> np.ndarray:
    if dtype == "BF16" or dtype.startswith("F8"):  # numpy has no such types
        raise ValueError(f"tensor {name} has type {dtype}, which is not supported; save it as F32")
    return file.get_tensor(name)
