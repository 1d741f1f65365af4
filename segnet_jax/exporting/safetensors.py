"""Export of the weights as `.safetensors`: SegNet-Tutorial's layer names, PyTorch's tensor names and axis order.

BatchNorm is not folded and keeps its running statistics, so that training can continue from the file.
"""

import pathlib
from typing import Any

import numpy as np

from segnet_jax.exporting.exported_network import ExportedNetwork
from segnet_jax.exporting.parity import PredictFn

_PARTS = {  # Flax name -> PyTorch name
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def name_of(collection: str, layer: str, part: str) -> str:
    """Return a variable's name in the file, such as "conv1_1.weight" or "conv1_1_bn.running_mean"."""
    return f"{layer}.{_PARTS[collection, part]}"


def write(subject: ExportedNetwork, path: pathlib.Path) -> None:
    """Write all variables of the network as trained."""
    from safetensors.numpy import save_file

    tensors = {name_of(*place): _transposed(array, (3, 2, 0, 1)) for place, array in _flat(subject.trained).items()}
    save_file(tensors, path, subject.metadata)


def read(subject: ExportedNetwork, path: pathlib.Path) -> PredictFn:
    """Load a file into the network as trained.

    Raises:
      ValueError: If the file's tensors differ from the network's.
    """
    from safetensors.numpy import load_file

    tensors = load_file(path)
    places = {name_of(*place): place for place in _flat(subject.trained)}
    if tensors.keys() != places.keys():
        raise ValueError(f"{path} and the network differ in the tensors {sorted(tensors.keys() ^ places.keys())}")
    variables: dict[str, Any] = {}
    for name, (collection, layer, part) in places.items():
        parts = variables.setdefault(collection, {}).setdefault(layer, {})
        parts[part] = _transposed(tensors[name], (2, 3, 1, 0))
    return subject.jitted(subject.model.clone(folded=False), variables)


def use(subject: ExportedNetwork, path: pathlib.Path) -> str:
    """Return Python code that reads the file."""
    return f"""from safetensors import safe_open
weights = safe_open({str(path)!r}, "pt")  # or "np"
weights.metadata(), {{name: weights.get_tensor(name) for name in weights.keys()}}"""


def _flat(variables: dict[str, Any]) -> dict[tuple[str, str, str], np.ndarray]:
    """Flatten variables to (collection, layer, part) -> array."""
    return {
        (collection, layer, part): np.asarray(array)
        for collection, layers in variables.items()
        for layer, parts in layers.items()
        for part, array in parts.items()
    }


def _transposed(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Transpose kernels; return other arrays unchanged."""
    return np.ascontiguousarray(array.transpose(order)) if array.ndim == 4 else array
