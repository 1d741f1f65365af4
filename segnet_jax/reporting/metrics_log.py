"""Metrics of a run over its steps: `metrics.jsonl`, and the same values as TensorBoard events."""

import contextlib
import errno
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator

from segnet_jax.system import confined
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_bytes, plain

FILE_NAME = "metrics.jsonl"
_MOST_BYTES = 2**29  # a million steps take 250 MB


class MetricsLog:
    """A log that appends each measurement as a JSON line and as a TensorBoard event.

    Lines are written unbuffered, so a killed run loses none, and evaluations are also synced to disk. If the disk is
    full, a line is removed again completely and `write` may be retried, while events are dropped. Only process 0
    creates a log.

    Args:
      folder: the run folder, which exists.
      resume_step: finished steps of the checkpoint that the run resumes from; later lines are dropped, since their
        steps will be repeated. None for a new run, whose folder must not contain metrics.
      scored_step: step of the last evaluation in that checkpoint. Later evaluations are dropped too, since a run that
        was killed between writing the line and saving the checkpoint repeats them. None keeps all up to `resume_step`.

    Raises:
      FileExistsError: If a new run's folder contains metrics.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int | None = None, scored_step: int | None = None):
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter  # slow to import, needed for training only

        path = pathlib.Path(folder) / FILE_NAME
        self._last_steps: dict[str, int] = {}
        if resume_step is not None and confined.is_file(path.parent, FILE_NAME):
            last = {"val": resume_step if scored_step is None else scored_step}
            rows = [row for row in read_metrics(path) if row["step"] <= last.get(row["kind"], resume_step)]
            atomic_write_bytes(path, b"".join(_line(row) for row in rows))
            self._last_steps = {row["kind"]: row["step"] for row in rows}
        flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if resume_step is None else os.O_APPEND)
        self._file = confined.open_file(path.parent, FILE_NAME, flags)
        # Without tensorboardX's writer thread, whose queue blocks forever once the disk was full.
        self._events = EventsWriter(
            str(path.with_name("events")),
            f".{resume_step or 0}.{os.getpid()}",  # unique for two starts within a second
        )
        if resume_step is not None:
            self._hide_events_from(resume_step + 1)

    def last_step(self, kind: str) -> int:
        """Return the step of the newest line of this kind; 0 without one."""
        return self._last_steps.get(kind, 0)

    def write(self, kind: str, step: int, **values) -> None:
        """Write one measurement.

        Args:
          kind: "train" or "val".
          step: finished steps; must increase among the lines of a kind.
          **values: numbers, or dicts of numbers such as iou={"Sky": 0.9}; NaN and infinity become null.

        Raises:
          ValueError: If the step does not come after the previous one of its kind.
        """
        if kind in self._last_steps and step <= self._last_steps[kind]:
            raise ValueError(
                f"cannot log {kind} step {step} after {kind} step {self._last_steps[kind]}; steps must increase"
            )
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
            if self._file.write(line) < len(line):  # a short write does not raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if to_disk:
                os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(end)
            raise

    def _write_event(self, kind: str, step: int, values: dict) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        # One event with all values is four times cheaper than one event per value.
        numbers = [Summary.Value(tag=tag, simple_value=number) for tag, number in _numbers(kind, values)]
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=numbers)))

    def _hide_events_from(self, step: int) -> None:
        """Make TensorBoard hide events of earlier files from this step on."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        with contextlib.suppress(OSError):
            self._events.write_event(Event(wall_time=time.time(), step=step, session_log=start))

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._events.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Read `metrics.jsonl`, ignoring an incomplete last line.

    Returns:
      One dict per line, in order, each with "kind" and "step"; NaN was stored as None.

    Raises:
      FileNotFoundError: If the file does not exist.
      UserError: If a line before the last one is damaged, or the file is a link, not a regular file, or too large.
    """
    path = pathlib.Path(path)
    lines = confined.read_bytes(path.parent, path.name, most=_MOST_BYTES).split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["kind"], str) or type(row["step"]) is not int:
                raise ValueError("kind must be a string and step an integer")
            rows.append(row)
        except (ValueError, TypeError, KeyError, RecursionError):
            if any(rest.strip() for rest in lines[number:]):
                raise UserError(f"{path} line {number} is damaged; restore the file or delete that line") from None
    return rows


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hide PyTorch from imports, unless it is imported already.

    tensorboardX imports PyTorch if installed, only to recognize its tensors: two seconds and 200 MB for nothing.
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
    """Flatten {"iou": {"Sky": 0.9}} to ("val/iou/Sky", 0.9), leaving out values that are not finite."""
    flat = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat += _numbers(f"{tag}/{key}", value)
        elif isinstance(value, int | float) and math.isfinite(value):
            flat.append((f"{tag}/{key}", value))
    return flat
