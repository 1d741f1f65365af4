"""All that a training writes and shows while it runs, in one place; of several processes only one keeps it."""

import contextlib
import pathlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.metrics.confusion import scores as scores_of
from segnet_jax.reporting.evaluations import Images, Picture, keep_evaluation, keep_records, keep_worst
from segnet_jax.reporting.figures import prediction_pictures
from segnet_jax.reporting.metrics_log import FILE_NAME, MetricsLog, read_metrics
from segnet_jax.reporting.page.draw import write_report
from segnet_jax.reporting.progress import Progress
from segnet_jax.reporting.training_plot import training_plot
from segnet_jax.system.errors import ExitError

DRAWING_SHARE = 0.1
"""Of the time, at most, that pictures, plot and report take before the last evaluation."""

_WINDOW = 20  # steps over which images per second are measured


class RunLogger:
    """All that a run's folder tells of its course, and the terminal; to be used in a `with`.

    That is `metrics.jsonl`, TensorBoard events, `progress.png`, `samples/`, `evaluations/` and `report.html`.

    Args:
      folder: the run folder; None for the processes that keep no logbook, whose calls then do nothing.
      classes: the data set's.
      total_steps: of the whole run.
      steps_per_epoch: of one epoch.
      images_per_step: the global batch.
      first_step: finished steps at the start; above 0 for a resumed run.
      scored_step: finished steps at the last evaluation that is known at the start; see `MetricsLog`.
      seconds_before: that the run took before it was resumed.
      resumed: whether the folder holds this run's metrics already.
      title: heading of the training plot.
      device: for the plot, such as "8 x Tesla V100-SXM2-16GB".
      about: what the report is to know of the data, as JSON.
      write: calls what it is given, which writes into the folder; may wait and call it again where there is no room.
      should_stop: asked before each picture, which are left out then.
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
    ):
        self._folder, self._classes, self._title, self._device = folder, classes, title, device
        self._about, self._split = about, about.get("split", "val")
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._images_per_step = images_per_step
        self._write, self._should_stop = write, should_stop
        self._start = time.monotonic() - seconds_before
        self._times: deque[tuple[int, float]] = deque(maxlen=_WINDOW)  # (step, when it was known to be finished)
        self._rates: list[float] = []
        self._num_skipped: int | None = None if first_step else 0  # a resumed run's is in its state
        self._draw_again_at = 0.0  # monotonic seconds
        self._has_kept_records = False
        self._unkept_worst: Callable[[], None] | None = None
        if folder:
            self._log = MetricsLog(folder, resume_step=first_step if resumed else None, scored_step=scored_step)
            self._progress = Progress(total_steps, steps_per_epoch, first_step, elapsed=seconds_before)

    def __enter__(self) -> "RunLogger":
        if self._folder:
            self._progress.__enter__()
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        if not self._folder:
            return
        self._progress.__exit__(kind, error, traceback)
        self._log.close()
        if error is None:
            self._keep_worst()
            return
        self._write = lambda draw: draw()  # nothing is waited for any more
        with contextlib.suppress(Exception):  # the error counts, not the picture of it
            self._keep_worst()
            why = error.short if isinstance(error, ExitError) else "ended"
            self.draw_plot(status=f"{why} after step {self._log.last_step('train')}")

    @property
    def seconds(self) -> float:
        """Since the run began, over all its starts."""
        return time.monotonic() - self._start

    @property
    def images_per_second(self) -> float:
        """The median over this start's steps, without compiling and evaluating; NaN before the second step."""
        return float(np.median(self._rates)) if self._rates else float("nan")

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._folder:
            self._progress.say(text)

    def aside(self, doing: str):
        """Shows what is done between steps, in a `with`."""
        self._times.clear()
        return self._progress.aside(doing) if self._folder else contextlib.nullcontext()

    def steps(self, steps: range, measures: Mapping[str, np.ndarray]) -> None:
        """Notes finished steps, that were taken in one call, and what `training.steps.train_steps` measured.

        Args:
          steps: counted from 0.
          measures: each [len(steps)].
        """
        if not self._folder:
            return
        now, rate = time.monotonic(), float("nan")
        if self._times:
            before, then = self._times[0]
            rate = (steps.stop - before) * self._images_per_step / max(now - then, 1e-9)
            self._rates.append(rate)
        self._times.append((steps.stop, now))
        measures = {name: np.asarray(values) for name, values in measures.items()}  # one wait for all of them
        for i, step in enumerate(steps):
            self._step(step + 1, {name: float(values[i]) for name, values in measures.items()}, rate)

    def _step(self, step: int, values: Mapping[str, float], rate: float) -> None:
        skipped_before = values["skipped"] if self._num_skipped is None else self._num_skipped
        self._num_skipped = int(values["skipped"])
        clock = {"seconds": self.seconds, "images_per_second": rate}
        self._write(partial(self._log.write, "train", step, epoch=step / self._steps_per_epoch, **values, **clock))
        self._progress.step(
            step,
            values["loss"],
            values["learning_rate"],
            rate,
            num_skipped=int(self._num_skipped - skipped_before),
        )

    def evaluated(
        self,
        step: int,
        confusion: np.ndarray,
        loss: float,
        pictures: Sequence[Picture],
        worst: Sequence[Picture],
        accuracies: Mapping[str, float],
        images: Images | None = None,
        best: int | None = None,
    ) -> None:
        """Notes an evaluation, keeps what the report shows of it, and if it is time draws pictures, plot and report.

        It is at the first evaluation of a start, at the run's last, and between them as often as leaves nine tenths of
        the time to the training: an epoch of a fast device may be shorter than the drawing. What the newest found worst
        is kept then too, and when the training ends.

        Args:
          step: finished steps.
          confusion: int64 [C,C] of the scored split.
          loss: of the scored split.
          pictures: of the fixed records.
          worst: of the records with the lowest accuracies.
          accuracies: name -> share of its labelled pixels that are right, of each record.
          images: the confusion matrix of each image, where they are known.
          best: the step of the best evaluation before this one.
        """
        if not self._folder:
            return
        scores = scores_of(confusion)
        values = {
            "epoch": step / self._steps_per_epoch,
            "loss": loss,
            "global_accuracy": scores.global_accuracy,
            "mean_accuracy": scores.mean_accuracy,
            "miou": scores.miou,
            "weighted_iou": scores.weighted_iou,
            "iou": dict(zip(self._classes.names, scores.iou, strict=True)),
            "seconds": self.seconds,
        }
        self._write(partial(self._log.write, "val", step, **values))
        self._progress.evaluated(scores, loss)
        with self.aside("drawing"):
            if not self._has_kept_records:
                self._write(partial(keep_records, self._folder, self._about, self._classes, pictures))
            self._has_kept_records = True
            found = {"confusion": confusion, "loss": loss, "pictures": pictures, "classes": self._classes}
            self._write(partial(keep_evaluation, self._folder, step, **found, images=images, best=best))
            self._unkept_worst = partial(keep_worst, self._folder, step, self._classes, worst, accuracies)
            begin = time.monotonic()
            if step < self._total_steps and begin < self._draw_again_at:
                return
            self._keep_worst()
            if pictures and not self._should_stop():
                names, *arrays = zip(*pictures, strict=True)
                drawn = (*map(np.stack, arrays), names, self._classes, self._folder / "samples", step, self._split)
                self._write(partial(prediction_pictures, *drawn))
            if not self._should_stop():
                self.draw_plot()
            if not self._should_stop():
                self._write(partial(write_report, self._folder))
            self._draw_again_at = begin + (time.monotonic() - begin) / DRAWING_SHARE

    def _keep_worst(self) -> None:
        """Keeps what the newest evaluation found worst, if that is not kept yet."""
        if self._unkept_worst:
            self._write(self._unkept_worst)
        self._unkept_worst = None

    def draw_plot(self, status: str | None = None) -> None:
        """Draws `progress.png` from the metrics so far."""
        if not self._folder:
            return
        rows, path = read_metrics(self._folder / FILE_NAME), self._folder / "progress.png"
        told = {"title": self._title, "total_steps": self._total_steps, "device": self._device, "status": status}
        told["split"] = self._split
        self._write(partial(training_plot, rows, path, steps_per_epoch=self._steps_per_epoch, **told))
