"""Ensembles: the networks of several runs, whose probabilities are averaged."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segnet_jax.distributed.data_parallel import Devices
from segnet_jax.inference.network import Network
from segnet_jax.system.errors import UserError, listed
from segnet_jax.system.flag_names import option_of
from segnet_jax.training.custom_objects import NO_OBJECTS, CustomObjects, missing
from segnet_jax.training.network_source import local_folder, read_network_config
from segnet_jax.training.restore_network import BatchNormChoice, CheckpointChoice, restore

logger = logging.getLogger(__name__)

_SPLIT_FIELDS = ("split_rule", "leave_out", "leave_out_train", "val_fraction", "folds", "fold")
# Fields of the config that determine the network's input.
_INPUT_FIELDS = ("image_size", "fit", "image_range", "channels", "image_bits", "multi_label")


def open_others(
    first: tuple[str, Network],
    runs: Sequence[str],
    here: Mapping[str, Any],
    form: Callable[..., Network],
    checkpoint: CheckpointChoice,
    devices: Devices,
    precision: str,
    use_ema: bool = True,
    batch_norm: BatchNormChoice = "run",
    own: CustomObjects = NO_OBJECTS,
) -> tuple[Network, ...]:
    """Restore the networks of other runs.

    Args:
      first: name and network of the first run, which the others must match.
      runs: names of the other runs: run folders, exported folders, or repositories.
      here: fields to override in each run's config.
      form: `network.folded` or `network.unfolded`.
      checkpoint: checkpoint to load from each run.
      devices: devices on which the variables are placed.
      precision: dtype of activations; not "auto".
      use_ema: whether to use averaged (EMA or SWA) variables where a run has them.
      batch_norm: BatchNorm statistics to use; "run": as in each run's config.
      own: custom network, for the runs that were trained with one.

    Raises:
      UserError: If a run does not exist, has no such checkpoint, or does not match the first; or if none of the runs
        needs the network in `own`.
      NoCheckpoint: If no checkpoint of a run is intact.
    """
    folders = list(map(local_folder, runs))
    configs = [dataclasses.replace(read_network_config(folder), **here) for folder in folders]
    if own.model is not None and not any(missing("model", each.own) for each in (first[1].config, *configs)):
        raise UserError(f"no network of {listed([first[0], *runs])} was passed from Python: omit model")
    how = {"devices": devices, "precision": precision, "use_ema": use_ema, "batch_norm": batch_norm}
    own_models = [own if missing("model", config.own) else NO_OBJECTS for config in configs]
    networks = tuple(
        form(restore(folder, config, checkpoint, own=own_model, **how), config)
        for folder, config, own_model in zip(folders, configs, own_models, strict=True)
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
            raise UserError(f"{runs[0]} and {run} cannot be averaged: {difference}; use runs of one dataset and size")


def warn_of_other_splits(runs: Sequence[str], networks: Sequence[Network]) -> None:
    """Warn of runs whose training images may include validation images of the first run."""
    first = networks[0]
    for run, other in zip(runs[1:], networks[1:], strict=True):
        ours, theirs = first.data.get("train"), other.data.get("train")
        is_known = ours is not None and theirs is not None
        changed = [name for name in _SPLIT_FIELDS if getattr(first.config, name) != getattr(other.config, name)]
        if ours == theirs if is_known else not changed:
            continue
        flags = ", ".join(map(option_of, changed))
        how = f"with a different {flags} than {runs[0]}" if changed else f"on other images than {runs[0]}"
        logger.warning(f"{run} was trained {how}: its training images may include images scored here")


def _difference_of_classes(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Describe the first difference between two class tables; "" if they are equal."""
    if len(ours) != len(theirs):
        return f"the first has {len(ours)} classes, the second {len(theirs)}"
    for class_id, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            return f"class {class_id} is {one} in the first and {other} in the second"
    return ""


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
