"""Write and show the progress of a training run: logs, pictures, plot, report and console."""

import contextlib
import datetime
import pathlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.metrics.confusion import scores as scores_of
from segnet_jax.reporting.background import Background
from segnet_jax.reporting.evaluations import Images, Picture, write_dataset_info, write_evaluation, write_worst
from segnet_jax.reporting.figures import prediction_pictures
from segnet_jax.reporting.loggers import open_loggers
from segnet_jax.reporting.metrics_log import FILE_NAME, MetricsLog, read_metrics
from segnet_jax.reporting.progress import Progress
from segnet_jax.reporting.training_plot import training_plot
from segnet_jax.system.errors import ExitError

DRAWING_FRACTION = 0.1
"""Largest fraction of the time that the drawing thread is busy before the last evaluation."""

_LAST_DRAWING = 10  # seconds to wait for the drawing thread after an error
PLOT_SECONDS = 30
"""Seconds between two drawings of `progress.png`, unless a drawing takes more than a tenth of that."""

_WINDOW = 20  # calls of log_steps over which throughput is measured


class RunLogger:
    """A logger that writes a run's logs and pictures and shows its progress on the console; a context manager.

    Writes `metrics.jsonl`, TensorBoard events, `progress.png`, `samples/`, `evaluations/` and `report.html`.

    Args:
      folder: the run folder; None for processes that do not write, whose calls do nothing.
      classes: class names and colors of the dataset.
      total_steps: number of steps in the whole run.
      steps_per_epoch: number of steps per epoch.
      images_per_step: the global batch size.
      first_step: finished steps at the start; above 0 for a resumed run.
      scored_step: finished steps at the last evaluation of the checkpoint; see `MetricsLog`.
      seconds_before: seconds that the run took before it was resumed.
      resumed: whether the folder already has this run's metrics.
      title: heading of the training plot.
      device: hardware shown in the plot, such as "8 x Tesla V100-SXM2-16GB".
      about: JSON values about the dataset for `dataset.json`.
      write: function that calls its argument, which writes files; it may wait and retry if the disk is full.
      should_stop: whether to skip the remaining pictures.
      hyperparameters: settings that differ from the defaults, for the loggers.
      loggers: names of loggers in addition to TensorBoard.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        *,
        classes: ClassTable,
        total_steps: int,
        steps_per_epoch: int,
        images_per_step: int,
        first_step: int,
        scored_step: int | None = None,
        seconds_before: float,
        resumed: bool,
        title: str,
        device: str,
        about: Mapping[str, Any],
        write: Callable[[Callable[[], None]], None] = lambda action: action(),
        should_stop: Callable[[], bool] = lambda: False,
        hyperparameters: Mapping[str, Any] | None = None,
        loggers: Sequence[str] = (),
    ):
        self._folder, self._classes, self._title, self._device = folder, classes, title, device
        self._about, self._split = about, about.get("split", "val")
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._images_per_step = images_per_step
        self._write, self._should_stop = write, should_stop
        self._start = time.monotonic() - seconds_before
        self._times: deque[tuple[int, float]] = deque(maxlen=_WINDOW)  # (step, finish time)
        self._rates: list[float] = []
        self._num_skipped: int | None = None if first_step else 0  # a resumed run's counter is in its state
        self._draw_again_at = 0.0  # monotonic seconds
        self._plotted_at, self._plot_seconds = time.monotonic(), 0.0
        self._has_dataset_info = False
        self._pending_worst: Callable[[], None] | None = None
        self._drawing, self._is_only_plot = Background(), False
        if folder:
            resume = {"resume_step": first_step if resumed else None, "scored_step": scored_step}
            self._log = MetricsLog(folder, **resume, loggers=open_loggers(loggers, folder))
            self._log.describe(hyperparameters or {}, classes.names)
            self._progress = Progress(total_steps, steps_per_epoch, first_step, elapsed=seconds_before)

    def __enter__(self) -> "RunLogger":
        if self._folder:
            self._progress.__enter__()
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        if not self._folder:
            return
        self._progress.__exit__(kind, error, traceback)
        with contextlib.closing(self._log):  # open until the drawing thread has logged its pictures
            if error is None:
                self._drawing.wait()
                self._write_worst()
                return
            self._write = lambda draw: draw()  # do not wait for disk space any more
            with contextlib.suppress(Exception):  # must not hide the original error
                self._drawing.wait(_LAST_DRAWING)
            with contextlib.suppress(Exception):
                self._write_worst()
                why = error.short if isinstance(error, ExitError) else "ended"
                self._plot(status=f"{why} after step {self._log.last_step('train')}")

    @property
    def seconds(self) -> float:
        """Seconds since the run began, including the time before it was resumed."""
        return time.monotonic() - self._start

    @property
    def images_per_second(self) -> float:
        """Median throughput since this start, without compilation and evaluation; NaN before the second step."""
        return float(np.median(self._rates)) if self._rates else float("nan")

    def phase(self, name: str):
        """Return a context manager that shows an activity between steps, such as "evaluating"."""
        self._times.clear()
        return self._progress.phase(name) if self._folder else contextlib.nullcontext()

    def log_steps(self, steps: range, metrics: Mapping[str, np.ndarray]) -> None:
        """Log a dispatch's finished steps, counted from 0; `metrics` are those of `training.steps.train_steps`."""
        if not self._folder:
            return
        self._drawing.check()
        now, rate = time.monotonic(), float("nan")
        if self._times:
            before, then = self._times[0]
            rate = (steps.stop - before) * self._images_per_step / max(now - then, 1e-9)
            self._rates.append(rate)
        self._times.append((steps.stop, now))
        is_due = now - self._plotted_at >= max(PLOT_SECONDS, self._plot_seconds / DRAWING_FRACTION)
        metrics = {name: np.asarray(values) for name, values in metrics.items()}  # waits for the devices once
        for i, step in enumerate(steps):
            self._log_step(step + 1, {name: float(values[i]) for name, values in metrics.items()}, rate)
        if is_due and not self._drawing.is_busy and not self._should_stop():
            self._drawing.start(self._plot)
            self._is_only_plot = True

    def _log_step(self, step: int, values: Mapping[str, float], rate: float) -> None:
        skipped_before = values["skipped"] if self._num_skipped is None else self._num_skipped
        self._num_skipped = int(values["skipped"])
        speed = {"seconds": self.seconds, "images_per_second": rate, "time": _now()}
        self._write(partial(self._log.write, "train", step, epoch=step / self._steps_per_epoch, **values, **speed))
        self._progress.step(
            step,
            values["loss"],
            values["learning_rate"],
            rate,
            num_skipped=int(self._num_skipped - skipped_before),
        )

    def log_evaluation(
        self,
        step: int,
        confusion: np.ndarray,
        loss: float,
        pictures: Sequence[Picture],
        worst: Sequence[Picture],
        accuracies: Mapping[str, float],
        images: Images | None = None,
        best: int | None = None,
        stops: bool = False,
    ) -> None:
        """Log an evaluation, store it for the report and, if due, draw pictures, plot and report.

        Drawing is due at the first evaluation of this process, at the last of the run, and in between only as often as
        a tenth of the time allows, since drawing may take longer than an epoch. The worst images of the newest
        evaluation are stored at the same times, and when training ends. Before the last evaluation, all this happens in
        a thread while training continues.

        Args:
          step: finished steps.
          confusion: int64 [C,C] of the split.
          loss: loss of the split.
          pictures: the preview samples.
          worst: samples with the lowest accuracies.
          accuracies: name -> fraction of labeled pixels predicted correctly, of every sample.
          images: the confusion matrix of each image, if known.
          best: step of the best evaluation before this one.
          stops: whether training stops early after this evaluation, which is then the last.
        """
        if not self._folder:
            return
        scores = scores_of(confusion)
        values = {
            "epoch": step / self._steps_per_epoch,
            "loss": loss,
            **scores.values,
            "iou": dict(zip(self._classes.names, scores.iou, strict=True)),
            "seconds": self.seconds,
            "time": _now(),
        }
        self._write(partial(self._log.write, "val", step, **values))
        self._progress.evaluated(scores, loss)
        with self.phase("drawing"):
            if not self._has_dataset_info:
                self._write(partial(write_dataset_info, self._folder, self._about, self._classes, pictures))
            self._has_dataset_info = True
            evaluation = {"confusion": confusion, "loss": loss, "pictures": pictures, "classes": self._classes}
            self._write(partial(write_evaluation, self._folder, step, **evaluation, images=images, best=best))
            self._pending_worst = partial(write_worst, self._folder, step, self._classes, worst, accuracies)
            if step == self._total_steps or stops:
                self._drawing.wait()
                self._draw(step, pictures, self._pending_worst, status="stopped early" if stops else None)
                self._pending_worst = None
                return
            if self._is_only_plot:  # a short wait, so that this evaluation's pictures are not skipped
                self._drawing.wait()
            if not self._drawing.is_busy and time.monotonic() >= self._draw_again_at:
                self._drawing.start(partial(self._draw, step, pictures, self._pending_worst))
                self._is_only_plot, self._pending_worst = False, None

    def _draw(
        self, step: int, pictures: Sequence[Picture], store_worst: Callable[[], None], status: str | None = None
    ) -> None:
        """Store the worst images, and draw pictures, plot and report."""
        begin = time.monotonic()
        self._write(store_worst)
        if pictures and not self._should_stop():
            names, *arrays = zip(*pictures, strict=True)
            drawn = (*map(np.stack, arrays), names, self._classes, self._folder / "samples", step, self._split)
            self._write(partial(prediction_pictures, *drawn))
            self._log.picture("samples", step, self._folder / "samples" / f"step_{step:07}.png")
        if not self._should_stop():
            self._plot(status)
        if not self._should_stop():
            from segnet_jax.reporting.page.render import write_report  # not needed before the first evaluation

            self._write(partial(write_report, self._folder))
        self._draw_again_at = begin + (time.monotonic() - begin) / DRAWING_FRACTION

    def _write_worst(self) -> None:
        """Store the worst images of the newest evaluation, unless stored already."""
        if self._pending_worst:
            self._write(self._pending_worst)
        self._pending_worst = None

    def draw_plot(self, status: str | None = None) -> None:
        """Draw `progress.png` from the current metrics, after any running drawing has ended."""
        if self._folder:
            self._drawing.wait()
            self._plot(status)

    def _plot(self, status: str | None = None) -> None:
        settings = {
            "steps_per_epoch": self._steps_per_epoch,
            "title": self._title,
            "total_steps": self._total_steps,
            "device": self._device,
            "status": status,
            "split": self._split,
        }
        rows, path = read_metrics(self._folder / FILE_NAME), self._folder / "progress.png"
        begin = time.monotonic()
        self._write(partial(training_plot, rows, path, **settings))
        self._plotted_at = time.monotonic()
        self._plot_seconds = self._plotted_at - begin


def _now() -> str:
    """Return the wall-clock time in UTC for display, such as 2026-11-30T21:05:07.123+00:00."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
