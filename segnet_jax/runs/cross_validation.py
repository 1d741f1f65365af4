"""K-fold cross-validation (`train --folds K`): one run per fold in a common folder, and a table of their scores."""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from segnet_jax.config.differences import differences
from segnet_jax.config.fields import Config
from segnet_jax.config.files import is_run, read_run_in
from segnet_jax.metrics.table import METRICS
from segnet_jax.reporting.tables import print_folds
from segnet_jax.runs.find_run import name_of
from segnet_jax.runs.run_folder import RESULT_FILE, read_result
from segnet_jax.system import untrusted_files
from segnet_jax.system.console import echo
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_json

logger = logging.getLogger(__name__)

FOLDS_FILE = "folds.json"
_OWN_NAMES = r"fold-\d+|folds\.json|\.folds\.json\..*\.tmp"


def cross_validate(config: Config, train: Callable[[Config], None]) -> pathlib.Path:
    """Train one run per fold, resuming those that were interrupted; write and print the table of their scores.

    Args:
      config: config with `folds`; its `run` may name the common folder.
      train: function that trains or resumes the run of a config.

    Returns:
      The common folder, with the runs `fold-1` to `fold-K` and `folds.json`.

    Raises:
      UserError: If the config, the data or the folder are invalid.
      ExitError: If a training run ends early; the same command resumes it.
    """
    if config.coordinator:
        raise UserError("--folds trains in one process, got --coordinator: start each fold separately with --fold N")
    folder = _common_folder(config)
    runs = [folder / f"fold-{fold}" for fold in range(1, config.folds + 1)]
    for run in runs:  # training follows a link that `run` names
        untrusted_files.check_folder(folder, run.name)
    for fold, run in enumerate(runs, 1):
        logger.info(f"fold     {fold} of {config.folds}: {run}")
        train(dataclasses.replace(config, run=str(run), fold=fold, resume=False))  # resumes an existing run
    unfinished = [run.name for run in runs if not untrusted_files.is_file(run, RESULT_FILE)]
    if unfinished:  # stopped by --max-steps
        logger.info(f"{folder}: {len(unfinished)} of {config.folds} folds are not finished, so there is no table yet")
        return folder
    table = summarize_folds({run.name: read_result(run) for run in runs})
    atomic_write_json(folder / FOLDS_FILE, table)
    print_folds(table)
    echo(f"each fold is validated on images that its run was not trained on; see {folder}")
    return folder


def summarize_folds(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the scores in the `result.json` of each fold, with mean and sample standard deviation, JSON-serializable.

    Raises:
      UserError: If the results have different classes.
    """
    if len({tuple(result["per_class"]) for result in results.values()}) > 1:
        raise UserError(
            f"the results of {', '.join(results)} have different classes: delete the runs that do not match"
        )
    keys = [key for key in METRICS if all(key in result for result in results.values())]
    rows = {
        name: {"num_images": result["num_images"], "step": result["step"], **{key: result[key] for key in keys}}
        for name, result in results.items()
    }
    classes = next(iter(results.values()))["per_class"]
    ious = {name: [result["per_class"][name]["iou"] for result in results.values()] for name in classes}
    return {
        "folds": rows,
        **_mean_and_deviation({key: [row[key] for row in rows.values()] for key in keys}),
        "iou": _mean_and_deviation(ious),
    }


def _mean_and_deviation(values: dict[str, list[float | None]]) -> dict[str, dict[str, float | None]]:
    """Return the mean and the sample standard deviation of each list, ignoring None; None where undefined."""
    found = {key: np.array([each for each in row if each is not None], np.float64) for key, row in values.items()}
    return {
        "mean": {key: float(row.mean()) if len(row) else None for key, row in found.items()},
        "deviation": {key: float(row.std(ddof=1)) if len(row) > 1 else None for key, row in found.items()},
    }


def _common_folder(config: Config) -> pathlib.Path:
    """Return `--run`, or the first runs/NAME-folds-NUMBER that is free or is unfinished and of the same command.

    Raises:
      UserError: If `--run` is a file or contains anything but folds.
    """
    if config.run:
        folder = pathlib.Path(config.run)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: choose another --run")
        names = os.listdir(folder) if folder.is_dir() else ()
        if is_run(folder) or any(not re.fullmatch(_OWN_NAMES, name) for name in names):
            raise UserError(
                f"{folder} contains other files than folds, and nothing is overwritten: choose another --run"
            )
        return folder
    prefix, number = pathlib.Path("runs") / f"{name_of(config)}-folds", 1
    while (folder := pathlib.Path(f"{prefix}-{number}")).exists():
        if not os.path.lexists(folder / FOLDS_FILE) and _is_of_same_command(folder, config):
            logger.info(f"resuming {folder}, unfinished folds of the same command (use --run FOLDER to start new ones)")
            return folder
        number += 1
    return folder


def _is_of_same_command(folder: pathlib.Path, config: Config) -> bool:
    """Return whether the first fold in a folder has the same settings; a damaged or linked one is skipped."""
    try:
        first = is_run(folder / "fold-1") and read_run_in(folder, "fold-1")
        return bool(first) and not differences(first, dataclasses.replace(config, fold=1))
    except UserError as error:
        logger.warning(f"{folder} is skipped: {error}")
        return False
