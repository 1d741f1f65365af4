"""`.safetensors` files, with torchvision's names (timm's `vgg16.tv_in1k` among them) or with our own."""

from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open

from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.weights.npz import read_own_names
from segnet_jax.weights.torch import read_torchvision_names
from segnet_jax.weights.vgg import VGG, StoredTensor


def read(path: Path, encoder: str) -> VGG:
    """Reads a `.safetensors` file; the library checks that header and data fit each other."""
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {
                name: StoredTensor(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
                for name in file.keys()
            }
            if "conv1_1/kernel" in tensors:
                return read_own_names(tensors, encoder)
            return read_torchvision_names(tensors, encoder, TORCH)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
