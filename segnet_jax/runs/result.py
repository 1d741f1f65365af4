"""The result of a finished run: the checkpoint it is of, `result.json`, and the table that is printed."""

import logging
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.config.files import protocol_batch, recipe_differences
from segnet_jax.data.sequences import sequences_of
from segnet_jax.distributed.data_parallel import replicate
from segnet_jax.metrics.baseline import Baseline, commonest_class_baseline, is_clearly_better
from segnet_jax.metrics.bootstrap import intervals
from segnet_jax.metrics.boundary import BoundaryF1
from segnet_jax.metrics.confusion import scores, selection_score
from segnet_jax.metrics.table import percent, primary_metrics
from segnet_jax.reporting.environment import result
from segnet_jax.reporting.evaluations import Images, images_path, read_images, write_images
from segnet_jax.reporting.run_logger import RunLogger
from segnet_jax.reporting.tables import print_table
from segnet_jax.runs import run_folder
from segnet_jax.runs.setup import Setup
from segnet_jax.system.console import echo
from segnet_jax.system.disk import DiskRetry
from segnet_jax.system.files import atomic_write_json
from segnet_jax.training import batch_norm_statistics
from segnet_jax.training.batch_norm_statistics import precise_statistics
from segnet_jax.training.checkpoint_folders import Which
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.evaluation import Evaluation
from segnet_jax.training.experiment import overrides
from segnet_jax.training.state import TrainState

logger = logging.getLogger(__name__)


