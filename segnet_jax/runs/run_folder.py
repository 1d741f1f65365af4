"""Read and write the files of a run folder, and check that training may resume in it."""

import contextlib
import os
import pathlib
import stat
from collections.abc import Mapping
from typing import Any

import numpy as np

from segnet_jax.config.differences import differences
from segnet_jax.config.fields import Config
from segnet_jax.config.files import CONFIG_FILE, read_run
from segnet_jax.data.dataset import Dataset
from segnet_jax.data.labels.label_mapping import StoredLabels, labels_from_json
from segnet_jax.metrics.table import METRICS
from segnet_jax.reporting.environment import environment
from segnet_jax.reporting.evaluations import DATASET_FILE
from segnet_jax.reporting.evaluations import FOLDER as EVALUATIONS
from segnet_jax.reporting.figures import batch_picture
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import UserError, listed, shown
from segnet_jax.system.files import atomic_write_json, atomic_write_text
from segnet_jax.training.experiment_check import CHANGES_FILE, overrides
from segnet_jax.training.network_source import exported_labels, is_exported

RESULT_FILE = "result.json"
LABELS_FILE = "labels.json"
"""The label rule with which the run's labels are read, resolved from its read options."""

_SCORES = ("miou", "mean_accuracy", "global_accuracy")  # in every result, including those of older versions
_DATA_FILE, _OLD_RESULT_FILE = "data.json", "result_before.json"
_MAX_BYTES = 4_000_000  # of a label rule, which may have 65,536 values and as many colors


def write_first_files(
    folder: pathlib.Path, config: Config, devices: list[str], dataset: Dataset, batch: Mapping[str, np.ndarray]
) -> None:
    """Write the files of a new run: config, environment, data, label rule, and a picture of the first batch."""
    atomic_write_text(folder / CONFIG_FILE, config.to_toml())
    atomic_write_json(folder / "environment.json", environment(devices))
    atomic_write_json(folder / _DATA_FILE, {name: dict(split.files) for name, split in dataset.splits.items()})
    if dataset.label_rule is not None:
        stored = StoredLabels(dataset.classes, dataset.label_rule)
        atomic_write_json(folder / LABELS_FILE, stored.as_json())
    images, labels = (batch[name].reshape(-1, *batch[name].shape[3:]) for name in ("image", "label"))
    batch_picture(images, labels, dataset.classes, folder / "first_batch.png", "First batch, as the network gets it")


def labels_of(folder: str | pathlib.Path) -> StoredLabels | None:
    """Read the classes and the label rule stored in a run or in an exported network.

    Returns:
      The classes and the label rule; None for a run of an older version, or of data without label files.

    Raises:
      UserError: If the file is damaged, a link, or too large.
    """
    if is_exported(folder):
        return exported_labels(folder)
    try:
        if not untrusted_files.is_file(folder, LABELS_FILE):
            return None
        return labels_from_json(untrusted_files.read_json(folder, LABELS_FILE, _MAX_BYTES))
    except (OSError, ValueError) as error:
        path = shown(os.path.join(folder, LABELS_FILE))
        raise UserError(
            f"{path} is damaged ({error}): restore it, or delete it and pass the read options again"
        ) from None


def clean_up(folder: pathlib.Path) -> None:
    """Delete temporary files left by a killed process; the caller must hold the run's lock."""
    inner = [f"{name}/" for name in untrusted_files.names(folder) if _is_folder(folder, name)]
    for parent in ("", *inner):
        for name in untrusted_files.names(folder, parent):
            if name.startswith(".") and name.endswith(".tmp") and not _is_folder(folder, parent + name):
                untrusted_files.remove(folder, parent + name)


def _is_folder(folder: pathlib.Path, name: str) -> bool:
    status = untrusted_files.status(folder, name)
    return status is not None and stat.S_ISDIR(status.st_mode)


def record_overrides(folder: pathlib.Path, config: Config, step: int) -> None:
    """Append the settings that change after this step to `overrides.json`, and rewrite the run's config."""
    changed = differences(read_run(folder), config)
    if not changed:
        return
    entry = {"step": step, "changes": {name: {"old": old, "new": new} for name, (old, new) in changed.items()}}
    atomic_write_json(folder / CHANGES_FILE, [*overrides(folder), entry])
    atomic_write_text(folder / CONFIG_FILE, config.to_toml())


