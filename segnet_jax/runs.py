"""Run folders: which one a command means, what an old one says of itself, and what may go on in it."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from segnet_jax.config import Config, differences, on_resume
from segnet_jax.config_files import read_whole_config
from segnet_jax.datasets.records import DataSet
from segnet_jax.endings import RunInUse
from segnet_jax.errors import UserError, listed
from segnet_jax.files import atomic_write_json, atomic_write_text
from segnet_jax.locking import LOCK_FILE, RunLock
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.pipeline.decoded import in_words
from segnet_jax.reporting.figures import batch_picture
from segnet_jax.reporting.run_folder import environment

CONFIG_FILE, RESULT_FILE = "config.toml", "result.json"
_DATA_FILE, _CHANGES_FILE, _OLD_RESULT_FILE = "data.json", "overrides.json", "result_before.json"


# --- which run ---


def find(config: Config, say: Callable[[str], None], stack: contextlib.ExitStack) -> Config:
    """Looks for the run to go on with: `--run` where it holds one, else the newest unfinished one of the same command.

    Runs that others train in, of other experiments, or of which the config is damaged, are passed over.

    Args:
      config: as the command says.
      say: prints a line.
      stack: keeps the run's lock.

    Returns:
      The config, with `run` and `resume` set where there is such a run.

    Raises:
      UserError: the run is another experiment, or cannot be written to, or `--run` holds something else.
      RunInUse: another process trains in it.
    """
    if config.resume or (config.run and _is_run(pathlib.Path(config.run))):
        folder = pathlib.Path(config.run)
        _check_changes(folder, read_run(folder), config)
        stack.enter_context(RunLock(folder, say))
        return dataclasses.replace(config, resume=True)
    check_free(config)
    if config.run:
        return config
    for folder in _newest_first(config):
        if (folder / RESULT_FILE).exists():
            continue
        try:
            if differences(read_run(folder), config):
                continue
            stack.enter_context(RunLock(folder, say, is_named=False))
        except RunInUse:
            continue
        except UserError as error:
            say(f"warning: {folder} is passed over: {error}")
            continue
        say(f"goes on with {folder}, an unfinished run of the same command (--run FOLDER begins another)")
        return dataclasses.replace(config, run=str(folder), resume=True)
    return config


def _is_run(folder: pathlib.Path) -> bool:
    return os.path.isfile(folder / CONFIG_FILE)  # pathlib's raises for a name that is too long


def _name(config: Config) -> str:
    return config.protocol or pathlib.Path(config.data).resolve().name


def _newest_first(config: Config) -> list[pathlib.Path]:
    """The runs that are named for this config, that of the highest number first."""
    start = f"{_name(config)}-"
    try:
        names = os.listdir("runs")
    except OSError:  # none yet
        return []
    numbers = {name: name.removeprefix(start) for name in names if name.startswith(start)}
    numbered = [(int(number), name) for name, number in numbers.items() if number.isdecimal()]
    paths = [pathlib.Path("runs") / name for _, name in sorted(numbered, reverse=True)]
    return [path for path in paths if _is_run(path)]


def _check_changes(folder: pathlib.Path, old: Config, new: Config) -> None:
    """Refuses to go on with another experiment; what may be overridden is noted in the run where that is wished."""
    changed = differences(old, new)
    told = {name: f"{name} {before} -> {after}" for name, (before, after) in changed.items()}
    refused = [told[name] for name in changed if on_resume(name) == "refused"]
    if refused:
        raise UserError(f"{folder} is another experiment: {', '.join(refused)}; leave these out, or start a new --run")
    if changed and not new.override:
        raise UserError(
            f"{folder} is another experiment: {', '.join(told.values())}; leave these out, start a new --run, or add "
            "--override to go on with the change, which the run then notes"
        )


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


def check_free(config: Config) -> None:
    """Refuses a place where no new run can be made, before anything is read.

    Raises:
      UserError: `--run` holds something else than a run, or nothing can be written there.
    """
    folder = pathlib.Path(config.run or "runs")
    try:
        if config.run and folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
            raise UserError(f"{folder} is not an empty folder: name another --run, nothing is overwritten")
        inside = innermost(folder)
    except OSError as error:
        raise _cannot_make(folder, error.strerror) from None
    if not os.access(inside, os.W_OK):
        raise _cannot_make(folder, f"{inside} cannot be written to")


def check_room(config: Config, num_bytes: int) -> None:
    """Refuses to begin where the run's checkpoints have no room; where room is waited for, that is found out later.

    Args:
      config: of the run.
      num_bytes: of one checkpoint.

    Raises:
      UserError: if so.
    """
    most = config.keep_checkpoints + 3  # with one that is being written, and the best and the one before it
    folder = pathlib.Path(config.run or "runs")
    needed, free = most * num_bytes, shutil.disk_usage(innermost(folder)).free
    if free < needed and config.on_disk_full != "wait":
        raise UserError(
            f"{most} checkpoints need {in_words(needed)}, and {in_words(free)} are free on the disk of {folder}; make "
            "room, keep fewer by --keep-checkpoints, or name another --run",
            kind="no-room",
            file=str(folder),
        )


def innermost(folder: pathlib.Path) -> pathlib.Path:
    """The folder itself, or the innermost one around it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())


