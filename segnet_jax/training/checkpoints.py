"""Save and restore training states: the newest few for resuming, and the best. The only module that imports Orbax.

Each checkpoint is a folder, `newest/STEP` or `best/STEP`: the state as Orbax writes it, `meta.json`, and a manifest of
sums. Saving is asynchronous. What was written is read back before it gets its name and anything older is removed, and
is compared with its manifest before it is restored. A step that is both newest and best is written once.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import Devices, replicate
from segnet_jax.system import confined
from segnet_jax.system.errors import DiskFailed, DiskFull, NoCheckpoint, disk_refusal, is_disk_full
from segnet_jax.system.files import atomic_write_json
from segnet_jax.training.checkpoint_content import check_values, reading_state
from segnet_jax.training.checkpoint_folders import META, CheckpointFolders, Which
from segnet_jax.training.manifest import Damaged, link_files, read_manifest, seal, verify
from segnet_jax.training.state import TrainState, are_same, num_bytes_of, sum_of_state

_STATE = "state"
_PATIENCE = 10 * 365 * 86_400  # seconds
_ROOM = 1.2  # of the state's bytes, asked for before a save: Orbax and the file system take their part


class Checkpoints:
    """The folder `checkpoints` of a run; to be used in a `with`, so that the last save is waited for.

    Args:
      folder: made by the first save.
      devices: where restored states are to lie.
      keep: how many of the newest to keep.
      share: (text of process 0) -> that text in every process; all must restore the same step.
      most_bytes: as `CheckpointFolders`.

    Attribute `shelf`: the folders, without their contents.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        devices: Devices,
        keep: int = Config.keep_checkpoints,
        share: Callable[[str], str] = lambda text: text,
        most_bytes: int | None = None,
    ):
        _hush_orbax()
        self._root = pathlib.Path(folder).absolute()  # Orbax wants no relative path
        self.shelf = CheckpointFolders(self._root, keep, most_bytes)
        self._devices, self._share = devices, share
        self._writer = _writer()
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: list[Future] = []
        self._there: dict[Which, set[int]] | None = None  # saved or begun

    # --- saving ---

    def save(self, which: Which, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Begin to save a state, after earlier saves have ended; of several processes one saves.

        Args:
          which: "newest" or "best".
          step: finished steps; a step that is there already is not saved again.
          state: replicated; it may be donated to the next step as soon as this returns.
          meta: JSON to lie beside it.

        Raises:
          DiskFull: there is not enough room, or there was not for the save before.
          DiskFailed: the disk refuses otherwise.
        """
        if not self._devices.is_writer:
            return
        self.poll()
        if self._there is None:
            self._there = {which: set(self.shelf.steps(which)) for which in ("newest", "best")}
        if step in self._there[which]:
            return  # the same step of the same run is the same state
        partial = self.shelf.place(which, step).with_name(f".{step}.partial")
        other: Which = "best" if which == "newest" else "newest"
        if step in self._there[other]:
            self._there[which].add(step)
            self._pending.append(self._thread.submit(self._share_files, other, which, step, partial, meta))
            return
        self.wait()
        copy = jax.device_get(state)  # before it is donated; and the arrays of one process Orbax does not take
        self._make_room(which, step, partial, num_bytes_of(copy))
        self._there[which].add(step)
        with self._told_by_disk(which, step, partial):
            self._writer.save(partial / _STATE, args=ocp.args.StandardSave(_as_kept(copy)), force=True)
        self._pending.append(self._thread.submit(self._finish, which, step, partial, copy, meta))

    def poll(self) -> None:
        """Raises what a save that has ended has met."""
        if any(each.done() and each.exception() for each in self._pending):
            self.wait()

    def wait(self) -> None:
        """Waits until what was begun is saved, sealed and read back.

        Raises:
          DiskFull: there was no room for it.
          DiskFailed: the disk refuses otherwise, or reads back what was not written.
        """
        pending, self._pending = self._pending, []
        try:
            for each in pending:
                each.result()
        finally:
            wait(pending)

    def newest_saved(self) -> int | None:
        """The latest step that verifies, after a training has ended otherwise than well; in one process."""
        with contextlib.suppress(DiskFailed):
            self.wait()
        return self.shelf.find("newest")

    def confirm(self, which: Which, step: int) -> str:
        """Lists a checkpoint from the disk anew and verifies it, before anybody is told that it is saved.

        Returns:
          The sum of its state, `sum_of_state`.

        Raises:
          NoCheckpoint: it is not there or does not verify.
        """
        self.wait()
        try:
            return verify(self.shelf.place(which, step))["state"]
        except (Damaged, OSError) as error:
            raise NoCheckpoint(f"step {step} was saved to {self._root / which}, but does not verify: {error}") from None

    def _finish(self, which: Which, step: int, partial: pathlib.Path, copy: TrainState, meta: dict) -> None:
        """Reads back what Orbax has written, seals it, and only then removes what is older. Runs in the thread."""
        with self._told_by_disk(which, step, partial):
            sum_of_copy = sum_of_state(copy)  # while Orbax writes
            self._writer.wait_until_finished()
            final = self.shelf.place(which, step)
            if not are_same(self._read(partial, copy), copy):
                raise DiskFailed(f"{final} reads back otherwise than it was written: the disk or memory is at fault")
            atomic_write_json(partial / META, meta)
            seal(partial, final, {"step": step, "config": meta.get("config"), "state": sum_of_copy})
            self.shelf.note(which, step)
            self.shelf.prune()

    def _share_files(self, other: Which, which: Which, step: int, partial: pathlib.Path, meta: dict) -> None:
        """Gives a state that is saved under one name its other one, with a `meta.json` of its own; in the thread."""
        with self._told_by_disk(which, step, partial):
            source = self.shelf.place(other, step)
            self._make_around(partial)
            try:
                sum_of_source = read_manifest(source)["state"]
                sums = link_files(source, partial, _STATE)
            except Damaged as error:
                raise DiskFailed(f"{source}, which was saved and read back, is damaged: {error}") from None
            atomic_write_json(partial / META, meta)
            facts = {"step": step, "config": meta.get("config"), "state": sum_of_source}
            seal(partial, partial.with_name(str(step)), facts, sums)
            self.shelf.note(which, step)
            self.shelf.prune()

    def _read(self, folder: pathlib.Path, like: TrainState) -> TrainState:
        """A checkpoint's state as numpy arrays."""
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone("read"))
        kept = _as_kept(like)
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), kept)
        found = handler.restore(folder / _STATE, args=ocp.args.PyTreeRestore(item=kept, restore_args=kinds))
        return like.replace(**found)

    def _make_room(self, which: Which, step: int, partial: pathlib.Path, num_bytes: int) -> None:
        with self._told_by_disk(which, step, partial):
            self._make_around(partial)
            needed, free = int(_ROOM * num_bytes), shutil.disk_usage(partial.parent).free
        if free < needed:
            raise DiskFull(
                f"saving step {step} needs {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free on {self._root}"
            )

    def _make_around(self, partial: pathlib.Path) -> None:
        confined.make_folder(self._root.parent, partial.parent.relative_to(self._root.parent).as_posix())
        self._remove(partial)

    def _remove(self, partial: pathlib.Path) -> None:
        confined.remove(self._root.parent, partial.relative_to(self._root.parent).as_posix())

    @contextlib.contextmanager
    def _told_by_disk(self, which: Which, step: int, partial: pathlib.Path):
        """Tells what the disk refuses; what was written in vain is removed, which gives room again to repeat it."""
        try:
            yield
        except BaseException as error:
            self._writer = _writer()  # the old one keeps its error
            if not os.path.isdir(self.shelf.place(which, step)):  # else it is saved, and what failed came after that
                self._there[which].discard(step)
            free = shutil.disk_usage(self._root).free if self._root.exists() else 0
            self._remove(partial)
            if isinstance(error, DiskFailed):  # told already
                raise
            if is_disk_full(error):
                told = f"no room to save step {step}: {free / 1e6:.1f} MB were free on {self._root}"
                raise DiskFull(told) from error
            if refusal := disk_refusal(error):
                raise DiskFailed(f"step {step} cannot be saved to {self._root}: {refusal}") from error
            raise

    # --- restoring ---

    def latest(self, which: Which) -> int | None:
        """The latest step whose checkpoint verifies, the same in all processes; as `Shelf.find`."""
        return self._agreed(lambda: self.shelf.find(which))

    def latest_intact(self, which: Which) -> int | None:
        """The latest step, the same in all processes; as `Shelf.find_intact`."""
        return self._agreed(lambda: self.shelf.find_intact(which))

    def latest_best(self, until: int) -> int | None:
        """The latest best of steps up to `until` that verifies, the same in all processes; none is no error."""
        return self._agreed(lambda: self.shelf.latest_whole("best", until))

    def is_whole(self, which: Which, step: int) -> bool:
        """Whether the latest checkpoint that verifies is of this step, the same in all processes; none is no error."""

        def look() -> bool:
            with contextlib.suppress(NoCheckpoint):  # of process 0 alone, and the others wait for its answer
                return self.shelf.find(which) == step
            return False

        return self._agreed(look)

    def read_meta(self, which: Which, step: int) -> dict[str, Any]:
        """The JSON of a checkpoint that was found by `latest`."""
        return self._agreed(lambda: self.shelf.meta(which, step))

    def sum_of_state(self, which: Which, step: int) -> str:
        """The sum of the state of a checkpoint that was found by `latest`."""
        return self._agreed(lambda: read_manifest(self.shelf.place(which, step))["state"])

    def _agreed(self, find: Callable[[], Any]) -> Any:
        """What process 0 finds, for all."""
        return json.loads(self._share(json.dumps(find()) if self._devices.is_writer else ""))

    def restore(self, which: Which, step: int, like: TrainState) -> TrainState:
        """Restores a state that was found by `latest`, replicated over the devices.

        Args:
          which: "newest" or "best".
          step: that `latest` gave.
          like: a state of the same shapes, such as `jax.eval_shape` gives; NoCheckpoint where it holds another one.
        """
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._devices.replicated), like
        )
        folder = self.shelf.place(which, step)
        with reading_state(folder, like, _STATE):
            found = self._writer.restore(folder / _STATE, args=ocp.args.StandardRestore(_as_kept(shapes)))
        check_values(state := like.replace(**found), str(folder))
        return replicate(state, self._devices)  # which copies: Orbax may still hold its arrays, and a step takes them

    def close(self) -> None:
        """Waits until all is saved."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._writer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _as_kept(state: TrainState) -> dict[str, Any]:
    """The state as Orbax gets it, by names: without a part that is not there, which older checkpoints do not name."""
    named = {item.name: getattr(state, item.name) for item in dataclasses.fields(state)}
    return {name: part for name, part in named.items() if name != "ema" or part is not None}


def _writer() -> ocp.AsyncCheckpointer:
    """Orbax's writer, of endless patience: it measures that by the wall clock, which may be set by days meanwhile."""
    alone = _alone("write")
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.AsyncCheckpointer(handler, timeout_secs=_PATIENCE, multiprocessing_options=alone)


def _alone(doing: str) -> ocp.options.MultiprocessingOptions:
    """Lets Orbax wait for no other process: each holds the whole state, and one may repeat what others need not."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"{doing}-{me}"
    )


def _hush_orbax() -> None:
    """Keeps Orbax from printing each of its steps and, in a hundred lines, what it raises too."""
    for noisy in ("absl", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "func", None) is not _without_closed_loops:  # to stay: it may print after we closed
        sys.unraisablehook = partial(_without_closed_loops, sys.unraisablehook)


def _without_closed_loops(hook: Callable, unraisable) -> None:
    """Where a write fails, TensorStore prints, for each other one, that nobody waits for it any more."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)
