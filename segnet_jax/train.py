"""Trains SegNet: `python -m segnet_jax.train --help`."""

import contextlib
import pathlib
import shlex
import sys
from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax import assembly, runs
from segnet_jax.command import run_command
from segnet_jax.config import Config
from segnet_jax.files import atomic_write_json
from segnet_jax.flags import parse_config
from segnet_jax.inputs import calls_of, choose_place, evaluation_input, training_input
from segnet_jax.metrics.confusion import scores
from segnet_jax.pipeline import host
from segnet_jax.pipeline.decoded import in_words
from segnet_jax.reporting.logbook import Logbook
from segnet_jax.reporting.run_folder import result
from segnet_jax.reporting.tables import print_table
from segnet_jax.setting import settle
from segnet_jax.stopping import Stop
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.parallel import prefetch, replicate
from segnet_jax.training.state import create_state

DESCRIPTION = """Trains SegNet; leaves a run folder with checkpoints, scores and pictures.

Try it:  python -m segnet_jax.train --protocol demo

CamVid:  python -m segnet_jax.train --protocol camvid-tutorial --data DIR --devices 8"""


def main() -> int:
    """The command."""
    return train(parse_config(sys.argv[1:], prog="segnet_jax.train", description=DESCRIPTION))


def train(config: Config) -> int:
    """Trains as the config says; returns the exit code.

    Raises:
      UserError: for the user's mistakes, all of them before anything is compiled.
    """

    def say(text: str) -> None:
        if jax.process_index() == 0:
            print(text, file=sys.stderr, flush=True)

    if not config.resume:
        runs.check_free(config)
    setting = settle(config, say)
    devices, data_set, plan = setting.devices, setting.data_set, setting.plan
    classes, scored = data_set.classes, setting.scored
    open_checkpoints = partial(Checkpoints, devices=devices, keep=config.keep_checkpoints)

    with contextlib.ExitStack() as stack:
        # --- what there is before the first step: of a run to go on with, or of a new one ---
        if config.resume:
            folder = pathlib.Path(config.run)
            checkpoints = stack.enter_context(open_checkpoints(folder / "checkpoints"))
            meta = checkpoints.read_meta("newest")
            runs.check_resumable(meta, setting.identity, folder, setting.total_steps)
            preprocessing, class_weights = runs.preprocessing_of(meta), runs.class_weights_of(meta)
        else:
            vgg = assembly.read_first_weights(config)
            preprocessing = assembly.choose_preprocessing(config, vgg)
            class_weights = assembly.load_class_weights(config, data_set, say)
            given = {"preprocessing": vars(preprocessing), "class_weights": class_weights.tolist()}
            meta = setting.identity | given | {"step": 0, "seconds": 0.0, "last": None, "best": None}
        records = assembly.decode(setting.train_split, config, "reading training images", say)
        records_scored = assembly.decode(setting.scored_split, config, f"reading {scored} images", say)
        num_scored = len(records_scored)
        assembly.warn_of_labels(classes, say, **{"train": records, scored: records_scored})
        place = choose_place("device" if setting.steps_per_call > 1 else config.input, devices, records, records_scored)
        share = assembly.device_share(devices, config.batch_size_per_device)
        batch_of = partial(host.training_batch, records, plan, share, config.accumulate)
        if not config.resume:
            folder = runs.claim_folder(config)
            checkpoints = stack.enter_context(open_checkpoints(folder / "checkpoints"))
            if devices.is_writer:
                runs.write_first_files(folder, config, devices.kinds, classes, batch_of(0))
        say(f"run      {folder}" + ("" if config.resume else ": see its first_batch.png while this compiles"))

        # --- network and steps ---
        model = assembly.build_model(config, len(classes), setting.precision)
        optimizer, schedule = assembly.build_optimizer(config, plan.steps_per_epoch)
        if config.resume:
            state = checkpoints.restore("newest", assembly.state_shapes(model, optimizer, setting.precision))
        else:
            variables = assembly.first_variables(config, model, vgg, preprocessing, batch_of, devices)
            state = replicate(create_state(variables, optimizer, setting.precision), devices)
        say(f"network  SegNet, {sum(leaf.size for leaf in jax.tree.leaves(state.params)):,} parameters")
        step_settings = {"model": model, "class_weights": jnp.asarray(class_weights), "preprocessing": preprocessing}
        source = training_input(place, records, plan, share, config.accumulate, devices)
        take_steps = assembly.build_train_step(
            source,
            devices,
            say,
            optimizer=optimizer,
            schedule=schedule,
            half_gradients=config.half_gradients,
            **step_settings,
        )
        source_scored = evaluation_input(place, records_scored, share, devices)
        evaluate = assembly.build_evaluator(source_scored, num_scored, share, devices, say, **step_settings)
        say(f"input    {place}, {in_words(records.num_bytes + records_scored.num_bytes)} of images and labels")

        # --- the loop ---
        stop = stack.enter_context(Stop())
        logbook = stack.enter_context(
            Logbook(
                folder if devices.is_writer else None,
                classes=classes,
                total_steps=setting.total_steps,
                steps_per_epoch=plan.steps_per_epoch,
                images_per_step=plan.global_batch_size,
                first_step=meta["step"],
                seconds_before=meta["seconds"],
                resumed=config.resume,
                title=f"SegNet on {data_set.name}",
                device=str(devices),
            )
        )

        def save(which: str) -> None:
            checkpoints.save(which, step, state, meta | {"step": step, "seconds": logbook.seconds})

        def score() -> None:
            with logbook.aside("evaluating"):
                found = evaluate(state.variables, stop.requested)
            if found is None:  # stopped: it is done first when the run goes on
                return
            pictures = [
                (setting.scored_split.names[i], *records_scored.read(i), p) for i, p in found.predictions.items()
            ]
            logbook.evaluated(step, scores(found.confusion), found.loss, pictures)
            meta["last"] = {"step": step, "confusion": found.confusion.tolist()}
            if meta["best"] is None or _miou(meta["last"]) > _miou(meta["best"]):
                meta["best"] = meta["last"]
                save("best")

        step, last_step = meta["step"], min(config.max_steps or setting.total_steps, setting.total_steps)
        is_due = partial(_is_due, steps_per_epoch=plan.steps_per_epoch, total_steps=setting.total_steps)
        if is_due(step, config.evaluate_every) and (meta["last"] is None or meta["last"]["step"] < step):
            score()
        unread = deque()  # measures are read some calls late, so that the devices never wait for the host
        calls = calls_of(range(step, last_step), setting.steps_per_call, plan.steps_per_epoch)
        for steps, inputs in zip(calls, prefetch(source.inputs(calls), devices), strict=True):
            state, measures = take_steps(state, inputs)
            step = steps.stop
            unread.append((steps, measures))
            stopping = stop.requested() or step == last_step
            scoring = is_due(step, config.evaluate_every)
            while len(unread) > (0 if stopping or scoring else 2):
                logbook.steps(*unread.popleft())
            if scoring and not stop.requested():
                score()
                stopping |= stop.requested()
            if stopping or is_due(step, config.checkpoint_every):
                save("newest")
            if stopping:
                break
        checkpoints.wait()

        # --- the result ---
        if not runs.is_finished(meta, setting.total_steps):
            logbook.draw_plot(status=f"stopped after step {step}")
            resume = shlex.join(["python", "-m", "segnet_jax.train", "--run", str(folder), "--resume"])
            logbook.say(f"stopped after step {step} of {setting.total_steps}, all saved; go on with: {resume}")
            return stop.exit_code or 0
        chosen = meta[config.result_checkpoint]
        found = scores(np.array(chosen["confusion"]))
        if devices.is_writer:
            summary = result(
                found,
                classes,
                protocol=config.protocol or "custom",
                split=scored,
                num_images=num_scored,
                seconds=logbook.seconds,
                images_per_second=logbook.images_per_second,
                device=str(devices),
                seed=config.seed,
            )
            extra = {
                "checkpoint": config.result_checkpoint,
                "step": chosen["step"],
                "num_steps": setting.total_steps,
                "last_miou": _miou(meta["last"]),
                "precision": setting.precision,
            }
            atomic_write_json(folder / runs.RESULT_FILE, summary | extra)
            print_table(found, classes)
            print(f"{scored} scores of the {config.result_checkpoint} checkpoint, step {chosen['step']}; see {folder}")
        return 0


def _is_due(step: int, every: int, *, steps_per_epoch: int, total_steps: int) -> bool:
    """Whether what is done every so many epochs is to be done after this step; always after the last one."""
    return step > 0 and (step % (every * steps_per_epoch) == 0 or step == total_steps)


def _miou(scored: dict) -> float:
    return scores(np.array(scored["confusion"])).miou


if __name__ == "__main__":
    run_command(main)
