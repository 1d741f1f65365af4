"""Find the run folder to resume, or create a new one, and lock it."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil

from segnet_jax.config.differences import differences, refused
from segnet_jax.config.fields import Config
from segnet_jax.config.files import CONFIG_FILE, is_run, read_run
from segnet_jax.runs.default_recipe import OWN_RECIPES
from segnet_jax.runs.run_folder import RESULT_FILE
from segnet_jax.runs.upload import check_upload
from segnet_jax.system.disk import format_bytes
from segnet_jax.system.errors import RunInUse, UserError
from segnet_jax.system.lock import LOCK_FILE, RunLock
from segnet_jax.training.custom_objects import check_given

logger = logging.getLogger(__name__)


def find(config: Config, stack: contextlib.ExitStack) -> Config:
    """Find the run to resume: `--run` if it contains a run, else the newest unfinished run of the same command.

    The search skips runs that are in use, have other settings, or have a damaged config.

    Args:
      config: config from the command line.
      stack: exit stack that holds the run's lock.

    Returns:
      The config, with `run` and `resume` set if there is a run to resume.

    Raises:
      UserError: If the run in `--run` has other settings, or the folder contains other files or cannot be written to.
      RunInUse: If another process is training the run.
    """
    check_upload(config.upload)
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
            logger.warning(f"{folder} is skipped: {error}")
            continue
        logger.info(f"resuming {folder}, an unfinished run of the same command (use --run FOLDER to start a new one)")
        return dataclasses.replace(config, run=str(folder), resume=True)
    return config


def name_of(config: Config) -> str:
    """Return the name of a config's runs without their number: the protocol, or the data folder's for own images."""
    is_own = config.protocol in OWN_RECIPES or not config.protocol
    return pathlib.Path(config.data).resolve().name if is_own else config.protocol


def _newest_first(config: Config) -> list[pathlib.Path]:
    """Return the automatically named runs of this config, highest number first."""
    prefix = f"{name_of(config)}-"
    try:
        names = os.listdir("runs")
    except OSError:  # there is no runs/ yet
        return []
    numbers = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    numbered = [(int(number), name) for name, number in numbers.items() if number.isdecimal()]
    paths = [pathlib.Path("runs") / name for _, name in sorted(numbered, reverse=True)]
    return [path for path in paths if is_run(path)]


def _check_changes(folder: pathlib.Path, old: Config, new: Config) -> None:
    """Check that a run may be resumed with changed settings, some of which need `--override`.

    Raises:
      UserError: If a setting may not change; the message shows old and new values.
    """
    changed = differences(old, new)
    if "own" in changed and not new.override:
        check_given(old.own, new.own, str(folder))
    texts = {name: f"{name} {before} -> {after}" for name, (before, after) in changed.items()}
    start = f"cannot resume {folder} with changed settings"
    if names := refused(changed):
        wrong = ", ".join(texts[name] for name in names)
        raise UserError(f"{start}: {wrong}; omit these flags, or start a new run with another --run")
    if changed and not new.override:
        raise UserError(
            f"{start}: {', '.join(texts.values())}; omit these flags, start a new run with another --run, or add "
            "--override to resume with the change, which is recorded in the run"
        )


def check_free(config: Config) -> None:
    """Check that a new run can be created, before anything is read.

    Raises:
      UserError: If `--run` contains other files, or the folder cannot be written to.
    """
    folder = pathlib.Path(config.run or "runs")
    try:
        if config.run and folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
            raise UserError(f"{folder} is not an empty folder, and nothing is overwritten: choose another --run")
        parent = existing_parent(folder)
    except OSError as error:
        raise _cannot_create(folder, error.strerror) from None
    if not os.access(parent, os.W_OK):
        raise _cannot_create(folder, f"{parent} is not writable")


def check_room(config: Config, num_bytes: int) -> None:
    """Check that checkpoints of `num_bytes` each fit on the run's disk, unless the run waits for disk space.

    Raises:
      UserError: If the checkpoints do not fit.
    """
    count = config.keep_checkpoints + 3  # including one being written, the best and the previous best
    folder = pathlib.Path(config.run or "runs")
    needed, free = count * num_bytes, shutil.disk_usage(existing_parent(folder)).free
    if free < needed and config.on_disk_full != "wait":
        raise UserError(
            f"{count} checkpoints need {format_bytes(needed)}, but only {format_bytes(free)} are free on the disk of "
            f"{folder}; free some space, reduce --keep-checkpoints, or choose another --run",
            kind="no-room",
            file=str(folder),
        )


def existing_parent(folder: pathlib.Path) -> pathlib.Path:
    """Return the folder if it exists, otherwise its closest existing parent."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _cannot_create(folder: pathlib.Path, why: str | None) -> UserError:
    return UserError(f"cannot create the run folder {folder}: {why}; choose another with --run")


def _is_foreign(path: pathlib.Path) -> bool:
    """Return whether a file is not a leftover of a run that was killed during its start."""
    return path.name != LOCK_FILE and not (path.name.startswith(f".{CONFIG_FILE}.") and path.suffix == ".tmp")


def claim_folder(config: Config, stack: contextlib.ExitStack) -> pathlib.Path:
    """Create the folder of a new run, `--run` or the next free runs/NAME-NUMBER, and lock it.

    Raises:
      UserError: If `--run` contains a run or other files, or cannot be created.
      RunInUse: If another process has just created it.
    """
    try:
        if config.run:
            folder = pathlib.Path(config.run)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(RunLock(folder))
            if is_run(folder):
                raise RunInUse(f"another process has just created a run in {folder}: run the command again to resume")
            check_free(config)
            return folder
        for number in range(1, 1_000_000):
            folder = pathlib.Path("runs") / f"{name_of(config)}-{number}"
            try:
                folder.mkdir(parents=True)  # atomic, so that no other process gets the same folder
            except FileExistsError:
                continue
            stack.enter_context(RunLock(folder))
            return folder
    except OSError as error:
        raise _cannot_create(folder, error.strerror) from None
    raise UserError("runs/ is full; choose a folder with --run")
