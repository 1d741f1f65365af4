"""Metrics of a run over its steps: `metrics.jsonl`, and the same values in TensorBoard and other loggers."""

import errno
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segnet_jax.reporting.loggers import Logger
from segnet_jax.reporting.loggers.tensorboard import TensorBoardLogger
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_bytes, plain

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"
_MOST_BYTES = 2**29  # a million steps take 250 MB


class MetricsLog:
    """A log that appends each measurement as a JSON line and passes it on to TensorBoard and other loggers.

    Lines are written unbuffered, so a killed run loses none, and evaluations are also synced to disk. If the disk is
    full, a partial line is removed so that `write` may be retried; TensorBoard events are dropped. Only process 0
    creates a log.

    Args:
      folder: the run folder, which exists.
      resume_step: finished steps of the checkpoint that the run resumes from; later lines are dropped, since their
        steps will be repeated. None for a new run, whose folder must not contain metrics.
      scored_step: step of the last evaluation in that checkpoint. Later evaluations are dropped too, since a run that
        was killed between writing the line and saving the checkpoint repeats them. None keeps all up to `resume_step`.
      loggers: loggers in addition to TensorBoard.

    Raises:
      FileExistsError: If a new run's folder contains metrics.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        resume_step: int | None = None,
        scored_step: int | None = None,
        loggers: Sequence[Logger] = (),
    ):
        path = pathlib.Path(folder) / FILE_NAME
        self._last_steps: dict[str, int] = {}
        if resume_step is not None and untrusted_files.is_file(path.parent, FILE_NAME):
            last = {"val": resume_step if scored_step is None else scored_step}
            rows = [row for row in read_metrics(path) if row["step"] <= last.get(row["kind"], resume_step)]
            atomic_write_bytes(path, b"".join(_line(row) for row in rows))
            self._last_steps = {row["kind"]: row["step"] for row in rows}
        flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if resume_step is None else os.O_APPEND)
        self._file = untrusted_files.open_file(path.parent, FILE_NAME, flags)
        self._loggers: list[Logger] = [TensorBoardLogger(path.parent, resume_step), *loggers]

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
        numbers = flat_numbers(values)
        self._pass_on(lambda logger: logger.numbers(kind, step, numbers))

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

    def describe(self, hyperparameters: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Pass the settings and the class names on to the loggers."""
        self._pass_on(lambda logger: logger.describe(hyperparameters, classes))

    def picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """Pass a PNG file on to the loggers."""
        self._pass_on(lambda logger: logger.picture(name, step, path))

    def _pass_on(self, action: Callable[[Logger], None]) -> None:
        """Call the loggers, and drop those that fail, for example without a network."""
        for each in list(self._loggers):
            try:
                action(each)
            except Exception as error:
                self._loggers.remove(each)
                message = " ".join(str(error).split())[:200]
                logger.warning(f"{type(each).__name__} failed and is no longer used: {message or type(error).__name__}")

    def close(self) -> None:
        """Close the file and the loggers."""
        self._file.close()
        self._pass_on(lambda logger: logger.close())

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
    lines = untrusted_files.read_bytes(path.parent, path.name, most=_MOST_BYTES).split(b"\n")
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


def _line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten {"iou": {"Sky": 0.9}} to {"iou/Sky": 0.9}, leaving out values that are not finite numbers."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            flat[f"{prefix}{key}"] = value
    return flat
