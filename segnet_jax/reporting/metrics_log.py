"""The numbers of a run, step by step: `metrics.jsonl` for scripts and TensorBoard's event file beside it."""

import contextlib
import errno
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator

from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_bytes, plain

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Appends one line of JSON a measurement, and the same numbers as a TensorBoard event.

    A line reaches the operating system before `write` returns, so a killed run loses none; evaluations are also forced
    to the disk. Where a line finds no room, nothing of it is left and `write` may be called again; events are a copy
    for the eye, and those that find none are left out. Only process 0 makes one, and closes it.

    Args:
      folder: the run folder, which exists.
      resume_step: finished steps of the checkpoint that the run continues from. Lines beyond it are dropped, since
        those steps will be taken again. None for a new run, whose folder must hold no metrics yet.
      scored_step: the last evaluation that this checkpoint knows of. One of the same step that a run wrote down and
        did not live to save will be done again, so its line is dropped too. None where all are known.

    Raises:
      FileExistsError: a new run in a folder that holds metrics.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int | None = None, scored_step: int | None = None):
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter  # which only a training needs

        path = pathlib.Path(folder) / FILE_NAME
        self._last_steps: dict[str, int] = {}
        if resume_step is not None and path.exists():
            last = {"val": resume_step if scored_step is None else scored_step}
            kept = [row for row in read_metrics(path) if row["step"] <= last.get(row["kind"], resume_step)]
            atomic_write_bytes(path, b"".join(_line(row) for row in kept))
            self._last_steps = {row["kind"]: row["step"] for row in kept}
        self._file = open(path, "xb" if resume_step is None else "ab", buffering=0)
        # Without tensorboardX's thread and queue, which wait for ever once the thread has met a full disk.
        self._events = EventsWriter(
            str(path.with_name("events")),
            f".{resume_step or 0}.{os.getpid()}",  # two starts within a second must not share a file
        )
        if resume_step is not None:
            self._hide_events_from(resume_step + 1)

    def last_step(self, kind: str) -> int:
        """The step of the newest line of this kind; 0 where there is none."""
        return self._last_steps.get(kind, 0)

    def write(self, kind: str, step: int, **values) -> None:
        """Writes one measurement.

        Args:
          kind: "train" or "val".
          step: finished steps; grows from line to line of a kind.
          **values: numbers, or dicts of numbers such as iou={"Sky": 0.9}; NaN and infinity become null.

        Raises:
          ValueError: if this step has its line already.
        """
        if kind in self._last_steps and step <= self._last_steps[kind]:
            raise ValueError(f"{kind} step {step} comes after {kind} step {self._last_steps[kind]}")
        values = plain(values)
        self._append(_line({"kind": kind, "step": step, **values}), to_disk=kind == "val")
        self._last_steps[kind] = step
        with contextlib.suppress(OSError):
            self._write_event(kind, step, values)
            if kind == "val":
                self._events.flush()

    def _append(self, line: bytes, to_disk: bool) -> None:
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) < len(line):  # it says so only when asked again
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if to_disk:
                os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(end)
            raise

    def _write_event(self, kind: str, step: int, values: dict) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        # One event for all values: four times cheaper than one for each.
        numbers = [Summary.Value(tag=tag, simple_value=number) for tag, number in _numbers(kind, values)]
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=numbers)))

    def _hide_events_from(self, step: int) -> None:
        """TensorBoard hides events from this step on that an earlier file of the folder holds."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        with contextlib.suppress(OSError):
            self._events.write_event(Event(wall_time=time.time(), step=step, session_log=start))

    def close(self) -> None:
        """Writes what is waiting and closes both files."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._events.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Reads `metrics.jsonl`; a last line that a kill cut off is left out.

    Returns:
      One dict a line, in order, each with "kind" and "step"; what was NaN is None.

    Raises:
      FileNotFoundError: if there is no such file.
      UserError: if a line before the last one is damaged.
    """
    lines = pathlib.Path(path).read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["kind"], str) or type(row["step"]) is not int:
                raise ValueError("kind and step are of another type")
            rows.append(row)
        except (ValueError, TypeError, KeyError, RecursionError):
            if any(rest.strip() for rest in lines[number:]):
                raise UserError(f"{path} line {number} is damaged: restore the file, or delete that line") from None
    return rows


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """PyTorch is not found meanwhile, unless it is imported already.

    tensorboardX imports it where it is installed, to know its tensors, of which we give it none: two seconds and
    200 MB of each start.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None
    try:
        yield
    finally:
        del sys.modules["torch"]


def _line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _numbers(tag: str, values: dict) -> list[tuple[str, float]]:
    """Flattens {"iou": {"Sky": 0.9}} into ("val/iou/Sky", 0.9); what is no finite number is left out."""
    flat = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat += _numbers(f"{tag}/{key}", value)
        elif isinstance(value, int | float) and math.isfinite(value):
            flat.append((f"{tag}/{key}", value))
    return flat
