"""List, verify and delete the checkpoint folders of a run."""

import contextlib
import logging
import math
import os
import pathlib
import re
from typing import Any, Literal

import numpy as np

from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import NoCheckpoint, UserError
from segnet_jax.system.files import atomic_write_json
from segnet_jax.training.manifest import Damaged, NewerFormat, sync_folder, verify

logger = logging.getLogger(__name__)

Which = Literal["newest", "best"]

META = "meta.json"
_LAST = "last.json"
_MAX_JSON_BYTES = 32_000_000  # the largest valid file, with 255 classes, has two million


class CheckpointFolders:
    """The folder `checkpoints` of a run, with `newest/STEP` and `best/STEP`, each with a manifest.

    Symbolic links to or below this folder are not followed, so nothing outside the run's folder is read or changed.

    Args:
      root: the folder; created by the first save.
      keep: number of newest checkpoints to keep.
      max_bytes: size limit of a checkpoint; a larger one counts as damaged.
    """

    def __init__(self, root: pathlib.Path, keep: int, max_bytes: int | None = None):
        self.root, self._keep = root, keep
        self._run, self._max_bytes = root.parent, max_bytes
        self._unreadable: set[pathlib.Path] = set()  # not necessarily damaged: the disk may recover

    def path(self, which: Which, step: int) -> pathlib.Path:
        """Return the folder of a checkpoint, whether it exists or not."""
        return self.root / which / str(step)

    def _name(self, path: pathlib.Path) -> str:
        """Return a path relative to the run's folder, as `untrusted_files` expects it."""
        return path.relative_to(self._run).as_posix()

    def steps(self, which: Which) -> list[int]:
        """Return the sorted steps of all checkpoints, without verifying them.

        Raises:
          UserError: If the folder cannot be listed, or is a symbolic link.
        """
        try:
            names = untrusted_files.names(self._run, self._name(self.root / which))
        except OSError as error:
            raise untrusted_files.unreadable(self.root / which, error) from None
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]{0,14}", name))

    def clean_up(self) -> None:
        """Delete partial folders left by killed processes; call this only in the process that trains in the run."""
        for which in ("newest", "best", "statistics"):
            parent = self._name(self.root / which)
            for name in untrusted_files.names(self._run, parent):
                if name.startswith("."):
                    untrusted_files.remove(self._run, f"{parent}/{name}")

    def delete_after(self, step: int) -> None:
        """Delete checkpoints newer than the resumed step.

        Unreadable ones are moved to the folder `damaged`, because they may be intact.
        """
        for which in ("newest", "best"):
            for folder in (self.path(which, later) for later in self.steps(which) if later > step):
                if folder in self._unreadable:
                    logger.info(f"the {which} checkpoint of step {folder.name}: {self._set_aside(folder)}")
                else:
                    self._remove(folder)
        saved = self._last_saved()
        remaining = {which: [last] if last <= step else self.steps(which)[-1:] for which, last in saved.items()}
        new = {which: steps[0] for which, steps in remaining.items() if steps}
        if new != saved:
            atomic_write_json(self.root / _LAST, new)

    def prune(self) -> None:
        """Delete all checkpoints except the newest few, the latest best, and the best ones that the newest refer to."""
        newest = self.steps("newest")[-self._keep :]
        referenced = set(map(self._best_of, newest))
        for which, keep in (("newest", set(newest)), ("best", {*self.steps("best")[-1:], *referenced})):
            for step in self.steps(which):
                if step not in keep:
                    self._remove(self.path(which, step))

    def _best_of(self, step: int) -> int | None:
        """Return the best step that a newest checkpoint refers to, or None if it cannot be read."""
        with contextlib.suppress(OSError, UserError, NoCheckpoint, TypeError, AttributeError, KeyError):
            return self.meta("newest", step)["best"]["step"]
        return None

    def _remove(self, folder: pathlib.Path) -> None:
        """Delete a checkpoint, renaming it first so that no incomplete folder is ever visible under its name."""
        hidden = self._name(folder.with_name(f".{folder.name}.removed"))
        untrusted_files.remove(self._run, hidden)
        untrusted_files.rename(self._run, self._name(folder), hidden)
        sync_folder(folder.parent)
        untrusted_files.remove(self._run, hidden)

    def _last_saved(self) -> dict[str, int]:
        """Return the last step saved as newest and as best, which reveals missing checkpoints."""
        try:
            last = untrusted_files.read_json(self._run, self._name(self.root / _LAST), most=_MAX_JSON_BYTES)
            return {which: int(last[which]) for which in ("newest", "best") if which in last}
        except (OSError, ValueError, TypeError, OverflowError):
            return {}

    def meta(self, which: Which, step: int) -> dict[str, Any]:
        """Return the JSON metadata of a checkpoint.

        Raises:
          NoCheckpoint: If the metadata is missing or not JSON, even if the manifest is valid.
        """
        folder = self.path(which, step)
        try:
            return untrusted_files.read_json(self._run, self._name(folder / META), most=_MAX_JSON_BYTES)
        except (ValueError, FileNotFoundError) as error:
            raise NoCheckpoint(f"{META} of {folder} cannot be read: {error}") from None

    def set_last_saved(self, which: Which, step: int) -> None:
        """Store the last saved step, so that its loss is detected."""
        atomic_write_json(self.root / _LAST, self._last_saved() | {which: step})

    def find_latest(self, which: Which) -> int | None:
        """Return the latest step whose checkpoint verifies, or None if no checkpoint was ever saved.

        Damaged checkpoints are moved to the folder `damaged`, unreadable ones are left in place, and both are logged.

        Raises:
          NoCheckpoint: If there were checkpoints, but none verifies.
          UserError: If a checkpoint has the format of a later version of this program.
        """
        steps, last = self.steps(which), self._last_saved().get(which)
        is_lost = last is not None and last not in steps
        step = self.find_valid(which)
        if step is None:
            if steps or is_lost or self._is_any_set_aside(which):
                raise NoCheckpoint(
                    f"no intact {which} checkpoint in {self.root}; restore one from a backup, or start a new run in "
                    "another folder (--run)"
                )
            return None
        if is_lost and last > step:
            logger.warning(f"the {which} checkpoint of step {last} is missing")
        if step != steps[-1] or is_lost:
            logger.info(f"using the {which} checkpoint of step {step} instead")
        return step

    def find_intact(self, which: Which) -> int | None:
        """Return the last saved step, or None if there is none, without falling back to an older one or moving folders.

        Raises:
          UserError: If the checkpoint is damaged or missing.
        """
        steps = self.steps(which)
        step = max([*steps, self._last_saved().get(which, -1)], default=-1)
        if step < 0:
            return None
        folder = self.path(which, step)
        try:
            if step not in steps:
                raise Damaged("it is missing")
            verify(folder)
        except (Damaged, NewerFormat, OSError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"the {which} checkpoint of step {step} in {self.root} cannot be used: {why}",
                kind="damaged-checkpoint",
                file=str(folder),
                fix="restore it from a backup, or start from another run or a network.safetensors",
            ) from None
        return step

    def _is_any_set_aside(self, which: Which) -> bool:
        names = untrusted_files.names(self._run, self._name(self.root / "damaged"))
        return any(name.startswith(f"{which}-") for name in names)

    def find_valid(self, which: Which, until: float = math.inf) -> int | None:
        """Return the latest step, at most `until`, whose checkpoint verifies, or None if none does.

        Damaged and unreadable checkpoints are treated as in `find_latest`.

        Raises:
          UserError: If a checkpoint has the format of a later version of this program.
        """
        for step in reversed(self.steps(which)):
            folder = self.path(which, step)
            if step > until:
                continue
            try:
                verify(folder, self._max_bytes)
                return step
            except NewerFormat as error:
                raise UserError(f"{error}: it was written by a newer version of segnet_jax; use that version") from None
            except Damaged as error:
                if os.path.lexists(folder):  # a process that trains in this run may have deleted it
                    aside = self._set_aside(folder)
                    logger.warning(f"the {which} checkpoint of step {step} is damaged: {error}; {aside}")
            except OSError as error:
                self._unreadable.add(folder)
                logger.warning(f"the {which} checkpoint of step {step} cannot be read: {error.strerror or error}")
        return None

    def _set_aside(self, folder: pathlib.Path) -> str:
        """Move a checkpoint to the folder `damaged`; return a text with its new location."""
        aside = self.root / "damaged"
        name = f"{folder.parent.name}-{folder.name}"
        try:
            existing = untrusted_files.names(self._run, self._name(aside))
            free = next(each for each in (name, *(f"{name}-{i}" for i in range(2, 10_000))) if each not in existing)
            untrusted_files.make_folder(self._run, self._name(aside))
            untrusted_files.rename(self._run, self._name(folder), self._name(aside / free))
        except OSError as error:  # for example a read-only folder
            return f"it cannot be moved aside ({error.strerror})"
        return f"moved to {aside / free}"


def preprocessing_of(meta: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing that a checkpoint's network expects."""
    return Preprocessing(**{name: tuple(values) for name, values in meta["preprocessing"].items()})


def class_weights_of(meta: dict[str, Any]) -> np.ndarray:
    """Return the class weights, float32 [C], that a checkpoint's network was trained with."""
    return np.array(meta["class_weights"], np.float32)
