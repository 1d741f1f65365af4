"""A training run from its config to its result; `python -m segnet_jax.train` runs it."""

import contextlib
import dataclasses
import logging
import pathlib
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import prefetch
from segnet_jax.distributed.hosts import Hosts, join
from segnet_jax.reporting.run_logger import RunLogger
from segnet_jax.runs import find_run, outcome, session, upload
from segnet_jax.runs.callbacks import Callback, Callbacks
from segnet_jax.runs.config_checks import epochs_between_evaluations
from segnet_jax.runs.initialization import check_is_other_run, describe_initial, read_initial
from segnet_jax.runs.load_dataset import channel_statistics
from segnet_jax.runs.out_of_memory import explain_out_of_memory
from segnet_jax.runs.profile import profiled
from segnet_jax.runs.result import result_variables, score_result, write_result
from segnet_jax.runs.setup import Setup, load_data, resolve
from segnet_jax.system import logs
from segnet_jax.system.disk import DiskRetry, format_bytes
from segnet_jax.system.errors import NotFinite, Stopped
from segnet_jax.system.signals import Stop
from segnet_jax.training import checkpoint_folders, initial_weights
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.custom_objects import NO_OBJECTS, CustomObjects, check_given
from segnet_jax.training.state import clear_non_finite, is_finite, num_bytes_of

logger = logging.getLogger(__name__)

STUCK_SECONDS, DISK_SECONDS = 600.0, 7 * 86_400.0  # timeouts of a step's barrier; the latter if waiting for disk space
_IN_FLIGHT = 2  # dispatches whose metrics are read later, so that the devices never wait for the host


