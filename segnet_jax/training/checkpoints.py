"""Save and restore training states: the newest few, for resuming, and the best. No other module imports Orbax.

A checkpoint is a folder, `newest/STEP` or `best/STEP`, with Orbax's files, `meta.json` and a manifest. It is saved
asynchronously, read back before older ones are deleted, and verified before it is restored.
"""

import contextlib
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
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import DiskFailed, DiskFull, NoCheckpoint, disk_refusal, is_disk_full
from segnet_jax.system.files import atomic_write_json
from segnet_jax.training.checkpoint_content import check_values, reading_state
from segnet_jax.training.checkpoint_folders import META, CheckpointFolders, Which
from segnet_jax.training.manifest import Damaged, finalize, link_files, read_manifest, verify
from segnet_jax.training.state import TrainState, are_same, num_bytes_of, sum_of_state

_STATE = "state"
_TIMEOUT = 10 * 365 * 86_400  # seconds
_DISK_MARGIN = 1.2  # free space required for a save, as a multiple of the state's size


class Checkpoints:
    """The checkpoints of a run; use it as a context manager, which waits for the last save.

    Args:
      folder: the run's folder `checkpoints`; created by the first save.
      devices: devices on which restored states are placed.
      keep: number of newest checkpoints to keep.
      broadcast: function that returns process 0's text in every process, so that all restore the same step.
      max_bytes: as in `CheckpointFolders`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        devices: Devices,
        keep: int = Config.keep_checkpoints,
        broadcast: Callable[[str], str] = lambda text: text,
        max_bytes: int | None = None,
    ):
        _silence_orbax()
        self._root = pathlib.Path(folder).absolute()  # Orbax rejects relative paths
        self.folders = CheckpointFolders(self._root, keep, max_bytes)
        self._devices, self._broadcast = devices, broadcast
        self._writer = _make_writer()
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: list[Future] = []
        self._saved: dict[Which, set[int]] | None = None  # steps that are saved or being saved

    # --- saving ---

    def save(self, which: Which, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Start saving a replicated state and its metadata, after earlier saves have finished; only process 0 saves.

        An existing step is not saved again. The state may be donated to the next step as soon as this returns.

        Raises:
          DiskFull: If there is too little free space for this save or the previous one.
          DiskFailed: If the disk fails in another way.
        """
        if not self._devices.is_writer:
            return
        self.poll()
        if self._saved is None:
            self._saved = {which: set(self.folders.steps(which)) for which in ("newest", "best")}
        if step in self._saved[which]:
            return  # the same step of the same run is the same state
        partial = self.folders.path(which, step).with_name(f".{step}.partial")
        other: Which = "best" if which == "newest" else "newest"
        if step in self._saved[other]:
            self._saved[which].add(step)
            self._pending.append(self._thread.submit(self._link, other, which, step, partial, meta))
            return
        self.wait()
        copy = jax.device_get(state)  # before it is donated; Orbax also rejects arrays of only one process
        self._make_room(which, step, partial, num_bytes_of(copy))
        self._saved[which].add(step)
        with self._disk_errors(which, step, partial):
            self._writer.save(partial / _STATE, args=ocp.args.StandardSave(_as_dict(copy)), force=True)
        self._pending.append(self._thread.submit(self._finish, which, step, partial, copy, meta))

    def poll(self) -> None:
        """Raise the error of a finished save, if any."""
        if any(each.done() and each.exception() for each in self._pending):
            self.wait()

    def wait(self) -> None:
        """Wait until all pending saves are written, read back and finalized.

        Raises:
          DiskFull: If there is too little free space.
          DiskFailed: If the disk fails in another way, or returns data different from what was written.
        """
        pending, self._pending = self._pending, []
        try:
            for each in pending:
                each.result()
        finally:
            wait(pending)

    def newest_saved(self) -> int | None:
        """Return the latest step that verifies after a failed run; call it in one process only."""
        with contextlib.suppress(DiskFailed):
            self.wait()
        return self.folders.find_latest("newest")

    def confirm(self, which: Which, step: int) -> str:
        """Verify a saved checkpoint on disk before it is reported as saved.

        Returns:
          The checksum of the checkpoint's state.

        Raises:
          NoCheckpoint: If the checkpoint is missing or does not verify.
        """
        self.wait()
        try:
            return verify(self.folders.path(which, step))["state"]
        except (Damaged, OSError) as error:
            raise NoCheckpoint(f"step {step} was saved to {self._root / which}, but does not verify: {error}") from None

    def _finish(self, which: Which, step: int, partial: pathlib.Path, copy: TrainState, meta: dict) -> None:
        """Read back the state that Orbax wrote, finalize the checkpoint, and delete older ones. Runs in the thread."""
        with self._disk_errors(which, step, partial):
            sum_of_copy = sum_of_state(copy)  # computed while Orbax writes
            self._writer.wait_until_finished()
            final = self.folders.path(which, step)
            if not are_same(self._read(partial, copy), copy):
                raise DiskFailed(f"{final} differs when read back: disk or memory may be faulty; choose another --run")
            atomic_write_json(partial / META, meta)
            finalize(partial, final, {"step": step, "config": meta.get("config"), "state": sum_of_copy})
            self.folders.set_last_saved(which, step)
            self.folders.prune()

    def _link(self, other: Which, which: Which, step: int, partial: pathlib.Path, meta: dict) -> None:
        """Save a state already saved as `other`: link its files, and write a new `meta.json`. Runs in the thread."""
        with self._disk_errors(which, step, partial):
            source = self.folders.path(other, step)
            self._make_parent(partial)
            try:
                sum_of_source = read_manifest(source)["state"]
                sums = link_files(source, partial, _STATE)
            except Damaged as error:
                raise DiskFailed(f"{source}, which was saved and read back, is damaged: {error}") from None
            atomic_write_json(partial / META, meta)
            facts = {"step": step, "config": meta.get("config"), "state": sum_of_source}
            finalize(partial, partial.with_name(str(step)), facts, sums)
            self.folders.set_last_saved(which, step)
            self.folders.prune()

    def _read(self, folder: pathlib.Path, like: TrainState) -> TrainState:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_this_process("read"))
        item = _as_dict(like)
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=like.opt_state is None)
        return like.replace(**handler.restore(folder / _STATE, args=args))

    def _make_room(self, which: Which, step: int, partial: pathlib.Path, num_bytes: int) -> None:
        with self._disk_errors(which, step, partial):
            self._make_parent(partial)
            needed, free = int(_DISK_MARGIN * num_bytes), shutil.disk_usage(partial.parent).free
        if free < needed:
            raise DiskFull(
                f"not enough disk space to save step {step}: needs {needed / 1e6:.1f} MB, but only {free / 1e6:.1f} MB "
                f"are free on {self._root}; free some space"
            )

    def _make_parent(self, partial: pathlib.Path) -> None:
        untrusted_files.make_folder(self._root.parent, partial.parent.relative_to(self._root.parent).as_posix())
        self._remove(partial)

    def _remove(self, partial: pathlib.Path) -> None:
        untrusted_files.remove(self._root.parent, partial.relative_to(self._root.parent).as_posix())

    @contextlib.contextmanager
    def _disk_errors(self, which: Which, step: int, partial: pathlib.Path):
        """Convert disk errors to one-line errors, and delete the partial checkpoint to free space for a retry."""
        try:
            yield
        except BaseException as error:
            self._writer = _make_writer()  # the old one raises its error again
            if not os.path.isdir(self.folders.path(which, step)):  # otherwise it is saved, and a later operation failed
                self._saved[which].discard(step)
            free = shutil.disk_usage(self._root).free if self._root.exists() else 0
            self._remove(partial)
            if isinstance(error, DiskFailed):
                raise
            if is_disk_full(error):
                found = f"{free / 1e6:.1f} MB were free on {self._root}; free some space"
                raise DiskFull(f"not enough disk space to save step {step}: {found}") from error
            if refusal := disk_refusal(error):
                raise DiskFailed(f"step {step} cannot be saved to {self._root}: {refusal}") from error
            raise

    # --- restoring ---

    def latest(self, which: Which) -> int | None:
        """Return the latest step whose checkpoint verifies, the same in all processes; see `find_latest`."""
        return self._from_process_0(lambda: self.folders.find_latest(which))

    def latest_intact(self, which: Which) -> int | None:
        """Return the last saved step, the same in all processes; see `CheckpointFolders.find_intact`."""
        return self._from_process_0(lambda: self.folders.find_intact(which))

    def latest_best(self, until: int) -> int | None:
        """Return the latest best step up to `until` that verifies, or None; the same in all processes."""
        return self._from_process_0(lambda: self.folders.find_valid("best", until))

    def is_latest(self, which: Which, step: int) -> bool:
        """Return whether `step` is the latest step whose checkpoint verifies, the same in all processes."""

        def find() -> bool:
            with contextlib.suppress(NoCheckpoint):  # raised in process 0 only, while the others wait for its answer
                return self.folders.find_latest(which) == step
            return False

        return self._from_process_0(find)

    def read_meta(self, which: Which, step: int) -> dict[str, Any]:
        """Return the JSON metadata of a checkpoint found by `latest`."""
        return self._from_process_0(lambda: self.folders.meta(which, step))

    def sum_of_state(self, which: Which, step: int) -> str:
        """Return the checksum of the state of a checkpoint found by `latest`."""
        return self._from_process_0(lambda: read_manifest(self.folders.path(which, step))["state"])

    def _from_process_0(self, function: Callable[[], Any]) -> Any:
        """Call a function in process 0 and return its JSON result in all processes."""
        return json.loads(self._broadcast(json.dumps(function()) if self._devices.is_writer else ""))

    def restore(self, which: Which, step: int, like: TrainState) -> TrainState:
        """Restore a state found by `latest`, replicated over the devices.

        `like` is a state of the same shapes, such as from `jax.eval_shape`. If its `opt_state` is None, none is read.

        Raises:
          NoCheckpoint: If the checkpoint contains another state or invalid values.
        """
        placed = partial(jax.ShapeDtypeStruct, sharding=self._devices.replicated)
        folder = self.folders.path(which, step)
        with reading_state(folder, like, _STATE):
            if like.opt_state is None:
                state = self._read(folder, like)
            else:
                item = jax.tree.map(lambda leaf: placed(leaf.shape, leaf.dtype), _as_dict(like))
                state = like.replace(**self._writer.restore(folder / _STATE, args=ocp.args.StandardRestore(item)))
        check_values(state, str(folder))
        return replicate(state, self._devices)  # a copy: the step donates its arrays, which Orbax may still reference

    def close(self) -> None:
        """Wait until everything is saved, and release the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._writer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _as_dict(state: TrainState) -> dict[str, Any]:
    """Return the state as a dict for Orbax, omitting "ema" and "opt_state" if None, as in older checkpoints."""
    return {name: part for name, part in vars(state).items() if name not in ("ema", "opt_state") or part is not None}


def _make_writer() -> ocp.AsyncCheckpointer:
    """Return an Orbax writer that effectively never times out: Orbax uses the wall clock, which may be adjusted."""
    options = _this_process("write")
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    return ocp.AsyncCheckpointer(handler, timeout_secs=_TIMEOUT, multiprocessing_options=options)


def _this_process(operation: str) -> ocp.options.MultiprocessingOptions:
    """Return options that keep Orbax from waiting for other processes, because one process saves the whole state."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"{operation}-{me}"
    )


def _silence_orbax() -> None:
    """Suppress Orbax's progress messages, and the tracebacks that it logs for errors that it also raises."""
    for noisy in ("absl", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "func", None) is not _ignore_closed_loops:  # never reset: messages may come late
        sys.unraisablehook = partial(_ignore_closed_loops, sys.unraisablehook)


def _ignore_closed_loops(hook: Callable, unraisable) -> None:
    """Skip "Event loop is closed", which TensorStore prints for all other pending writes when one fails."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)
