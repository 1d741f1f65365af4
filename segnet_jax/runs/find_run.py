"""Which run folder a start takes: the one that it goes on with, or a new one, locked against all others."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil

from segnet_jax.config.fields import Config, differences, on_resume
from segnet_jax.config.files import CONFIG_FILE, is_run, read_run
from segnet_jax.data.input_pipeline.cache import in_words
from segnet_jax.runs.run_folder import RESULT_FILE
from segnet_jax.system.errors import RunInUse, UserError
from segnet_jax.system.lock import LOCK_FILE, RunLock

logger = logging.getLogger(__name__)


def find(config: Config, stack: contextlib.ExitStack) -> Config:
    """Looks for the run to go on with: `--run` where it holds one, else the newest unfinished one of the same command.

    Runs that others train in, of other experiments, or of which the config is damaged, are passed over.

    Args:
      config: as the command says.
      stack: keeps the run's lock.

    Returns:
      The config, with `run` and `resume` set where there is such a run.

    Raises:
      UserError: the run is another experiment, or cannot be written to, or `--run` holds something else.
      RunInUse: another process trains in it.
    """
    if config.resume or (config.run and is_run(pathlib.Path(config.run))):
        folder = pathlib.Path(config.run)
        _check_changes(folder, read_run(folder), config)
        stack.enter_context(RunLock(folder))
        return dataclasses.replace(config, resume=True)
    check_free(config)
    if config.run:
        return config
    for folder in _newest_first(config):
        if os.path.lexists(folder / RESULT_FILE):
            continue
        try:
            if differences(read_run(folder), config):
                continue
            stack.enter_context(RunLock(folder, is_named=False))
        except RunInUse:
            continue
        except UserError as error:
            logger.warning(f"{folder} is passed over: {error}")
            continue
        logger.info(f"goes on with {folder}, an unfinished run of the same command (--run FOLDER begins another)")
        return dataclasses.replace(config, run=str(folder), resume=True)
    return config


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
    return [path for path in paths if is_run(path)]


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


def claim_folder(config: Config, stack: contextlib.ExitStack) -> pathlib.Path:
    """Makes the folder of a new run, `--run` or the next free runs/NAME-NUMBER, and locks it as `find` does.

    Raises:
      UserError: if `--run` holds a run or anything else, or cannot be made.
      RunInUse: another start was faster.
    """
    try:
        if config.run:
            folder = pathlib.Path(config.run)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(RunLock(folder))
            if is_run(folder):
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
            stack.enter_context(RunLock(folder))
            return folder
    except OSError as error:
        raise _cannot_make(folder, error.strerror) from None
    raise UserError("runs/ is full; name a folder by --run")
