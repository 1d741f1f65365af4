"""The folders that a run's checkpoints stand in: which are there, which are whole, which may go."""

import contextlib
import logging
import math
import os
import pathlib
import re
from typing import Any, Literal

import numpy as np

from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.system import confined
from segnet_jax.system.errors import NoCheckpoint, UserError
from segnet_jax.system.files import atomic_write_json
from segnet_jax.training.manifest import Damaged, NewerFormat, sync_folder, verify

logger = logging.getLogger(__name__)

Which = Literal["newest", "best"]

META = "meta.json"
_LAST = "last.json"
_MOST_BYTES = 32_000_000  # of a JSON file beside the arrays; with 255 classes ours has two million


class CheckpointFolders:
    """The folder `checkpoints` of a run, with `newest/STEP` and `best/STEP`, each a sealed folder.

    Neither it nor anything below it may be a link: what is read, moved or removed lies in the folder around it.

    Args:
      root: the folder; it need not be there yet.
      keep: how many of the newest to keep.
      most_bytes: that a checkpoint may have; a larger one counts as damaged.
    """

    def __init__(self, root: pathlib.Path, keep: int, most_bytes: int | None = None):
        self.root, self._keep = root, keep
        self._around, self._most_bytes = root.parent, most_bytes
        self._unread: set[pathlib.Path] = set()  # that could not be read, which does not tell whether they are whole

    def place(self, which: Which, step: int) -> pathlib.Path:
        """Where a checkpoint stands."""
        return self.root / which / str(step)

    def _name(self, path: pathlib.Path) -> str:
        """A path in it as `confined` takes it, relative to the folder around."""
        return path.relative_to(self._around).as_posix()

    def steps(self, which: Which) -> list[int]:
        """Steps that are there, in order; not verified.

        Raises:
          UserError: the disk does not let them be listed, or a link stands in their place.
        """
        try:
            names = confined.names(self._around, self._name(self.root / which))
        except OSError as error:
            raise confined.unreadable(self.root / which, error) from None
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]{0,14}", name))

    def tidy(self) -> None:
        """Removes what killed saves and removals have left; for the one process that trains in the run."""
        for which in ("newest", "best", "statistics"):
            place = self._name(self.root / which)
            for name in confined.names(self._around, place):
                if name.startswith("."):
                    confined.remove(self._around, f"{place}/{name}")

    def forget_after(self, step: int) -> None:
        """Removes checkpoints of steps that will be taken again, which nobody is to miss then.

        Those that could not be read are moved to the folder `damaged`: they may be whole.
        """
        for which in ("newest", "best"):
            for folder in (self.place(which, later) for later in self.steps(which) if later > step):
                if folder in self._unread:
                    logger.info(f"the {which} checkpoint of step {folder.name}: {self._set_aside(folder)}")
                else:
                    self._remove(folder)
        noted = self._last()
        left = {which: [last] if last <= step else self.steps(which)[-1:] for which, last in noted.items()}
        kept = {which: steps[0] for which, steps in left.items() if steps}
        if kept != noted:
            atomic_write_json(self.root / _LAST, kept)

    def prune(self) -> None:
        """Keeps the newest few, the latest best, and each best that one of the newest few speaks of."""
        kept = self.steps("newest")[-self._keep :]
        bests = self.steps("best")
        spoken_of = set(map(self._best_of, kept))
        for which, keep in (("newest", set(kept)), ("best", {*bests[-1:], *spoken_of})):
            for step in self.steps(which):
                if step not in keep:
                    self._remove(self.place(which, step))

    def _best_of(self, step: int) -> int | None:
        """The step of the best that one of the newest speaks of; None if it cannot be read."""
        with contextlib.suppress(OSError, UserError, NoCheckpoint, TypeError, AttributeError, KeyError):
            return self.meta("newest", step)["best"]["step"]
        return None

    def _remove(self, folder: pathlib.Path) -> None:
        """Takes a checkpoint away at once under its name, so that none is ever seen half there."""
        hidden = self._name(folder.with_name(f".{folder.name}.removed"))
        confined.remove(self._around, hidden)
        confined.rename(self._around, self._name(folder), hidden)
        sync_folder(folder.parent)
        confined.remove(self._around, hidden)

    def _last(self) -> dict[str, int]:
        """The steps that were saved last, as a note beside the checkpoints says: what should be there."""
        try:
            last = confined.read_json(self._around, self._name(self.root / _LAST), most=_MOST_BYTES)
            return {which: int(last[which]) for which in ("newest", "best") if which in last}
        except (OSError, ValueError, TypeError, OverflowError):
            return {}

    def meta(self, which: Which, step: int) -> dict[str, Any]:
        """The JSON of a checkpoint.

        Raises:
          NoCheckpoint: it is none, though its sum may be right.
        """
        place = self.place(which, step)
        try:
            return confined.read_json(self._around, self._name(place / META), most=_MOST_BYTES)
        except (ValueError, FileNotFoundError) as error:
            raise NoCheckpoint(f"{META} of {place} cannot be read: {error}") from None

    def note(self, which: Which, step: int) -> None:
        """Notes that a checkpoint was saved, so that it is missed if it goes."""
        atomic_write_json(self.root / _LAST, self._last() | {which: step})

    def find(self, which: Which) -> int | None:
        """The latest step whose checkpoint verifies; None if none was ever saved.

        Damaged ones are moved to the folder `damaged` and told; what the disk does not let be read is told and stays.

        Raises:
          NoCheckpoint: there were some, and none is left that verifies.
          UserError: it is whole, and of a format that a later version of this program writes.
        """
        found, last = self.steps(which), self._last().get(which)
        is_lost = last is not None and last not in found
        step = self.latest_whole(which)
        if step is None:
            if found or is_lost or self._is_any_set_aside(which):
                raise NoCheckpoint(
                    f"no {which} checkpoint in {self.root} is whole; put one back from a copy, or begin a new run in "
                    "another folder (--run)"
                )
            return None
        if is_lost and last > step:
            logger.warning(f"the {which} checkpoint of step {last} is gone")
        if step != found[-1] or is_lost:
            logger.info(f"the {which} checkpoint of step {step} is used instead")
        return step

    def find_intact(self, which: Which) -> int | None:
        """Return the latest step that was saved, None if none ever was; nothing is moved aside or replaced.

        Raises:
          UserError: its checkpoint is damaged or gone.
        """
        found = self.steps(which)
        step = max([*found, self._last().get(which, -1)], default=-1)
        if step < 0:
            return None
        folder = self.place(which, step)
        try:
            if step not in found:
                raise Damaged("it is gone")
            verify(folder)
        except (Damaged, NewerFormat, OSError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"the {which} checkpoint of step {step} in {self.root} cannot be used: {why}",
                kind="damaged-checkpoint",
                file=str(folder),
                fix="put it back from a copy, or start from another run or a network.safetensors",
            ) from None
        return step

    def _is_any_set_aside(self, which: Which) -> bool:
        names = confined.names(self._around, self._name(self.root / "damaged"))
        return any(name.startswith(f"{which}-") for name in names)

    def latest_whole(self, which: Which, until: float = math.inf) -> int | None:
        """The latest step, `until` at most, whose checkpoint verifies; None if none does. Damaged ones as in `find`.

        Raises:
          UserError: as `find`.
        """
        for step in reversed(self.steps(which)):
            folder = self.place(which, step)
            if step > until:
                continue
            try:
                verify(folder, self._most_bytes)
                return step
            except NewerFormat as error:
                raise UserError(f"{error}: it was written by a newer segnet_jax, use that") from None
            except Damaged as error:
                if os.path.lexists(folder):  # else a training that goes on beside us has removed it meanwhile
                    aside = self._set_aside(folder)
                    logger.warning(f"the {which} checkpoint of step {step} is damaged: {error}; {aside}")
            except OSError as error:
                self._unread.add(folder)
                logger.warning(f"the {which} checkpoint of step {step} cannot be read: {error.strerror or error}")
        return None

    def _set_aside(self, folder: pathlib.Path) -> str:
        """Moves a damaged checkpoint out of the way, and says where to."""
        aside = self.root / "damaged"
        name = f"{folder.parent.name}-{folder.name}"
        try:
            taken = confined.names(self._around, self._name(aside))
            free = next(each for each in (name, *(f"{name}-{i}" for i in range(2, 10_000))) if each not in taken)
            confined.make_folder(self._around, self._name(aside))
            confined.rename(self._around, self._name(folder), self._name(aside / free))
        except OSError as error:  # as where we may only read
            return f"it cannot be moved aside ({error.strerror})"
        return f"moved to {aside / free}"


def preprocessing_of(meta: dict[str, Any]) -> Preprocessing:
    """The preprocessing that a checkpoint's network expects."""
    return Preprocessing(**{name: tuple(values) for name, values in meta["preprocessing"].items()})


def class_weights_of(meta: dict[str, Any]) -> np.ndarray:
    """The class weights, float32 [C], that a checkpoint's network was trained with."""
    return np.array(meta["class_weights"], np.float32)
