"""A training under way: it takes its steps, and notes, scores and saves when that is due."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from segnet_jax.distributed.data_parallel import prefetch
from segnet_jax.distributed.hosts import Hosts
from segnet_jax.metrics.confusion import selection_score
from segnet_jax.reporting.evaluations import Images
from segnet_jax.reporting.run_logger import RunLogger
from segnet_jax.runs.outcome import not_finite, write_incident
from segnet_jax.runs.session import Beginning
from segnet_jax.runs.setup import Steps, epochs_between_scores
from segnet_jax.system.errors import NotFinite
from segnet_jax.system.signals import Stop
from segnet_jax.training.inputs import calls_of
from segnet_jax.training.state import TrainState, clear_non_finite, is_finite

STUCK_SECONDS = 600.0  # that a process may take to come to its next step before it is called stuck
WAITING_SECONDS = 7 * 86_400.0  # the same where one may be waiting for room on a disk
_UNREAD = 2  # calls whose measures are read later, so that the devices never wait for the host


class Training:
    """A training from the step that it begins with, or goes on from, to its last.

    Args:
      start: what there was before.
      steps: to take.
      state: before the first of them, replicated.
      run_logger: open.
      hosts: the processes that train together.
      stop: the wish to stop.
      should_stop: whether to stop at once what can be.

    Attributes:
      step: finished steps.
      state: after them.
    """

    def __init__(
        self,
        start: Beginning,
        steps: Steps,
        state: TrainState,
        run_logger: RunLogger,
        hosts: Hosts,
        stop: Stop,
        should_stop: Callable[[], bool],
    ) -> None:
        self._start, self._steps, self._run_logger, self._hosts, self._stop = start, steps, run_logger, hosts, stop
        self._should_stop = should_stop
        self.step, self.state = start.meta["step"], state

    def run(self) -> int | None:
        """Takes the steps that are left, and saves the last.

        Returns:
          The exit code with which all processes have agreed to leave before the last step; None where they have not.

        Raises:
          ExitError: a step was not finite, another process is lost, or nothing can be saved.
        """
        config, setting, meta, room = self._start.config, self._start.setting, self._start.meta, self._start.room
        last_step = min(config.max_steps or setting.total_steps, setting.total_steps)
        if meta["best"] is not None and meta["best"]["step"] == self.step:
            self._save("best")  # where it was damaged: what is gone on from is the same state
        score_every = epochs_between_scores(config)
        if self._is_due(score_every) and (meta["last"] is None or meta["last"]["step"] < self.step):
            self._score()
        unread = deque()
        calls = calls_of(range(self.step, last_step), setting.steps_per_dispatch, setting.sampler.steps_per_epoch)
        batches = prefetch(self._steps.source.inputs(calls), setting.devices)
        leaving = None
        for number, (steps, inputs) in enumerate(zip(calls, batches, strict=True)):
            if self._stop.requested():
                self._hosts.ask_to_stop(number, self._stop.exit_code)
            if (leaving := self._hosts.stop_at(number)) is not None:
                break
            self._hosts.barrier("step", STUCK_SECONDS if not room.waits else WAITING_SECONDS)
            self.state, measures = self._steps.take(self.state, inputs)
            self.step = steps.stop
            unread.append((steps, measures))
            scoring, saving = self._is_due(score_every), self._is_due(config.checkpoint_every)
            at_once = self._should_stop() or scoring or saving or self.step == last_step
            while len(unread) > (0 if at_once else _UNREAD):
                self._note(*unread.popleft())
            if scoring and not self._should_stop():
                self._score()
            if saving and not self._should_stop():
                self._save("newest")
            self._start.checkpoints.poll()
        while unread:
            self._note(*unread.popleft())
        if self.step > meta["step"]:
            self._save("newest")
        room(self._start.checkpoints.wait)
        return leaving

    def _is_due(self, epochs: int) -> bool:
        """Whether what is done every so many epochs is to be done after this step; always after the last one."""
        setting = self._start.setting
        every = epochs * setting.sampler.steps_per_epoch
        return self.step > 0 and (self.step % every == 0 or self.step == setting.total_steps)

    def _note(self, steps: range, measures: dict[str, Any]) -> None:
        """Notes finished steps, up to the first that was not finite, which ends the training."""
        measures = {name: np.asarray(values) for name, values in measures.items()}
        finite = measures.pop("finite")
        good = len(steps) if finite.all() else int(np.argmin(finite))
        if good:
            self._run_logger.log_steps(steps[:good], {name: values[:good] for name, values in measures.items()})
        if good < len(steps):
            self.step, self.state = (
                steps[good],
                clear_non_finite(self.state),
            )  # it is still what it was before that step
            if self.step > self._start.meta["step"]:
                self._save("newest")
            raise self._incident(self.step, {name: float(values[good]) for name, values in measures.items()})

    def _score(self) -> None:
        """Evaluates, draws, and saves where it is the best."""
        setting, meta, samples = self._start.setting, self._start.meta, self._start.material.eval_samples
        with self._run_logger.phase("evaluating"):
            found = self._steps.evaluate(self.state.variables, self._should_stop)
        if found is None:  # stopped: it is done first when the run goes on
            return
        names = setting.scored_split.names
        pictures, worst = (
            [(names[i], *samples.read(i), prediction) for i, prediction in predictions.items()]
            for predictions in (found.predictions, found.worst)
        )
        accuracies = {names[i]: accuracy for i, accuracy in found.accuracies.items()}
        images = Images(names, found.confusions) if found.confusions is not None else None
        best = meta["best"] and meta["best"]["step"]
        self._run_logger.log_evaluation(
            self.step, found.confusion, found.loss, pictures, worst, accuracies, images, best
        )
        meta["last"] = {"step": self.step, "confusion": found.confusion.tolist()}
        best_metric = self._start.config.best_metric
        if meta["best"] is None or selection_score(meta["last"], best_metric) > selection_score(
            meta["best"], best_metric
        ):
            meta["best"] = meta["last"]
            self._save("best")

    def _save(self, which: str) -> None:
        """Saves the state as the newest or the best; the write goes on beside the next steps."""
        checkpoints, room = self._start.checkpoints, self._start.room

        def attempt() -> None:
            told = {"step": self.step, "seconds": self._run_logger.seconds, "config": self._start.config.hash()}
            checkpoints.save(which, self.step, self.state, self._start.meta | told)
            if room.waits:  # a save that fails later could not be repeated: its state would be gone
                checkpoints.wait()

        if not is_finite(self.state):
            raise self._incident(self.step - 1)
        room(attempt)

    def _incident(self, bad: int, measures: dict[str, float] | None = None) -> NotFinite:
        """Keeps the batch of a step that was not finite, counted from 0."""
        start, setting = self._start, self._start.setting
        names = [setting.train_split.names[i] for i in setting.sampler.batch(bad).index]
        if setting.devices.is_writer:
            batch, classes = start.material.batch_of(bad), setting.dataset.classes
            start.room(lambda: write_incident(start.folder, bad + 1, measures or {}, batch, names, classes))
        return not_finite(bad + 1, names, start.folder, start.config.learning_rate)
