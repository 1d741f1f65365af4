"""Run folders: what one says of itself, and what may go on in it; `find_run` tells which one a start takes."""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from segnet_jax.config.fields import Config, differences
from segnet_jax.config.files import CONFIG_FILE, read_run
from segnet_jax.data.dataset import Dataset
from segnet_jax.reporting.environment import environment
from segnet_jax.reporting.evaluations import DATASET_FILE
from segnet_jax.reporting.evaluations import FOLDER as EVALUATIONS
from segnet_jax.reporting.figures import batch_picture
from segnet_jax.system.errors import UserError, listed
from segnet_jax.system.files import atomic_write_json, atomic_write_text

RESULT_FILE = "result.json"
_DATA_FILE, _CHANGES_FILE, _OLD_RESULT_FILE = "data.json", "overrides.json", "result_before.json"


def write_first_files(
    folder: pathlib.Path, config: Config, devices: list[str], dataset: Dataset, batch: Mapping[str, np.ndarray]
) -> None:
    """Writes what is known before the first step: config, environment, data, and a picture of the first batch."""
    atomic_write_text(folder / CONFIG_FILE, config.to_toml())
    atomic_write_json(folder / "environment.json", environment(devices))
    atomic_write_json(folder / _DATA_FILE, {name: dict(split.files) for name, split in dataset.splits.items()})
    images, labels = (batch[name].reshape(-1, *batch[name].shape[3:]) for name in ("image", "label"))
    batch_picture(images, labels, dataset.classes, folder / "first_batch.png", "First batch, as the network gets it")


def tidy(folder: pathlib.Path) -> None:
    """Removes what a killed start has left half written; for the process that holds the run's lock."""
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        path.unlink(missing_ok=True)


def note_overrides(folder: pathlib.Path, config: Config, step: int) -> None:
    """Writes down what an overridden recipe changes from this step on, and makes it the run's own."""
    changed = differences(read_run(folder), config)
    if not changed:
        return
    note = {"step": step, "changes": {name: {"old": old, "new": new} for name, (old, new) in changed.items()}}
    atomic_write_json(folder / _CHANGES_FILE, [*overrides(folder), note])
    atomic_write_text(folder / CONFIG_FILE, config.to_toml())


def overrides(folder: pathlib.Path) -> list[dict[str, Any]]:
    """What was changed in a run on the way: {"step", "changes": {name: {"old", "new"}}}, in order."""
    path = folder / _CHANGES_FILE
    try:
        noted = json.loads(path.read_bytes()) if path.is_file() else []
        if all(type(note["step"]) is int and isinstance(note["changes"], dict) for note in noted):
            return list(noted)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise UserError(f"{path} is damaged: restore the file, or delete it and forget what was changed")


def put_result_aside(folder: pathlib.Path) -> None:
    """Keeps the result that a finished run had, when it goes on, under another name."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder / RESULT_FILE, folder / _OLD_RESULT_FILE)


def check_resumable(meta: dict[str, Any], identity: dict[str, Any], folder: pathlib.Path, dataset: Dataset) -> None:
    """Holds what a checkpoint says of its training against the training that is to go on from it.

    Raises:
      UserError: if it is another training: other data, classes, global batch or precision.
    """
    for name, now in identity.items():
        before = meta[name]
        if before == now:
            continue
        what = f"{name.replace('_', ' ')} {before} -> {now}"
        if name == "data":
            what = "; ".join(
                f"data of {split} changed: {_changed_files(folder, split, dataset)}"
                for split in sorted(before.keys() | now.keys())
                if before.get(split) != now.get(split)
            )
        raise UserError(f"{folder} is another experiment: {what}; undo the change, or start a new --run")


def _changed_files(folder: pathlib.Path, split: str, dataset: Dataset) -> str:
    """Names the files of a split that are not what they were when the run began."""
    try:
        before = json.loads((folder / _DATA_FILE).read_text(encoding="utf-8"))[split]
    except (OSError, ValueError, KeyError):
        before = {}
    now = dataset.splits[split].files if split in dataset.splits else {}
    changed = [
        f"{name} {'is gone' if name not in now else 'is new' if name not in before else 'differs'}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    return listed(changed) if changed else "its records are others, or in another order"


def steps_of_result(folder: pathlib.Path) -> int | None:
    """The steps of the training that a run's result is of; None where it has none that can be read.

    It tells whether all is done: the last checkpoint does not, where the training was stopped while that was scored.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        return json.loads((folder / RESULT_FILE).read_bytes()).get("num_steps")


def is_finished(meta: dict[str, Any], total_steps: int) -> bool:
    """Whether the last step is taken and scored."""
    return meta["last"] is not None and meta["last"]["step"] == total_steps


def num_training_images(folder: str | pathlib.Path) -> int | None:
    """How many images a run trains on, as it notes at its first evaluation; None where it has not."""
    try:
        number = json.loads((pathlib.Path(folder) / EVALUATIONS / DATASET_FILE).read_bytes())["num_images"]["train"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return number if type(number) is int and number > 0 else None
