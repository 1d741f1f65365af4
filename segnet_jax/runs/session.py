"""Find the run to resume or create a new one: its folder, its lock, and the checkpoint to resume from."""

import contextlib
import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import Devices
from segnet_jax.distributed.hosts import Hosts
from segnet_jax.metrics.confusion import selection_score
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.reporting.evaluations import Images
from segnet_jax.reporting.page.wording import dataset_words
from segnet_jax.reporting.run_logger import RunLogger
from segnet_jax.runs import find_run, run_folder
from segnet_jax.runs.setup import Setup
from segnet_jax.system.disk import DiskRetry
from segnet_jax.system.errors import UserError
from segnet_jax.training import checkpoint_folders
from segnet_jax.training.checkpoint_content import best_evaluation, check_meta, max_checkpoint_bytes
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.class_weights import load_class_weights
from segnet_jax.training.evaluation import Evaluation
from segnet_jax.training.experiment_check import check_experiment

logger = logging.getLogger(__name__)


def agree_on_run(config: Config, hosts: Hosts, stack: contextlib.ExitStack) -> Config:
    """Return the config with the run that all processes resume, if any; `stack` holds its lock.

    Raises:
      UserError: If the run has other settings, or its folder cannot be used.
      ExitError: If another process is training the run.
    """
    if hosts.is_writer:
        config = find_run.find(config, stack)
    run, resume = json.loads(hosts.broadcast("run", json.dumps([config.run, config.resume])))
    return dataclasses.replace(config, run=run, resume=resume)


def claim_folder(config: Config, hosts: Hosts, stack: contextlib.ExitStack) -> pathlib.Path:
    """Create and lock the folder of a new run in process 0, and return it in every process."""
    claimed = str(find_run.claim_folder(config, stack)) if hosts.is_writer else None
    return pathlib.Path(hosts.broadcast("folder", claimed))


