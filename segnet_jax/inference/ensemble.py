"""Ensembles: the networks of several runs, whose probabilities are averaged."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segnet_jax.distributed.data_parallel import Devices
from segnet_jax.inference.network import Network
from segnet_jax.system.errors import UserError
from segnet_jax.system.flag_names import option_of
from segnet_jax.training.network_source import local_folder, read_network_config
from segnet_jax.training.restored import CheckpointChoice, restore

logger = logging.getLogger(__name__)

_SPLIT_FIELDS = ("split_rule", "leave_out", "leave_out_train", "val_fraction", "folds", "fold")
# Fields of the config that determine the network's input.
_INPUT_FIELDS = ("image_size", "fit", "image_range", "channels", "image_bits")


def open_others(
    first: tuple[str, Network],
    runs: Sequence[str],
    here: Mapping[str, Any],
    form: Callable[..., Network],
    checkpoint: CheckpointChoice,
    devices: Devices,
    precision: str,
    use_ema: bool = True,
) -> tuple[Network, ...]:
    """Restore the networks of other runs, each with its own stored BatchNorm statistics unless `here` says otherwise.

    Args:
      first: name and network of the first run, which the others must fit.
      runs: names of the others: run folders, exported folders, or repositories.
      here: fields that replace those of each run's config.
      form: `network.folded` or `network.unfolded`.
      checkpoint: checkpoint to load of each.
      devices: devices on which the variables are placed.
      precision: dtype of activations; not "auto".
      use_ema: use the EMA of the variables where there is one.

    Raises:
      UserError: If a run does not exist, has no such checkpoint, or does not fit the first.
      NoCheckpoint: If no checkpoint of a run is intact.
    """
    folders = list(map(local_folder, runs))
    configs = [dataclasses.replace(read_network_config(folder), **here) for folder in folders]
    networks = tuple(
        form(restore(folder, config, checkpoint, devices, precision, use_ema), config)
        for folder, config in zip(folders, configs, strict=True)
    )
    check_members((first[0], *runs), (first[1], *networks))
    return networks


def check_members(runs: Sequence[str], networks: Sequence[Network]) -> None:
    """Check that the networks of several runs have the same classes and the same input.

    Args:
      runs: names of the runs, for the message.
      networks: their networks.

    Raises:
      UserError: If they differ; the message names the first difference.
    """
    first = networks[0]
    for run, other in zip(runs[1:], networks[1:], strict=True):
        difference = _difference_of_classes(first.class_names, other.class_names)
        for name in _INPUT_FIELDS:
            ours, theirs = getattr(first.config, name), getattr(other.config, name)
            if not difference and ours != theirs:
                difference = f"{option_of(name)} is {_text(ours)} in the first and {_text(theirs)} in the second"
        if difference:
            raise UserError(f"{runs[0]} and {run} cannot be averaged: {difference}; name runs of one dataset and size")


def warn_of_other_splits(runs: Sequence[str], networks: Sequence[Network]) -> None:
    """Warn of runs whose training images may be among the images that the first run validates on."""
    first = networks[0]
    for run, other in zip(runs[1:], networks[1:], strict=True):
        if changed := [name for name in _SPLIT_FIELDS if getattr(first.config, name) != getattr(other.config, name)]:
            flags = ", ".join(map(option_of, changed))
            logger.warning(f"{run} has another {flags} than {runs[0]}: it may have been trained on images scored here")


def _difference_of_classes(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Return how two class tables differ, or ""."""
    if len(ours) != len(theirs):
        return f"the first has {len(ours)} classes, the second {len(theirs)}"
    for class_id, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            return f"class {class_id} is {one} in the first and {other} in the second"
    return ""


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
