"""Training callbacks: user code, passed from Python, that the trainer calls at five points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segnet_jax.metrics.confusion import scores
from segnet_jax.training.evaluation import Evaluation


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of an evaluation during training.

    Attributes:
      step: finished steps.
      loss: loss on the evaluated split.
      values: key of `METRICS` -> value, such as "miou".
      iou: class name -> intersection over union, NaN for a class without ground truth.
      is_best: whether it is the best so far.
      predictions: sample index -> prediction, uint8 [H,W], of the preview images.
    """

    step: int
    loss: float
    values: Mapping[str, float]
    iou: Mapping[str, float]
    is_best: bool
    predictions: Mapping[int, np.ndarray] = field(repr=False)


class Callback:
    """Base class of callbacks; its hooks do nothing.

    Every process calls the hooks. `trainer` is the `runs.trainer.Trainer`; its attributes include `step`, `state` (on
    the devices; `state.variables` are evaluated), `setup` (dataset, model, sampler), `folder`, `hosts.is_writer` and
    `request_stop()`. A hook must not change the state. An error in a hook ends training; saved checkpoints remain.
    """

    def on_train_begin(self, trainer: Any) -> None:
        """Called before the first step of a new or resumed run, after everything is built."""

    def on_step_end(self, trainer: Any, step: int, metrics: Mapping[str, float]) -> None:
        """Called for each finished step when its metrics are read; `trainer.state` may be a few steps ahead.

        Args:
          trainer: the trainer.
          step: counted from 1.
          metrics: "loss", "accuracy", "learning_rate" and others, as in `metrics.jsonl`.
        """

    def on_epoch_end(self, trainer: Any, epoch: int) -> None:
        """Called after each epoch, counted from 1, before its evaluation; all its steps are finished and logged."""

    def on_evaluation_end(self, trainer: Any, result: EvaluationResult) -> None:
        """Called after each evaluation of the validation split."""

    def on_train_end(self, trainer: Any) -> None:
        """Called after the result is written, or after a stop by `request_stop` or `max_steps`; not after an error."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))


class Callbacks:
    """The callbacks of a trainer; falsy if there are none."""

    def __init__(self, trainer: Any, callbacks: Sequence[Callback]):
        self._trainer, self._callbacks = trainer, tuple(callbacks)

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def call(self, hook: str, *args: Any) -> None:
        """Call a hook of each callback, in order."""
        for callback in self._callbacks:
            getattr(callback, hook)(self._trainer, *args)

    def end_epoch(self) -> bool:
        """Return whether there are callbacks and this step ends an epoch."""
        return bool(self) and self._trainer.is_due(1)

    def after_epoch(self) -> None:
        """Call `on_epoch_end` if this step ends an epoch."""
        if self.end_epoch():
            self.call("on_epoch_end", -(-self._trainer.step // self._trainer.setup.sampler.steps_per_epoch))

    def after_steps(self, steps: range, metrics: Mapping[str, np.ndarray]) -> None:
        """Call `on_step_end` for each step of a dispatch; `steps` are counted from 0."""
        for i, step in enumerate(steps if self else ()):
            self.call("on_step_end", step + 1, {name: float(values[i]) for name, values in metrics.items()})

    def after_evaluation(self, evaluation: Evaluation, is_best: bool) -> None:
        """Call `on_evaluation_end`."""
        if not self:
            return
        table, names = scores(evaluation.confusion), self._trainer.setup.dataset.classes.names
        iou = dict(zip(names, table.iou.tolist(), strict=True))
        result = EvaluationResult(
            self._trainer.step, evaluation.loss, table.values, iou, is_best, evaluation.predictions
        )
        self.call("on_evaluation_end", result)
