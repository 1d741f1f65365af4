"""TensorBoard events of a run: numbers, a chart of all classes, sample pictures and hyperparameters."""

import contextlib
import os
import pathlib
import re
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class TensorBoardLogger:
    """Writer of an event file `events.*`; while the disk is full, events are dropped.

    Args:
      folder: run folder.
      resume_step: finished steps that the run resumes from; None for a new run.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int | None = None):
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter  # slow to import, needed for training only

        # Without tensorboardX's writer thread, whose queue blocks forever after the disk was full.
        self._events = EventsWriter(
            str(folder / "events"),
            f".{resume_step or 0}.{os.getpid()}",  # unique for two starts within a second
        )
        self._last: Any = None  # summary that marks the run as finished in the hyperparameter table
        if resume_step is not None:
            self._hide_from(resume_step + 1)

    def describe(self, hyperparameters: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Write the row of the hyperparameter table, and the layout of the chart with one line for each class."""
        with _without_torch():
            from tensorboardX import summary

        experiment, start, self._last = summary.hparams(dict(hyperparameters), {"val/miou": 0.0})
        tags = [f"^val/iou/{re.escape(name)}$" for name in classes]
        chart = summary.custom_scalars({"classes": {"IoU": ["Multiline", tags]}})
        for each in (experiment, start, chart):
            self._write(each)

    def numbers(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write numbers."""
        from tensorboardX.proto.summary_pb2 import Summary

        # One event with all values is four times cheaper than one event per value.
        found = [Summary.Value(tag=f"{kind}/{name}", simple_value=number) for name, number in values.items()]
        self._write(Summary(value=found), step)
        if kind == "val":
            with contextlib.suppress(OSError):
                self._events.flush()

    def picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Write a PNG file."""
        from tensorboardX.proto.summary_pb2 import Summary

        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # of a PNG file's header
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        self._write(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        """Mark the run as complete in the hyperparameter table, and close the file."""
        if self._last is not None:
            self._write(self._last)
        with contextlib.suppress(OSError):
            self._events.close()

    def _write(self, summary: Any, step: int = 0) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with contextlib.suppress(OSError):
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _hide_from(self, step: int) -> None:
        """Make TensorBoard hide events of earlier files from this step on."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        with contextlib.suppress(OSError):
            self._events.write_event(Event(wall_time=time.time(), step=step, session_log=start))


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
