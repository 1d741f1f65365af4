"""The weights alone, as `.safetensors`: SegNet-Tutorial's names of layers, PyTorch's names and order of their tensors.

They are those of the network as trained, BatchNorm with its running statistics and all, so that it can be trained on.
"""

import pathlib
from typing import Any

import numpy as np

from segnet_jax.exporting.parity import Label
from segnet_jax.exporting.subject import ExportedNetwork

_PARTS = {  # in Flax -> in PyTorch
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def name_of(collection: str, layer: str, part: str) -> str:
    """A variable's name in the file: "conv1_1.weight", "conv1_1_bn.running_mean"."""
    return f"{layer}.{_PARTS[collection, part]}"


def write(subject: ExportedNetwork, path: pathlib.Path) -> None:
    """Writes all variables of the network as trained."""
    from safetensors.numpy import save_file

    tensors = {name_of(*place): _turned(array, (3, 2, 0, 1)) for place, array in _flat(subject.trained).items()}
    save_file(tensors, path, subject.metadata)


def read(subject: ExportedNetwork, path: pathlib.Path) -> Label:
    """Reads a file into the network as trained.

    Raises:
      ValueError: the file holds other tensors than that network has.
    """
    from safetensors.numpy import load_file

    tensors = load_file(path)
    places = {name_of(*place): place for place in _flat(subject.trained)}
    if tensors.keys() != places.keys():
        raise ValueError(f"{path} and the network differ in {sorted(tensors.keys() ^ places.keys())}")
    variables: dict[str, Any] = {}
    for name, (collection, layer, part) in places.items():
        parts = variables.setdefault(collection, {}).setdefault(layer, {})
        parts[part] = _turned(tensors[name], (2, 3, 1, 0))
    return subject.jitted(subject.model.clone(folded=False), variables)


def use(subject: ExportedNetwork, path: pathlib.Path) -> str:
    """How to read the file, in Python."""
    return f"""from safetensors import safe_open
weights = safe_open({str(path)!r}, "pt")  # or "np"
weights.metadata(), {{name: weights.get_tensor(name) for name in weights.keys()}}"""


def _flat(variables: dict[str, Any]) -> dict[tuple[str, str, str], np.ndarray]:
    """(collection, layer, part) -> array."""
    return {
        (collection, layer, part): np.asarray(array)
        for collection, layers in variables.items()
        for layer, parts in layers.items()
        for part, array in parts.items()
    }


def _turned(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """A kernel with its axes in another order; all else as it is."""
    return np.ascontiguousarray(array.transpose(order)) if array.ndim == 4 else array
