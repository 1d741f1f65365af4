"""Trains SegNet: `python -m segnet_jax.train --help`."""

import contextlib
import sys
from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax import assembly, runs
from segnet_jax.beginning import begin
from segnet_jax.command import run_command
from segnet_jax.config import Config
from segnet_jax.delineation import evaluate_boundaries
from segnet_jax.endings import Stopped
from segnet_jax.finishing import finish
from segnet_jax.flags import parse_config
from segnet_jax.incident import not_finite, write_incident
from segnet_jax.inputs import calls_of, evaluation_input, training_input
from segnet_jax.outcome import command_to_go_on
from segnet_jax.pipeline.decoded import in_words
from segnet_jax.reporting.kept import Images
from segnet_jax.reporting.logbook import Logbook
from segnet_jax.results import merit, write_result
from segnet_jax.stopping import Stop
from segnet_jax.training.hosts import join
from segnet_jax.training.parallel import prefetch, replicate
from segnet_jax.training.state import create_state, is_finite, revived

DESCRIPTION = """Trains SegNet; leaves a run folder with checkpoints, scores and pictures.

Try it:  python -m segnet_jax.train --protocol demo

CamVid:  python -m segnet_jax.train --protocol camvid-tutorial --data DIR --devices 8

Stopped, killed or out of disk: the same command goes on where it was."""


STUCK_SECONDS = 600.0  # that a process may take to come to its next step before it is called stuck
WAITING_SECONDS = 7 * 86_400.0  # the same where one may be waiting for room on a disk


def main() -> int:
    """The command."""
    return train(parse_config(sys.argv[1:], prog="segnet_jax.train", description=DESCRIPTION))


