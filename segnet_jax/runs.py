"""Run folders: claiming one for a new run, and what an old one says of itself."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from segnet_jax.config import Config, read_config
from segnet_jax.datasets.labels import ClassTable
from segnet_jax.errors import UserError
from segnet_jax.files import atomic_write_json, atomic_write_text
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.reporting.figures import batch_picture
from segnet_jax.reporting.run_folder import environment

CONFIG_FILE = "config.toml"
RESULT_FILE = "result.json"


def check_free(config: Config) -> None:
    """Refuses a `--run` that holds something.

    Raises:
      UserError: if it holds a run, or anything else.
    """
    folder = pathlib.Path(config.run)
    if config.run and (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} holds a run already: add --resume to go on with it, or name another --run")
    if config.run and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: name another --run, nothing is overwritten")


def claim_folder(config: Config) -> pathlib.Path:
    """Makes the folder of a new run: `--run`, or the next free runs/NAME-NUMBER.

    Raises:
      UserError: if `--run` holds a run or anything else, or cannot be made.
    """
    check_free(config)
    try:
        if config.run:
            folder = pathlib.Path(config.run)
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        name = config.protocol or pathlib.Path(config.data).resolve().name
        for number in range(1, 1_000_000):
            folder = pathlib.Path("runs") / f"{name}-{number}"
            try:
                folder.mkdir(parents=True)  # atomic: two starts at once get two folders
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder}: {error.strerror}; name another by --run") from None
    raise UserError("runs/ is full; name a folder by --run")


def read_run(folder: str | pathlib.Path) -> Config:
    """The config that a run was made with.

    Raises:
      UserError: if there is no such run.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"no run {folder}: there is no such folder")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"no run in {folder}: it holds no {CONFIG_FILE}")
    return read_config(folder / CONFIG_FILE, Config())


def write_first_files(
    folder: pathlib.Path, config: Config, devices: list[str], classes: ClassTable, batch: Mapping[str, np.ndarray]
) -> None:
    """Writes what is known before the first step: config, environment, and a picture of the first batch."""
    atomic_write_text(folder / CONFIG_FILE, config.to_toml())
    atomic_write_json(folder / "environment.json", environment(devices))
    images, labels = (batch[name].reshape(-1, *batch[name].shape[3:]) for name in ("image", "label"))
    batch_picture(images, labels, classes, folder / "first_batch.png", "First batch, as the network gets it")


def check_resumable(meta: dict[str, Any], identity: dict[str, Any], folder: pathlib.Path, total_steps: int) -> None:
    """Holds what a checkpoint says of its training against the training that is to go on from it.

    Raises:
      UserError: if it is finished, or another training: other data, classes or global batch.
    """
    for name, now in identity.items():
        if meta[name] != now:
            raise UserError(f"{folder} is another experiment: {_changes(name, meta[name], now)}")
    if is_finished(meta, total_steps) and (folder / RESULT_FILE).exists():
        raise UserError(f"{folder} is finished: all {total_steps} steps are done; start a new --run for more")


def is_finished(meta: dict[str, Any], total_steps: int) -> bool:
    """Whether the last step is taken and scored."""
    return meta["last"] is not None and meta["last"]["step"] == total_steps


def _changes(name: str, before: Any, now: Any) -> str:
    name = name.replace("_", " ")
    if not isinstance(before, dict):
        return f"{name} {before} -> {now}"
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return f"{name} of {', '.join(changed)} changed since"


def preprocessing_of(meta: dict[str, Any]) -> Preprocessing:
    """The preprocessing that a checkpoint's network expects."""
    return Preprocessing(**{name: tuple(values) for name, values in meta["preprocessing"].items()})


def class_weights_of(meta: dict[str, Any]) -> np.ndarray:
    """The class weights, float32 [C], that a checkpoint's network was trained with."""
    return np.array(meta["class_weights"], np.float32)