def set_result_aside(folder: pathlib.Path) -> None:
    """Rename the result of a finished run before its training continues."""
    with contextlib.suppress(FileNotFoundError):
        untrusted_files.rename(folder, RESULT_FILE, _OLD_RESULT_FILE)


def check_resumable(meta: dict[str, Any], identity: dict[str, Any], folder: pathlib.Path, dataset: Dataset) -> None:
    """Check that data, classes, global batch size and precision of a checkpoint match those of the resumed run.

    Raises:
      UserError: If one differs.
    """
    for name, now in identity.items():
        before = meta[name]
        if before == now:
            continue
        difference = f"{name.replace('_', ' ')} {before} -> {now}"
        if name == "data":
            difference = "; ".join(
                f"data of {split} changed: {_changed_files(folder, split, dataset)}"
                for split in sorted(before.keys() | now.keys())
                if before.get(split) != now.get(split)
            )
        raise UserError(
            f"{folder} cannot be resumed: {difference}; undo the change, or start a new run with another --run"
        )


def _changed_files(folder: pathlib.Path, split: str, dataset: Dataset) -> str:
    """List the files of a split that have changed since the run started."""
    try:
        before = dict(untrusted_files.read_json(folder, _DATA_FILE)[split])
    except (OSError, ValueError, KeyError, TypeError):
        before = {}
    now = dataset.splits[split].files if split in dataset.splits else {}
    changed = [
        f"{name} {'is missing' if name not in now else 'is new' if name not in before else 'differs'}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    return listed(changed) if changed else "different samples, or a different order"


def read_result(folder: pathlib.Path) -> dict[str, Any]:
    """Read the result of a finished run, and check all values that this package uses.

    Raises:
      UserError: If the file is a link, cannot be read, or is damaged.
    """
    try:
        result = untrusted_files.read_json(folder, RESULT_FILE)
        why = _fault_of(result) if isinstance(result, dict) else "it is not a JSON object"
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
    if why:
        path = shown(os.path.join(folder, RESULT_FILE))
        raise UserError(f"{path} is damaged ({shown(why)[:200]}): restore it, or delete it and resume the run")
    return result


def _fault_of(result: dict[str, Any]) -> str:
    """Return a description of a result's first fault, or ""."""
    if missing := [key for key in (*_SCORES, "per_class", "num_images", "step") if key not in result]:
        return f"it has no {missing[0]}"
    rows = result["per_class"]
    if not isinstance(rows, dict) or not all(isinstance(row, dict) and "iou" in row for row in rows.values()):
        return "per_class does not map each class to its iou"
    scores = {key: result.get(key) for key in METRICS} | {f"iou of {name}": row["iou"] for name, row in rows.items()}
    for key, value in scores.items():
        if value is not None and not (type(value) in (int, float) and 0 <= value <= 1):
            return f"{key} is {value!r}, not a number from 0 to 1"
    for key, kinds in (("num_images", (int,)), ("step", (int,)), ("seconds", (int, float))):
        if not (type(value := result.get(key, 0)) in kinds and 0 <= value < 2**63):
            return f"{key} is {value!r}, not a number"
    split = result.get("split")
    return "" if split in (None, "train", "val", "test") else f"split is {split!r}, not train, val or test"


def steps_of_result(folder: pathlib.Path) -> int | None:
    """Return the number of steps of a run's result, or None if there is no readable result.

    Only the result shows that a run is complete: training may have been stopped during the last evaluation.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return untrusted_files.read_json(folder, RESULT_FILE).get("num_steps")
    return None


def num_training_images(folder: str | pathlib.Path) -> int | None:
    """Return the number of a run's training images, or None before its first evaluation."""
    try:
        number = untrusted_files.read_json(folder, f"{EVALUATIONS}/{DATASET_FILE}")["num_images"]["train"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return number if type(number) is int and number > 0 else None
