"""Trains SegNet: `python -m segnet_jax.train --help`."""

import contextlib
import sys
from collections.abc import Callable
from functools import partial

import jax

from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.data.input_pipeline.cache import in_words
from segnet_jax.distributed.hosts import join
from segnet_jax.reporting.run_logger import RunLogger
from segnet_jax.runs import run_folder
from segnet_jax.runs.loop import Training
from segnet_jax.runs.out_of_memory import explain_out_of_memory
from segnet_jax.runs.outcome import resume_command
from segnet_jax.runs.result import finish, write_result
from segnet_jax.runs.session import Beginning, begin
from segnet_jax.runs.setup import Steps
from segnet_jax.system.command import run_command
from segnet_jax.system.console import say, say_nothing
from segnet_jax.system.errors import Stopped
from segnet_jax.system.signals import Stop
from segnet_jax.training.evaluation import evaluate_boundaries

DESCRIPTION = """Trains SegNet; leaves a run folder with checkpoints, scores and pictures.

Try it:  python -m segnet_jax.train --protocol demo

CamVid:  python -m segnet_jax.train --protocol camvid-matlab-2018 --data DIR --devices 8

Stopped, killed or out of disk: the same command goes on where it was."""


def main() -> int:
    """The command."""
    return train(parse_config(sys.argv[1:], prog="segnet_jax.train", description=DESCRIPTION))


def train(config: Config) -> int:
    """Trains as the config says, or goes on with the run that it began; returns the exit code.

    Raises:
      UserError: for the user's mistakes, all of them before anything is compiled.
      ExitError: the training ended early; what was saved before is whole.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop())
        with stop.at_once():  # until the first step there is nothing to save
            place = (config.coordinator, config.process_id, config.num_processes)
            hosts = stack.enter_context(join(*place, config.heartbeat, say=say))
            tell = say if hosts.is_writer else say_nothing
            start = begin(config, hosts, stop, tell, stack)
            if start is None:
                return 0
            stack.enter_context(explain_out_of_memory(start.config, start.setting.devices, has_run=True))
            state, material = start.first_state(), start.material
            num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            tell(f"network  {type(material.model).__name__}, {num_parameters:,} parameters")
            steps = material.build_steps(tell)
            tell(f"input    {material.place}, {in_words(material.num_bytes)} of images and labels")
        alone = hosts.num_processes == 1  # else all must leave before the same step, which takes a word between them
        should_stop = stop.requested if alone else _never
        run_logger = stack.enter_context(start.room(partial(_open_run_logger, start, should_stop)))
        training = Training(start, steps, state, run_logger, hosts, stop, should_stop)
        leaving = training.run()
        step, total_steps = training.step, start.setting.total_steps
        if hosts.is_writer:  # after no step at all nothing is saved
            sum_of_state = start.checkpoints.confirm("newest", step) if step else None
            start.outcome.update(saved=step or None, state=sum_of_state)
        if not run_folder.is_finished(start.meta, total_steps):
            start.outcome["why"] = f"stopped after step {step} of {total_steps}"
            if leaving or should_stop():
                raise Stopped(leaving or stop.exit_code, start.outcome["why"])
            run_logger.draw_plot(status=f"stopped after step {step}")
            run_logger.say(f"{start.outcome['why']}, all saved; go on with: {resume_command(start.folder)}")
            return 0
        _write_result(start, training, steps, run_logger, stop, should_stop)
        return 0


def _open_run_logger(start: Beginning, should_stop: Callable[[], bool]) -> RunLogger:
    setting, meta = start.setting, start.meta
    return RunLogger(
        start.folder if setting.devices.is_writer else None,
        classes=setting.dataset.classes,
        total_steps=setting.total_steps,
        steps_per_epoch=setting.sampler.steps_per_epoch,
        images_per_step=setting.sampler.global_batch_size,
        first_step=meta["step"],
        scored_step=meta["last"]["step"] if meta["last"] else 0,
        seconds_before=meta["seconds"],
        resumed=start.config.resume,
        title=f"SegNet on {setting.dataset.name}",
        device=str(setting.devices),
        about=setting.about,
        write=start.room,
        should_stop=should_stop,
    )


def _write_result(
    start: Beginning,
    training: Training,
    steps: Steps,
    run_logger: RunLogger,
    stop: Stop,
    should_stop: Callable[[], bool],
) -> None:
    """Scores what the result of a finished training is of, and writes it.

    Raises:
      Stopped: somebody asked for it; the same command goes on from here.
    """
    config, setting, outcome = start.config, start.setting, start.outcome
    recomputes = config.batch_norm == "recompute"
    with stop.at_once(), run_logger.phase("recomputing BatchNorm" if recomputes else "choosing the checkpoint"):
        variables = finish(start, training.state, training.step)
    scored = None, None
    if variables is None:
        rule = " and is of the running statistics" if recomputes else ""
        run_logger.say(f"warning: the best checkpoint is not whole any more: the result has no boundary F1{rule}")
    else:
        with run_logger.phase("scoring boundaries"):
            evaluate = partial(steps.evaluate, variables, should_stop)
            scored = evaluate_boundaries(evaluate, start.material.eval_samples, len(setting.dataset.classes))
    if scored is None:
        outcome["why"] = "stopped before the result was written, all steps done"
        raise Stopped(stop.exit_code, outcome["why"])
    if setting.devices.is_writer:
        start.room(
            lambda: write_result(start.folder, config, setting, start.meta, run_logger, outcome["state"], *scored)
        )


def _never() -> bool:
    return False


if __name__ == "__main__":
    run_command(main)