def _cannot_make(folder: pathlib.Path, why: str | None) -> UserError:
    return UserError(f"cannot make the run folder {folder}: {why}; name another by --run")


def _is_foreign(path: pathlib.Path) -> bool:
    """Whether a file is none that a start of ours leaves behind when it is killed in its first moment."""
    return path.name != LOCK_FILE and not (path.name.startswith(f".{CONFIG_FILE}.") and path.suffix == ".tmp")


def claim_folder(config: Config, say: Callable[[str], None], stack: contextlib.ExitStack) -> pathlib.Path:
    """Makes the folder of a new run, `--run` or the next free runs/NAME-NUMBER, and locks it as `find` does.

    Raises:
      UserError: if `--run` holds a run or anything else, or cannot be made.
      RunInUse: another start was faster.
    """
    try:
        if config.run:
            folder = pathlib.Path(config.run)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(RunLock(folder, say))
            if _is_run(folder):
                raise RunInUse(
                    f"{folder} holds a run since a moment ago: start the same command again to go on with it"
                )
            check_free(config)
            return folder
        for number in range(1, 1_000_000):
            folder = pathlib.Path("runs") / f"{_name(config)}-{number}"
            try:
                folder.mkdir(parents=True)  # atomic: two starts at once get two folders
            except FileExistsError:
                continue
            stack.enter_context(RunLock(folder, say))
            return folder
    except OSError as error:
        raise _cannot_make(folder, error.strerror) from None
    raise UserError("runs/ is full; name a folder by --run")


def read_run(folder: str | pathlib.Path) -> Config:
    """The config that a run was made with.

    Raises:
      UserError: if there is no such run.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"no run {folder}: there is no such folder")
    if not _is_run(folder):
        raise UserError(f"no run in {folder}: it holds no {CONFIG_FILE}")
    return read_whole_config(folder / CONFIG_FILE)


# --- what is in it ---


def write_first_files(
    folder: pathlib.Path, config: Config, devices: list[str], data_set: DataSet, batch: Mapping[str, np.ndarray]
) -> None:
    """Writes what is known before the first step: config, environment, data, and a picture of the first batch."""
    atomic_write_text(folder / CONFIG_FILE, config.to_toml())
    atomic_write_json(folder / "environment.json", environment(devices))
    atomic_write_json(folder / _DATA_FILE, {name: dict(split.files) for name, split in data_set.splits.items()})
    images, labels = (batch[name].reshape(-1, *batch[name].shape[3:]) for name in ("image", "label"))
    batch_picture(images, labels, data_set.classes, folder / "first_batch.png", "First batch, as the network gets it")


def tidy(folder: pathlib.Path) -> None:
    """Removes what a killed start has left half written; for the process that holds the run's lock."""
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        path.unlink(missing_ok=True)


def put_result_aside(folder: pathlib.Path) -> None:
    """Keeps the result that a finished run had, when it goes on, under another name."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder / RESULT_FILE, folder / _OLD_RESULT_FILE)


def check_resumable(meta: dict[str, Any], identity: dict[str, Any], folder: pathlib.Path, data_set: DataSet) -> None:
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
                f"data of {split} changed: {_changed_files(folder, split, data_set)}"
                for split in sorted(before.keys() | now.keys())
                if before.get(split) != now.get(split)
            )
        raise UserError(f"{folder} is another experiment: {what}; undo the change, or start a new --run")


def _changed_files(folder: pathlib.Path, split: str, data_set: DataSet) -> str:
    """Names the files of a split that are not what they were when the run began."""
    try:
        before = json.loads((folder / _DATA_FILE).read_text(encoding="utf-8"))[split]
    except (OSError, ValueError, KeyError):
        before = {}
    now = data_set.splits[split].files if split in data_set.splits else {}
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


def preprocessing_of(meta: dict[str, Any]) -> Preprocessing:
    """The preprocessing that a checkpoint's network expects."""
    return Preprocessing(**{name: tuple(values) for name, values in meta["preprocessing"].items()})


def class_weights_of(meta: dict[str, Any]) -> np.ndarray:
    """The class weights, float32 [C], that a checkpoint's network was trained with."""
    return np.array(meta["class_weights"], np.float32)