def train(config: Config) -> int:
    """Trains as the config says, or goes on with the run that it began; returns the exit code.

    Raises:
      UserError: for the user's mistakes, all of them before anything is compiled.
      Ending: the training ended early; what was saved before is whole.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop())
        with stop.at_once():  # until the first step there is nothing to save
            place = (config.coordinator, config.process_id, config.num_processes)
            hosts = stack.enter_context(join(*place, config.heartbeat))
            say = partial(print, file=sys.stderr, flush=True) if hosts.is_writer else _say_nothing
            start = begin(config, hosts, stop, say, stack)
            if start is None:
                return 0
            config, setting, meta, folder = start.config, start.setting, start.meta, start.folder
            devices, plan, classes = setting.devices, setting.plan, setting.data_set.classes
            checkpoints, room, outcome = start.checkpoints, start.room, start.outcome

            # --- the state and the steps ---
            stack.enter_context(assembly.telling_of_memory(config, devices))
            if start.resumed is not None:
                state = checkpoints.restore("newest", start.resumed, start.shapes)
            else:
                variables = assembly.first_variables(
                    config, start.model, start.vgg, start.preprocessing, start.batch_of, devices
                )
                has_average = config.average > 0
                state = create_state(variables, start.optimizer, setting.precision, has_average)
                state = replicate(state, devices)
            num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            say(f"network  {type(start.model).__name__}, {num_parameters:,} parameters")
            step_settings = {
                "model": start.model,
                "class_weights": jnp.asarray(start.class_weights),
                "preprocessing": start.preprocessing,
            }
            records, records_scored = start.records, start.records_scored
            source = training_input(start.place, records, plan, start.share, config.accumulate, devices)
            take_steps = assembly.build_train_step(
                source,
                devices,
                say,
                optimizer=start.optimizer,
                schedule=start.schedule,
                half_gradients=config.half_gradients,
                seed=config.seed,
                average=config.average,
                **step_settings,
            )
            source_scored = evaluation_input(start.place, records_scored, start.share, devices)
            evaluate = assembly.build_evaluator(
                source_scored, len(records_scored), start.share, devices, say, **step_settings
            )
            num_bytes = records.num_bytes + records_scored.num_bytes
            say(f"input    {start.place}, {in_words(num_bytes)} of images and labels")

        # --- the loop ---
        alone = hosts.num_processes == 1  # else all must leave before the same step, which takes a word between them
        should_stop = stop.requested if alone else _never
        open_logbook = partial(
            Logbook,
            folder if devices.is_writer else None,
            classes=classes,
            total_steps=setting.total_steps,
            steps_per_epoch=plan.steps_per_epoch,
            images_per_step=plan.global_batch_size,
            first_step=meta["step"],
            scored_step=meta["last"]["step"] if meta["last"] else 0,
            seconds_before=meta["seconds"],
            resumed=config.resume,
            title=f"SegNet on {setting.data_set.name}",
            device=str(devices),
            about=setting.about,
            write=room,
            should_stop=should_stop,
        )
        logbook = stack.enter_context(room(open_logbook))

        worth = partial(merit, selected_by=config.selected_by)

        def save(which: str) -> None:
            def attempt() -> None:
                told = {"step": step, "seconds": logbook.seconds, "config": config.hash()}
                checkpoints.save(which, step, state, meta | told)
                if room.waits:  # a save that fails later could not be repeated: its state would be gone
                    checkpoints.wait()

            if not is_finite(state):
                raise incident(step - 1)
            room(attempt)

        def score() -> None:
            with logbook.aside("evaluating"):
                found = evaluate(state.variables, should_stop)
            if found is None:  # stopped: it is done first when the run goes on
                return
            names = setting.scored_split.names
            pictures, worst = (
                [(names[i], *records_scored.read(i), prediction) for i, prediction in predictions.items()]
                for predictions in (found.predictions, found.worst)
            )
            accuracies = {names[i]: accuracy for i, accuracy in found.accuracies.items()}
            images = Images(names, found.confusions) if found.confusions is not None else None
            best = meta["best"] and meta["best"]["step"]
            logbook.evaluated(step, found.confusion, found.loss, pictures, worst, accuracies, images, best)
            meta["last"] = {"step": step, "confusion": found.confusion.tolist()}
            if meta["best"] is None or worth(meta["last"]) > worth(meta["best"]):
                meta["best"] = meta["last"]
                save("best")

        def note(steps: range, measures: dict) -> None:
            """Notes finished steps, up to the first that was not finite, which ends the training."""
            measures = {name: np.asarray(values) for name, values in measures.items()}
            finite = measures.pop("finite")
            good = len(steps) if finite.all() else int(np.argmin(finite))
            if good:
                logbook.steps(steps[:good], {name: values[:good] for name, values in measures.items()})
            if good < len(steps):
                nonlocal step, state
                step, state = steps[good], revived(state)  # it is still what it was before that step
                if step > meta["step"]:
                    save("newest")
                raise incident(step, {name: float(values[good]) for name, values in measures.items()})

        def incident(bad: int, measures: dict | None = None):
            names = [setting.train_split.names[i] for i in plan.batch(bad).index]
            if devices.is_writer:
                room(lambda: write_incident(folder, bad + 1, measures or {}, start.batch_of(bad), names, classes))
            return not_finite(bad + 1, names, folder, config.learning_rate)

        step, last_step = meta["step"], min(config.max_steps or setting.total_steps, setting.total_steps)
        is_due = partial(_is_due, steps_per_epoch=plan.steps_per_epoch, total_steps=setting.total_steps)
        if is_due(step, config.evaluate_every) and (meta["last"] is None or meta["last"]["step"] < step):
            score()
        unread = deque()  # measures are read some calls late, so that the devices never wait for the host
        calls = calls_of(range(step, last_step), setting.steps_per_call, plan.steps_per_epoch)
        leaving = None  # the exit code with which all have agreed to leave
        for number, (steps, inputs) in enumerate(zip(calls, prefetch(source.inputs(calls), devices), strict=True)):
            if stop.requested():
                hosts.ask_to_stop(number, stop.exit_code)
            if (leaving := hosts.stop_at(number)) is not None:
                break
            hosts.barrier("step", STUCK_SECONDS if not room.waits else WAITING_SECONDS)
            state, measures = take_steps(state, inputs)
            step = steps.stop
            unread.append((steps, measures))
            scoring, saving = is_due(step, config.evaluate_every), is_due(step, config.checkpoint_every)
            while len(unread) > (0 if should_stop() or scoring or saving or step == last_step else 2):
                note(*unread.popleft())
            if scoring and not should_stop():
                score()
            if saving and not should_stop():
                save("newest")
            checkpoints.poll()
        while unread:
            note(*unread.popleft())
        if step > meta["step"]:
            save("newest")
        room(checkpoints.wait)

        # --- the end ---
        if hosts.is_writer:  # after no step at all nothing is saved
            outcome |= {"saved": step or None, "state": checkpoints.confirm("newest", step) if step else None}
        if not runs.is_finished(meta, setting.total_steps):
            outcome["why"] = f"stopped after step {step} of {setting.total_steps}"
            if leaving or should_stop():
                raise Stopped(leaving or stop.exit_code, outcome["why"])
            logbook.draw_plot(status=f"stopped after step {step}")
            logbook.say(f"{outcome['why']}, all saved; go on with: {command_to_go_on(folder)}")
            return 0
        doing = "recomputing BatchNorm" if config.batch_norm == "recompute" else "choosing the checkpoint"
        with stop.at_once(), logbook.aside(doing):
            variables = finish(start, state, step)
        scored = None, None
        if variables is None:
            rule = " and is of the running statistics" if config.batch_norm == "recompute" else ""
            logbook.say(f"warning: the best checkpoint is not whole any more: the result has no boundary F1{rule}")
        else:
            with logbook.aside("scoring boundaries"):
                score_chosen = partial(evaluate, variables, should_stop)
                scored = evaluate_boundaries(score_chosen, records_scored, len(classes))
        if scored is None:
            outcome["why"] = "stopped before the result was written, all steps done"
            raise Stopped(stop.exit_code, outcome["why"])
        if devices.is_writer:
            room(lambda: write_result(folder, config, setting, meta, logbook, outcome["state"], *scored))
        return 0


def _say_nothing(_text: str) -> None:
    """In the place of printing, for the processes that do not."""


def _never() -> bool:
    return False


def _is_due(step: int, every: int, *, steps_per_epoch: int, total_steps: int) -> bool:
    """Whether what is done every so many epochs is to be done after this step; always after the last one."""
    return step > 0 and (step % (every * steps_per_epoch) == 0 or step == total_steps)


if __name__ == "__main__":
    run_command(main)