class Trainer:
    """A training run, which `run` starts or resumes.

    Attributes: `config`; `own`, the custom objects; `setup`, the resolved config; `folder`, the locked run folder;
    `checkpoints`; `meta`, the metadata of the newest checkpoint; `step`, the number of finished optimizer steps; and
    `state`, the training state after them.
    """

    config: Config
    setup: Setup
    hosts: Hosts
    folder: pathlib.Path
    checkpoints: Checkpoints
    meta: dict[str, Any]
    run_logger: RunLogger

    def __init__(self, config: Config, own: CustomObjects = NO_OBJECTS, callbacks: Sequence[Callback] = ()):
        if config.own and not config.override:
            check_given(config.own, own.names, config.run or "the config")
        self.config, self.own, self.stop = dataclasses.replace(config, own=own.names), own, Stop()
        self.callbacks, self.wants_to_stop = Callbacks(self, callbacks), False

    def run(self) -> None:
        """Train or resume, and write the result.

        Raises:
          UserError: If the config or the data are invalid; raised before anything is compiled.
          ExitError: If training ends early; earlier checkpoints are intact.
        """
        with contextlib.ExitStack() as self.stack:
            self.train_log = self.stack.enter_context(logs.RunLog())
            self.stack.enter_context(self.stop)
            with self.stop.at_once():  # before the first step there is nothing to save
                self.resolve_setup()
                if not self.restore_or_initialize():
                    return
                self.open_folder()
                self.build_steps()
            open_logger = partial(session.open_logger, self.setup, self.folder, self.meta, self.disk, self.should_stop)
            self.run_logger = self.stack.enter_context(self.disk(open_logger))
            self.callbacks.call("on_train_begin")
            exit_code = self.loop()
            self.finish(exit_code)
            self.callbacks.call("on_train_end")

    # -------------------- Processes, run, devices, dataset ------------------------------------------------------------

    def resolve_setup(self) -> None:
        """Join the other processes, find the run to resume, and resolve the config on these devices and data."""
        config = self.config
        joined = join(config.coordinator, config.process_id, config.num_processes, config.heartbeat)
        self.hosts = self.stack.enter_context(joined)
        self.stack.enter_context(contextlib.nullcontext() if self.hosts.is_writer else logs.errors_only())
        check_is_other_run(config)
        self.config = session.agree_on_run(config, self.hosts, self.stack)
        self.setup = resolve(self.config, self.own)

    # -------------------- Restore or initialize; data -----------------------------------------------------------------

    def restore_or_initialize(self) -> bool:
        """Read the checkpoint or the initial weights, and load the data; return False if the run is complete."""
        config, setup = self.config, self.setup
        self.resumed = self.initial = None
        if config.resume:
            self.folder = pathlib.Path(config.run)
            self.open_checkpoints()
            self.resumed = self.checkpoints.latest("newest")
            if self.resumed is None:
                outcome.check_never_saved(self.folder, config, setup.sampler.steps_per_epoch)
        if self.resumed is not None:
            meta = session.meta_to_resume(self.checkpoints, self.resumed, setup, self.folder)
            if session.is_complete(setup, self.folder, self.resumed, meta):
                return False
            meta["best"] = session.best_intact(self.checkpoints, self.resumed, meta, config.best_metric)
            preprocessing = checkpoint_folders.preprocessing_of(meta)
        else:
            share = partial(self.hosts.broadcast, "initial weights")
            self.initial = read_initial(config, setup.devices, share, self.own)
            if self.initial:
                logger.info(f"init     {describe_initial(config, self.initial, setup.dataset.classes.names)}")
            statistics = partial(channel_statistics, setup.train_split, config)
            preprocessing = initial_weights.choose_preprocessing(config, self.initial, statistics)
            meta = session.new_meta(setup, preprocessing)
        class_weights = session.class_weights(setup, meta)
        self.setup = load_data(setup, preprocessing, class_weights, partial(self.hosts.all_gather, "input placement"))
        self.meta, self.step = meta, meta["step"]
        return True

    def open_checkpoints(self) -> None:
        """Open the checkpoints of the run's folder."""
        opened = session.checkpoints_of(self.folder, self.config, self.setup.devices, self.hosts)
        self.checkpoints = self.stack.enter_context(opened)

    # -------------------- Run folder ----------------------------------------------------------------------------------

    def open_folder(self) -> None:
        """Create and lock the folder of a new run, write its first files, and start recording outcome and log."""
        config, hosts = self.config, self.hosts
        if self.resumed is None and hosts.is_writer:
            find_run.check_room(config, num_bytes_of(self.setup.state_shapes))
        if not config.resume:
            self.folder = session.claim_folder(config, hosts, self.stack)
            self.open_checkpoints()
        self.outcome, self.disk = {}, DiskRetry(self.folder, config.on_disk_full == "wait", self.stop)
        if hosts.is_writer:
            self.stack.enter_context(upload.uploading(self.folder, config.upload, is_new=not config.resume))
            self.outcome = self.stack.enter_context(outcome.record_outcome(self.folder, self.checkpoints.newest_saved))
            hosts.before_lost(partial(outcome.write_loss, self.folder))
            session.prepare_folder(self.setup, self.folder, self.checkpoints, self.resumed, self.disk)
            self.train_log.open(self.folder)
        resuming, starting = f", resuming after step {self.resumed}", ": see its first_batch.png while this compiles"
        logger.info(f"run      {self.folder}{resuming if self.resumed else starting}")

    # -------------------- Model, optimizer, steps ---------------------------------------------------------------------

    def build_steps(self) -> None:
        """Place the state on the devices, and build the training step and the evaluation."""
        setup = self.setup
        self.stack.enter_context(explain_out_of_memory(self.config, setup.devices, has_run=True))
        if self.resumed is None:
            self.state = setup.initial_state(self.initial)
        else:
            self.state = self.checkpoints.restore("newest", self.resumed, setup.state_shapes)
        self.initial = None  # frees tens of megabytes
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        logger.info(f"network  {type(setup.model).__name__}, {num_parameters:,} parameters")
        self.steps = setup.build_steps()
        logger.info(f"input    {setup.placement}, {format_bytes(setup.num_bytes)} of images and labels")

    # -------------------- Loop ----------------------------------------------------------------------------------------

    def loop(self) -> int | None:
        """Run the remaining steps, and save a checkpoint after the last.

        Returns:
          The exit code if all processes agreed to stop before the last step, otherwise None.

        Raises:
          ExitError: If a step was not finite, another process is lost, or a checkpoint cannot be saved.
        """
        config, setup, meta = self.config, self.setup, self.meta
        last_step = min(config.max_steps or setup.total_steps, setup.total_steps)
        evaluate_every = epochs_between_evaluations(config, setup.sampler.steps_per_epoch)
        if meta["best"] is not None and meta["best"]["step"] == self.step:
            self.save("best")  # it may be damaged: rewrite it from the resumed state
        if self.is_due(evaluate_every) and (meta["last"] is None or meta["last"]["step"] < self.step):
            self.evaluate()
        unread = deque()
        train = self.stack.enter_context(profiled(self.steps.train, self.folder, config.profile, self.hosts.is_writer))
        exit_code, dispatches = None, setup.dispatches(range(self.step, last_step))
        batches = prefetch(self.steps.source.inputs(dispatches), setup.devices)
        for number, (steps, inputs) in enumerate(zip(dispatches, batches, strict=True)):
            if self.stop.requested() or self.wants_to_stop:
                self.hosts.ask_to_stop(number, self.stop.exit_code or 0)
            if (exit_code := self.hosts.stop_at(number)) is not None or session.stops_early(setup, meta):
                break
            self.hosts.barrier("step", DISK_SECONDS if self.disk.waits else STUCK_SECONDS)
            self.state, metrics = train(self.state, inputs)
            self.step = steps.stop
            unread.append((steps, metrics))
            evaluating, saving = self.is_due(evaluate_every), self.is_due(config.checkpoint_every)
            sync = self.should_stop() or evaluating or saving or self.step == last_step
            while len(unread) > (0 if sync or self.callbacks.end_epoch() else _IN_FLIGHT):
                self.log(*unread.popleft())
            self.callbacks.after_epoch()
            if evaluating and not self.should_stop():
                self.evaluate()
            if saving and not self.should_stop():
                self.save("newest")
            self.checkpoints.poll()
        while unread:
            self.log(*unread.popleft())
        if self.step > meta["step"]:
            self.save("newest")
        self.disk(self.checkpoints.wait)
        return exit_code

    def is_due(self, epochs: int) -> bool:
        """Return whether an action that repeats every `epochs` epochs is due now; True after the last step."""
        every = epochs * self.setup.sampler.steps_per_epoch
        return self.step > 0 and (self.step % every == 0 or self.step == self.setup.total_steps)

    def should_stop(self) -> bool:
        """Return whether to stop immediately; False for several processes, which agree on a step to stop before."""
        return self.hosts.num_processes == 1 and self.stop.requested()

    def log(self, steps: range, metrics: dict[str, Any]) -> None:
        """Log finished steps; raise NotFinite at the first non-finite one."""
        metrics = {name: np.asarray(values) for name, values in metrics.items()}
        finite = metrics.pop("finite")
        num_good = len(steps) if finite.all() else int(np.argmin(finite))
        if num_good:
            self.run_logger.log_steps(steps[:num_good], {name: values[:num_good] for name, values in metrics.items()})
            self.callbacks.after_steps(steps[:num_good], metrics)
        if num_good < len(steps):
            self.step, self.state = steps[num_good], clear_non_finite(self.state)  # unchanged since before that step
            if self.step > self.meta["step"]:
                self.save("newest")
            raise self.incident(self.step, {name: float(values[num_good]) for name, values in metrics.items()})

    def evaluate(self) -> None:
        """Evaluate, log and draw, and save the state if it is the best so far."""
        meta = self.meta
        with self.run_logger.phase("evaluating"):
            evaluation = self.steps.evaluate(self.state.variables, self.should_stop)
        if evaluation is None:  # stopped: a resumed run starts with this evaluation
            return
        best = meta["best"] and meta["best"]["step"]
        is_best = session.record_evaluation(self.setup, meta, evaluation, self.step)
        self.run_logger.log_evaluation(self.step, **session.shown(evaluation, self.setup, meta), best=best)
        if is_best:
            self.save("best")
        self.callbacks.after_evaluation(evaluation, is_best)

    def request_stop(self) -> None:
        """Stop all processes before the next step, as `--max-steps` does; for use in callbacks."""
        self.wants_to_stop = True

    def save(self, which: str) -> None:
        """Save the state as the newest or the best checkpoint; it is written while the next steps run."""

        def attempt() -> None:
            now = {"step": self.step, "seconds": self.run_logger.seconds}
            now |= {"config": self.config.hash(), "experiment": self.config.experiment()}
            self.checkpoints.save(which, self.step, self.state, self.meta | now)
            if self.disk.waits:  # a later failure could not be retried, because the state is donated by then
                self.checkpoints.wait()

        if not is_finite(self.state):
            raise self.incident(self.step - 1)
        self.disk(attempt)

    def incident(self, bad_step: int, metrics: dict[str, float] | None = None) -> NotFinite:
        """Save the batch of a non-finite step, counted from 0, and return the error to raise."""
        names = [self.setup.train_split.names[i] for i in self.setup.sampler.batch(bad_step).index]
        if self.hosts.is_writer:
            about = (metrics or {}, self.setup.batch(bad_step), names, self.setup.dataset.classes)
            self.disk(lambda: outcome.write_incident(self.folder, bad_step + 1, *about))
        return outcome.not_finite(bad_step + 1, names, self.folder, self.config.learning_rate)

    # -------------------- Result --------------------------------------------------------------------------------------

    def finish(self, exit_code: int | None) -> None:
        """Write the result of a finished run, or log how to resume a stopped one.

        Raises:
          Stopped: If a signal stopped the training; the same command resumes it.
        """
        if self.hosts.is_writer:  # without a single step nothing is saved
            state_sum = self.checkpoints.confirm("newest", self.step) if self.step else None
            self.outcome.update(saved=self.step or None, state=state_sum)
        if not session.is_finished(self.setup, self.meta):
            self.outcome["why"] = f"stopped after step {self.step} of {self.setup.total_steps}"
            if exit_code or self.should_stop():
                raise Stopped(exit_code or self.stop.exit_code, self.outcome["why"])
            self.run_logger.draw_plot(status=f"stopped after step {self.step}")
            logger.info(f"{self.outcome['why']}, all saved; resume with: {outcome.resume_command(self.folder)}")
            return
        self.write_result()

    def write_result(self) -> None:
        """Evaluate the result's checkpoint, and write the result.

        Raises:
          Stopped: If a signal stopped the training; the same command resumes here.
        """
        setup, precise = self.setup, self.config.batch_norm == "recompute"
        phase = "computing precise batch-norm statistics" if precise else "choosing the checkpoint"
        with self.stop.at_once(), self.run_logger.phase(phase):
            variables = result_variables(setup, self.checkpoints, self.meta, self.state, self.step, self.disk)
        with self.run_logger.phase("scoring boundaries"):
            scored = score_result(setup, variables, partial(self.steps.evaluate, should_stop=self.should_stop))
        if scored is None:
            self.outcome["why"] = "stopped before the result was written, all steps done"
            raise Stopped(self.stop.exit_code, self.outcome["why"])
        if self.hosts.is_writer:
            result = (self.folder, setup, self.meta, self.run_logger, self.outcome["state"], *scored)
            self.disk(partial(write_result, *result))
