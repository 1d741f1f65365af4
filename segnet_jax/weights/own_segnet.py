"""Our own `network.safetensors`, as `export --format safetensors` writes it: a SegNet that can be trained on.

Its tensors are the network's variables as trained (BatchNorm is not folded), with SegNet-Tutorial's layer names and
PyTorch's tensor names. Its JSON metadata have the class names, the preprocessing and the settings of the network.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segnet_jax.nn import NETWORKS
from segnet_jax.nn.contract import head_layers
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.weights.containers.stored import StoredTensor, read_numbers
from segnet_jax.weights.safetensors_file import open_checked

_PLACES = {  # (tensor name after the layer's, number of axes) -> (collection, name) in Flax
    ("weight", 4): ("params", "kernel"),
    ("weight", 1): ("params", "scale"),
    ("bias", 1): ("params", "bias"),
    ("running_mean", 1): ("batch_stats", "mean"),
    ("running_var", 1): ("batch_stats", "var"),
}


def head_tensors() -> set[str]:
    """Return the names of the networks' head tensors, of which every such file has one and no VGG has any."""
    return {f"{layer}.weight" for network in NETWORKS.values() for layer in head_layers(network(num_classes=1))}


@dataclass(frozen=True)
class OwnSegNet:
    """Content of a file.

    Attributes:
      settings: config field of the network -> JSON value; not checked.
      classes: class names.
      preprocessing: image preprocessing that the network expects.
      variables: "params" and "batch_stats", float32.
      about: description of the checkpoint, such as "step 7, the best".
    """

    settings: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    variables: dict[str, Any]
    about: str


def names_in(path: Path) -> set[str]:
    """Return the names of a file's tensors.

    Raises:
      ValueError: If it is damaged.
    """
    with open_checked(path) as file:
        return set(file.keys())


def read(path: Path) -> OwnSegNet:
    """Read a file completely.

    Raises:
      ValueError: If it is damaged or does not describe its network.
    """
    with open_checked(path) as file:
        metadata = file.metadata() or {}
        settings = _parsed(metadata, "network", dict)
        classes = tuple(_parsed(metadata, "classes", list))
        if not classes or not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
            raise ValueError("does not list its classes by unique names")
        variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
        for name in file.keys():  # noqa: SIM118, not a dictionary
            stored = StoredTensor(tuple(file.get_slice(name).get_shape()), lambda name=name: file.get_tensor(name))
            layer, _, kind = name.rpartition(".")
            if (kind, len(stored.shape)) not in _PLACES:
                raise ValueError(f"contains the tensor {name} of {len(stored.shape)} axes, which no SegNet has")
            collection, part = _PLACES[kind, len(stored.shape)]
            values = read_numbers(name, stored)
            if values.ndim == 4:
                values = np.ascontiguousarray(values.transpose(2, 3, 1, 0))
            if part == "var" and values.min(initial=0) < 0:
                raise ValueError(f"tensor {name} is a variance but has negative values")
            variables[collection].setdefault(layer, {})[part] = values
    about = f"step {metadata.get('step', 'unknown')}, the {metadata.get('checkpoint', 'exported')}"
    return OwnSegNet(settings, classes, _preprocessing(metadata), variables, about)


def _parsed(metadata: dict[str, str], name: str, kind: type) -> Any:
    try:
        value = json.loads(metadata[name])
        if isinstance(value, kind):
            return value
    except (KeyError, ValueError, RecursionError):
        pass
    raise ValueError(
        f"has no {name} in its metadata, so its network is unknown; export it with "
        "python -m segnet_jax.export RUN --format safetensors"
    )


def _preprocessing(metadata: dict[str, str]) -> Preprocessing:
    preprocessing = _parsed(metadata, "preprocessing", dict)
    values = [preprocessing.get(name) for name in ("mean", "std")]
    if (
        not all(isinstance(each, list) and len(each) == 3 and _are_finite(each) for each in values)
        or min(values[1]) <= 0
    ):
        raise ValueError(
            f"has the preprocessing {preprocessing}, but mean and std must be 3 finite numbers each, std above 0"
        )
    mean, std = (tuple(map(float, each)) for each in values)
    return Preprocessing(mean, std)


def _are_finite(values: list[Any]) -> bool:
    return all(type(each) in (int, float) and abs(each) < float("inf") for each in values)
