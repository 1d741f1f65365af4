"""Loggers that send a run's numbers and pictures to other services, one module for each service.

To add one, add a class with the methods of `Logger` to `LOGGERS`, and its name to `config.flag_specs.Loggers`.
"""

import importlib.util
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from segnet_jax.reporting.loggers.mlflow_logger import MlflowLogger
from segnet_jax.reporting.loggers.wandb_logger import WandbLogger
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_json


class Logger(Protocol):
    """The interface of a logger. If it raises an error, the error is logged and the logger is no longer used.

    Attributes:
      run_id: id of the run in the service, under which a resumed run continues.
    """

    run_id: str

    def describe(self, hyperparameters: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Store the class names and the settings that differ from the defaults (numbers, booleans and strings)."""

    def numbers(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Log finite numbers of kind "train" or "val"; names may contain slashes, as in "iou/Sky"."""

    def picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Log a PNG file; called from the drawing thread."""

    def close(self) -> None:
        """Send all remaining data."""


LOGGERS: dict[str, Callable[[pathlib.Path, str], Logger]] = {"wandb": WandbLogger, "mlflow": MlflowLogger}
"""Value of `--logger`, which is also the name of the required package -> function (run folder, run_id) -> logger."""

_IDS_FILE = "loggers.json"


def check_installed(names: Sequence[str]) -> None:
    """Check that the packages of loggers are installed; they are imported later, which takes seconds.

    Raises:
      UserError: If a package is missing; the message contains the command that installs it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--logger {name} needs the package {name}, which is not installed: pip install {name}")


def open_loggers(names: Sequence[str], folder: pathlib.Path) -> list[Logger]:
    """Open loggers, with the ids stored in the folder if the run is resumed.

    Raises:
      UserError: If a logger cannot start.
    """
    if not names:
        return []
    ids = _read_ids(folder)
    ids |= {name: uuid.uuid4().hex for name in names if name not in ids}
    opened = {}
    for name in dict.fromkeys(names):
        try:
            opened[name] = LOGGERS[name](folder, ids[name])
        except Exception as error:  # no account, or no server
            why = " ".join(str(error).split())
            raise UserError(f"--logger {name} cannot start: {why}; correct this, or omit the logger") from error
    atomic_write_json(folder / _IDS_FILE, ids | {name: each.run_id for name, each in opened.items()})
    return list(opened.values())


def _read_ids(folder: pathlib.Path) -> dict[str, str]:
    try:
        found = untrusted_files.read_json(folder, _IDS_FILE) if os.path.lexists(folder / _IDS_FILE) else {}
        ids = {name: found[name] for name in LOGGERS if name in found}
        if all(isinstance(each, str) and re.fullmatch("[0-9a-f]{32}", each) for each in ids.values()):
            return ids
    except (OSError, ValueError, TypeError):
        pass
    raise UserError(f"{folder / _IDS_FILE} is damaged: delete it to start new runs in the loggers")