def is_complete(setup: Setup, folder: pathlib.Path, step: int, meta: dict[str, Any]) -> bool:
    """Return whether a run has finished all steps, or stopped early, and written its result; if so, log this.

    `step` and `meta` are those of the newest checkpoint.

    Raises:
      UserError: If the run has taken more steps than the config asks for.
    """
    if step > setup.total_steps:
        least, config = -(-step // setup.sampler.steps_per_epoch), setup.config
        given, more = f"--epochs {config.epochs}", f"--epochs {least}"
        if config.steps:
            given, more = f"--steps {config.steps}", f"--steps {step}"
        raise UserError(
            f"{folder} has taken {step} steps, but {given} is only {setup.total_steps}: use at least {more} "
            "with --override, or start a new run with another --run"
        )
    ended = step == setup.total_steps or (stops_early(setup, meta) and step == meta["last"]["step"])
    if not ended or step != run_folder.steps_of_result(folder):
        return False
    done = f"all {step} steps are done" if step == setup.total_steps else f"it stopped early, after step {step}"
    logger.info(f"{folder} is finished: {done}; use another --run to train again, or see its {run_folder.RESULT_FILE}")
    return True


def is_finished(setup: Setup, meta: dict[str, Any]) -> bool:
    """Return whether the last step is done and evaluated, or training stops early."""
    return stops_early(setup, meta) or (meta["last"] is not None and meta["last"]["step"] == setup.total_steps)


def stops_early(setup: Setup, meta: dict[str, Any]) -> bool:
    """Return whether the last `--patience` evaluations brought no improvement."""
    return 0 < setup.config.patience <= meta["evaluations_since_best"]


def best_intact(checkpoints: Checkpoints, step: int, meta: dict[str, Any], best_metric: str) -> dict[str, Any] | None:
    """Return the best evaluation whose checkpoint is intact; warn if the run's best checkpoint is lost.

    `step` and `meta` are those of the checkpoint to resume from.

    Returns:
      Step and confusion matrix; None if no such evaluation is left, so that the next one becomes the best.
    """
    best, intact = meta["best"], checkpoints.latest_best(until=step)
    if intact == (best and best["step"]):
        return best
    left = []
    if intact is not None:
        left = [best_evaluation(checkpoints.read_meta("best", intact), f"the best checkpoint of step {intact}")]
    left += [meta["last"]] if meta["last"] and meta["last"]["step"] == step else []  # newest was evaluated
    found = max(filter(None, left), key=lambda each: selection_score(each, best_metric), default=None)
    if best and found != best:
        was = f"step {best['step']}, {best_metric} {selection_score(best, best_metric):.4f}"
        now = f"the checkpoint of step {found['step']}" if found else "the next evaluated checkpoint"
        logger.warning(
            f"the best checkpoint ({was}) is lost: {now} replaces it, so the result may be worse; to restore it, stop "
            f"the run, copy it back to {checkpoints.folders.path('best', best['step'])}, and resume"
        )
    return found


def prepare_folder(
    setup: Setup, folder: pathlib.Path, checkpoints: Checkpoints, resumed: int | None, disk: DiskRetry
) -> None:
    """Write the files that describe a new run, or record how a run resumes after step `resumed`.

    Delete leftovers of killed processes.
    """
    run_folder.clean_up(folder)
    checkpoints.folders.clean_up()
    if resumed is None:
        kinds, batch = setup.devices.kinds, setup.batch(0)
        disk(lambda: run_folder.write_first_files(folder, setup.config, kinds, setup.dataset, batch))
    else:
        disk(lambda: run_folder.set_result_aside(folder))
        disk(lambda: run_folder.record_overrides(folder, setup.config, resumed))
        disk(lambda: checkpoints.folders.delete_after(resumed))


def new_meta(setup: Setup, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the checkpoint metadata of a new run, before its first step and without class weights."""
    meta = setup.identity | {"preprocessing": vars(preprocessing), "class_weights_by": None}
    meta |= {"colors": setup.dataset.classes.colors, "step": 0, "seconds": 0.0, "last": None, "best": None}
    return meta | {"evaluations_since_best": 0}


def checkpoints_of(folder: pathlib.Path, config: Config, devices: Devices, hosts: Hosts) -> Checkpoints:
    """Return the checkpoints of a run folder; use them as a context manager."""
    settings = {
        "keep": config.keep_checkpoints,
        "max_bytes": max_checkpoint_bytes(config.width, config.has_custom_network),
    }
    return Checkpoints(folder / "checkpoints", devices, broadcast=partial(hosts.broadcast, "checkpoint"), **settings)


def meta_to_resume(checkpoints: Checkpoints, step: int, setup: Setup, folder: pathlib.Path) -> dict[str, Any]:
    """Return the metadata of the newest checkpoint, after checking that training may resume from it with this setup.

    Raises:
      UserError: If the data or the settings differ.
      NoCheckpoint: If the metadata are invalid.
    """
    config = setup.config
    meta = check_meta(checkpoints.read_meta("newest", step), f"the newest checkpoint of {folder}", True)
    run_folder.check_resumable(meta, setup.identity, folder, setup.dataset)
    check_experiment(folder, meta, config, override=config.override)
    return meta


def class_weights(setup: Setup, meta: dict[str, Any]) -> np.ndarray:
    """Return the class weights of the loss, float32 [C], after updating them in `meta` if the rule has changed."""
    config = setup.config
    if config.class_weights != meta["class_weights_by"]:
        weights = load_class_weights(config, setup.dataset)
        meta |= {"class_weights": weights.tolist(), "class_weights_by": config.class_weights}
    return checkpoint_folders.class_weights_of(meta)


def open_logger(
    setup: Setup, folder: pathlib.Path, meta: dict[str, Any], disk: DiskRetry, should_stop: Callable[[], bool]
) -> RunLogger:
    """Open the logger of a run's metrics and pictures; it does nothing in processes that do not write."""
    return RunLogger(
        folder if setup.devices.is_writer else None,
        classes=setup.dataset.classes,
        total_steps=setup.total_steps,
        steps_per_epoch=setup.sampler.steps_per_epoch,
        images_per_step=setup.sampler.global_batch_size,
        first_step=meta["step"],
        scored_step=meta["last"]["step"] if meta["last"] else 0,
        seconds_before=meta["seconds"],
        resumed=setup.config.resume,
        title=f"{folder.resolve().name}: SegNet on {dataset_words(setup.dataset.name)}",
        device=str(setup.devices),
        about=setup.about,
        write=disk,
        should_stop=should_stop,
        hyperparameters=hyperparameters(setup.config),
        loggers=setup.config.logger,
    )


def hyperparameters(config: Config) -> dict[str, Any]:
    """Return the settings that differ from the defaults as numbers, booleans and strings."""
    fields = config.experiment()
    return {name: " ".join(map(str, each)) if isinstance(each, list) else each for name, each in fields.items()}


def shown(found: Evaluation, setup: Setup, meta: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `RunLogger.log_evaluation` for an evaluation, already recorded in `meta`."""
    names, samples = setup.eval_split.names, setup.eval_samples
    pictures, worst = (
        [(names[i], *samples.read(i), prediction) for i, prediction in predictions.items()]
        for predictions in (found.predictions, found.worst)
    )
    return {
        "confusion": found.confusion,
        "loss": found.loss,
        "pictures": pictures,
        "worst": worst,
        "accuracies": {names[i]: accuracy for i, accuracy in found.accuracies.items()},
        "images": Images(names, found.confusions) if found.confusions is not None else None,
        "stops": stops_early(setup, meta),
    }


def record_evaluation(setup: Setup, meta: dict[str, Any], found: Evaluation, step: int) -> bool:
    """Record an evaluation in `meta`, the metadata of the run, and return whether it is the best so far."""
    meta["last"] = {"step": step, "confusion": found.confusion.tolist()}
    if not _is_better(setup, meta, found.loss, step):
        meta["evaluations_since_best"] += meta["best"] is not None
        return False
    meta |= {"best": meta["last"], "evaluations_since_best": 0}
    return True


def _is_better(setup: Setup, meta: dict[str, Any], loss: float, step: int) -> bool:
    """Return whether the last evaluation is the best so far.

    A non-finite loss rules this out, except after the last step if there is no best evaluation: while float16 training
    searches for its loss scale, the network may return NaN, which is scored as if one class were predicted everywhere.
    """
    if meta["best"] is None:
        return math.isfinite(loss) or step == setup.total_steps
    last, best = (selection_score(meta[name], setup.config.best_metric) for name in ("last", "best"))
    return math.isfinite(loss) and last > best
