"""Networks in `network.safetensors`, written by `export --format safetensors`, that can be trained further.

The tensors are the network's variables as trained (BatchNorm is not folded), with SegNet-Tutorial's layer names and
PyTorch's tensor names. The JSON metadata contain the class names, the preprocessing and the network's settings.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segnet_jax.constants import MAX_CHANNELS
from segnet_jax.nn import NETWORKS
from segnet_jax.nn.network_interface import head_layers
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.weights.containers.stored_tensors import StoredTensor, read_numbers
from segnet_jax.weights.safetensors_file import open_checked

_FLAX_NAMES = {  # (tensor name after the layer name, number of axes) -> (collection, variable) in Flax
    ("weight", 4): ("params", "kernel"),
    ("weight", 1): ("params", "scale"),
    ("bias", 1): ("params", "bias"),
    ("running_mean", 1): ("batch_stats", "mean"),
    ("running_var", 1): ("batch_stats", "var"),
}


def head_tensors() -> set[str]:
    """Return the names of all networks' head tensors; every such file has one of them, and no VGG has any."""
    return {f"{layer}.weight" for network in NETWORKS.values() for layer in head_layers(network(num_classes=1))}


_MAX_CLASSES, _MAX_NAME_LENGTH = 255, 100  # as in checkpoints


@dataclass(frozen=True)
class Description:
    """The description of the network in a file's metadata.

    Attributes:
      settings: config field of the network -> JSON value, not validated.
      reading: config field for reading images and labels -> JSON value, not validated.
      classes: class names.
      colors: RGB 0..255 of each class, their number not validated; None if the file has none.
      preprocessing: image preprocessing that the network expects.
      class_weights: class weights of the loss, their number not validated; None if the file has none.
      labels: JSON of the run's label rule, not validated; None without one.
      step: training step; 0 if unknown.
      checkpoint: "best" or "newest"; "" if unknown.
    """

    settings: dict[str, Any]
    reading: dict[str, Any]
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] | None
    preprocessing: Preprocessing
    class_weights: tuple[float, ...] | None
    labels: Any
    step: int
    checkpoint: str


@dataclass(frozen=True)
class ExportedSegNet:
    """An exported SegNet.

    Attributes:
      description: description of the network.
      variables: "params" and "batch_stats", float32.
      about: the exported checkpoint, such as "step 7, the best".
    """

    description: Description
    variables: dict[str, Any]
    about: str


def names_in(path: Path) -> set[str]:
    """Return the names of a file's tensors.

    Raises:
      ValueError: If the file is damaged.
    """
    with open_checked(path) as file:
        return set(file.keys())


def describe(path: Path) -> Description:
    """Read the description of the network in a file, without the tensors.

    Raises:
      ValueError: If the file is damaged or does not describe its network.
    """
    with open_checked(path) as file:
        return _description(file.metadata() or {})


def read(path: Path) -> ExportedSegNet:
    """Read the metadata and tensors of a file.

    Raises:
      ValueError: If the file is damaged or does not describe its network.
    """
    with open_checked(path) as file:
        metadata = file.metadata() or {}
        description = _description(metadata)
        variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
        for name in file.keys():  # noqa: SIM118, not a dictionary
            stored = StoredTensor(tuple(file.get_slice(name).get_shape()), lambda name=name: file.get_tensor(name))
            layer, _, kind = name.rpartition(".")
            if (kind, len(stored.shape)) not in _FLAX_NAMES:
                raise ValueError(f"contains the tensor {name} with {len(stored.shape)} axes, which no SegNet has")
            collection, part = _FLAX_NAMES[kind, len(stored.shape)]
            values = read_numbers(name, stored)
            if values.ndim == 4:
                values = np.ascontiguousarray(values.transpose(2, 3, 1, 0))
            if part == "var" and values.min(initial=0) < 0:
                raise ValueError(f"tensor {name} is a variance but has negative values")
            variables[collection].setdefault(layer, {})[part] = values
    about = f"step {metadata.get('step', 'unknown')}, the {metadata.get('checkpoint', 'exported')}"
    return ExportedSegNet(description, variables, about)


def _description(metadata: dict[str, str]) -> Description:
    settings = _parsed(metadata, "network", dict)
    classes = tuple(_parsed(metadata, "classes", list))
    if not 1 <= len(classes) <= _MAX_CLASSES or not all(map(_is_name, classes)) or len(set(classes)) < len(classes):
        raise ValueError(f"must name 1 to {_MAX_CLASSES} classes by unique printable names")
    colors = weights = None
    if "colors" in metadata:
        colors = tuple(_parsed(metadata, "colors", list))
        if not all(map(_is_color, colors)):
            raise ValueError("has a class color that is not three integers from 0 to 255")
    if "class_weights" in metadata:
        weights = tuple(_parsed(metadata, "class_weights", list))
        if not _are_finite(weights) or min(weights, default=0) < 0:
            raise ValueError("has a class weight that is negative or not a finite number")
    step, checkpoint = metadata.get("step", "0"), metadata.get("checkpoint", "")
    return Description(
        settings=settings,
        reading=_parsed(metadata, "reading", dict) if "reading" in metadata else {},
        classes=classes,
        colors=colors and tuple(map(tuple, colors)),
        preprocessing=_preprocessing(metadata),
        class_weights=weights,
        labels=_parsed(metadata, "labels", dict) if "labels" in metadata else None,
        step=int(step) if re.fullmatch("[0-9]{1,15}", step) else 0,
        checkpoint=checkpoint if checkpoint in ("best", "newest") else "",
    )


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= _MAX_NAME_LENGTH and name.isprintable()


def _is_color(color: Any) -> bool:
    return isinstance(color, list) and len(color) == 3 and all(type(each) is int and 0 <= each <= 255 for each in color)


def _parsed(metadata: dict[str, str], name: str, kind: type) -> Any:
    try:
        value = json.loads(metadata[name])
        if isinstance(value, kind):
            return value
    except (KeyError, ValueError, RecursionError):
        pass
    raise ValueError(
        f"has no valid {name} in its metadata, so its network is unknown; export it with "
        "python -m segnet_jax.export RUN --format safetensors"
    )


def _preprocessing(metadata: dict[str, str]) -> Preprocessing:
    preprocessing = _parsed(metadata, "preprocessing", dict)
    values = [preprocessing.get(name) for name in ("mean", "std")]
    if (
        not all(isinstance(each, list) and 1 <= len(each) <= MAX_CHANNELS and _are_finite(each) for each in values)
        or len(values[0]) != len(values[1])
        or min(values[1]) <= 0
    ):
        raise ValueError(
            f"has the preprocessing {preprocessing}; it needs a finite mean and std per channel, with std above 0"
        )
    mean, std = (tuple(map(float, each)) for each in values)
    return Preprocessing(mean, std)


def _are_finite(values: Sequence[Any]) -> bool:
    return all(type(each) in (int, float) and abs(each) < float("inf") for each in values)