def by_statistics(confusions: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """The scores under BatchNorm's running and recomputed statistics, as JSON; nothing where there are only the former.

    Args:
      confusions: "running", and "recompute" where they were, int64 [C,C].
    """
    if confusions.keys() == {"running"}:
        return {}
    found = {rule: scores(confusion) for rule, confusion in confusions.items()}
    return {"batch_norm": {rule: {key: each.values[key] for key in primary_metrics()} for rule, each in found.items()}}


def write_result(
    folder: pathlib.Path,
    setup: Setup,
    meta: dict,
    run_logger: RunLogger,
    sum_of_state: str,
    evaluation: Evaluation | None,
    boundary: BoundaryF1 | None,
) -> None:
    """Writes `result.json` of a finished run and prints its table.

    Args:
      folder: the run's.
      setup: of the run.
      meta: of its last checkpoint.
      run_logger: of its training.
      sum_of_state: of its last state.
      evaluation: of the checkpoint that counts, once more after the training: with BatchNorm's recomputed statistics,
        where they count; None where that checkpoint is not whole any more.
      boundary: likewise.
    """
    config = setup.config
    chosen, classes = meta[config.result_checkpoint], setup.dataset.classes
    confusions = {"running": np.array(chosen["confusion"])}
    recomputed = config.batch_norm == "recompute" and evaluation is not None
    if recomputed:
        confusions["recompute"] = evaluation.confusion
    counted = confusions["recompute" if recomputed else "running"]
    found = scores(counted)
    summary = result(
        found,
        classes,
        protocol=config.protocol or "custom",
        split=setup.eval_name,
        num_images=len(setup.eval_split),
        seconds=run_logger.seconds,
        images_per_second=run_logger.images_per_second,
        device=str(setup.devices),
        seed=config.seed,
        boundary_f1=boundary,
    )
    extra = {
        "checkpoint": config.result_checkpoint,
        "step": chosen["step"],
        "num_steps": setup.total_steps,
        "last_miou": selection_score(meta["last"]),
        "precision": setup.precision,
        "state": sum_of_state,
        **by_statistics(confusions),
        **({"confusion": counted} if recomputed else {}),
    }
    path, names = images_path(folder, chosen["step"]), setup.eval_split.names
    if recomputed and evaluation.confusions is not None:  # they are what the result is of
        write_images(path, Images(names, evaluation.confusions))
    images = read_images(path)
    if images is not None and not np.array_equal(images.confusions.sum(axis=0), counted):
        images = None  # of another evaluation
    told = recipe(config, setup.dataset.name, setup.sampler.global_batch_size) | of_images(images)
    extra |= told
    baseline = commonest_class_baseline(counted)
    if baseline is not None:
        extra["baseline"] = {"class": classes.names[baseline.class_id], **baseline.values}
    changes = {"overrides": changed} if (changed := overrides(folder)) else {}
    atomic_write_json(folder / run_folder.RESULT_FILE, summary | extra | changes)
    print_table(found, classes, interval=told["interval"], boundary=boundary)
    which = (
        f"{setup.eval_name} scores of the {config.result_checkpoint} checkpoint, step {chosen['step']}; see {folder}"
    )
    echo(which)
    if baseline is not None:
        _print_baseline(found.miou, baseline, classes.names[baseline.class_id])


def _print_baseline(miou: float, baseline: Baseline, name: str) -> None:
    """Print the scores of the commonest class alone, and warn if the network is hardly better."""
    always = f"mIoU {percent(baseline.values['miou'])}, global accuracy {percent(baseline.values['global_accuracy'])}"
    echo(f"for comparison, predicting {name} everywhere: {always}")
    if not is_clearly_better(miou, baseline):
        logger.warning(
            f"the network is not clearly better than predicting {name} everywhere: check the labels with doctor, train "
            "longer, or start from pretrained weights (--init)"
        )


def recipe(config: Config, dataset: str, global_batch_size: int | None) -> dict[str, Any]:
    """What a result says of its recipe: the data, and all that differs from the protocol, else from the defaults.

    Args:
      config: of the run.
      dataset: name of the data that it was trained on.
      global_batch_size: images a step; None where it is not known.
    """
    _, base, changes = recipe_differences(config)
    changes = {name: both for name, both in changes.items() if name != "grad_accum_steps"}  # the batch tells it
    data = f"camvid-{base.split_rule}" if base.data == "camvid" else base.data
    num_devices = (global_batch_size or 0) // (config.batch_size_per_device * config.grad_accum_steps)
    batch = protocol_batch(base, num_devices)
    for name, both in {"dataset": (data, dataset), "global_batch_size": (batch, global_batch_size)}.items():
        if both[1] is not None and both[0] != both[1]:
            changes[name] = both
    return {"dataset": dataset, "differences": {name: list(both) for name, both in changes.items()}}


def of_images(images: Images | None) -> dict[str, Any]:
    """What a result says of single images: how far the choice of images may move its scores, and each sequence's score.

    Args:
      images: the confusion matrix of each; None where they were not kept, and then there is no interval.
    """
    if images is None:
        return {"interval": {}}
    told: dict[str, Any] = {"interval": intervals([images.confusions])}
    names = sequences_of(images.names)
    if names is not None and len(set(names)) > 1:  # of a single one the score is known
        found = {}
        for name in sorted(set(names)):
            mine = images.confusions[[each == name for each in names]]
            matrix = mine.sum(axis=0, dtype=np.int64)
            found[name] = {"miou": scores(matrix).miou if matrix.any() else np.nan, "num_images": len(mine)}
        told["sequences"] = found
    return told


def result_variables(
    setup: Setup, checkpoints: Checkpoints, meta: dict[str, Any], state: TrainState, step: int, disk: DiskRetry
) -> dict[str, Any] | None:
    """Return the variables of the checkpoint that the result is of.

    With `--batch-norm recompute`, precise statistics of the best and of the newest checkpoint are computed and kept
    first. Every process calls it.

    Args:
      setup: of the run.
      checkpoints: of the run.
      meta: metadata of the newest checkpoint.
      state: after the last step.
      step: the last step.
      disk: retries what fails because the disk is full.

    Returns:
      "params" and "batch_stats"; None if they are those of the best checkpoint, and that is damaged.
    """
    config, best = setup.config, meta["best"]["step"]
    chosen = best if config.result_checkpoint == "best" else step
    precise = config.batch_norm == "recompute"
    found = {}
    for which, of_step in (("newest", step), ("best", best)):
        if of_step in found or not (precise or of_step == chosen):
            continue
        if of_step == step:
            variables = state.variables
        else:
            checkpoints.wait()
            if not checkpoints.is_latest(which, of_step):
                continue
            variables = checkpoints.restore(which, of_step, setup.state_shapes).variables
        if precise:
            variables = keep_precise_statistics(setup, checkpoints, which, of_step, variables, disk)
        found[of_step] = variables
    return found.get(chosen)


def keep_precise_statistics(
    setup: Setup, checkpoints: Checkpoints, which: Which, step: int, variables: dict[str, Any], disk: DiskRetry
) -> dict[str, Any]:
    """Compute precise batch-norm statistics of a checkpoint and keep them beside it; every process calls it.

    Args:
      setup: of the run.
      checkpoints: of the run.
      which: the best or the newest checkpoint.
      step: of the checkpoint.
      variables: of the checkpoint.
      disk: retries what fails because the disk is full.

    Returns:
      The variables with these statistics.
    """
    config, devices = setup.config, setup.devices
    network = (setup.model, variables, setup.train_samples, setup.preprocessing)
    batch_stats = precise_statistics(config, setup.sampler.global_batch_size, *network, devices)
    if devices.is_writer:
        state_sum = checkpoints.confirm(which, step)
        facts = {"step": step, "data": setup.train_split.fingerprint, "variance": config.batch_norm_variance}
        folder = checkpoints.folders.root
        disk(partial(batch_norm_statistics.save_statistics, folder, state_sum, batch_stats, facts))
    return variables | {"batch_stats": replicate(batch_stats, devices)}
