"""The result of a finished run: choice of the checkpoint, `result.json`, and the printed table."""

import logging
import pathlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from segnet_jax.config.differences import recipe_differences
from segnet_jax.config.fields import Config
from segnet_jax.config.files import protocol_batch
from segnet_jax.data.dataset import Dataset
from segnet_jax.data.sequences import sequences_of
from segnet_jax.distributed.data_parallel import Devices, replicate
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
from segnet_jax.runs.load_dataset import decode, open_data
from segnet_jax.runs.setup import Setup
from segnet_jax.system.console import bar, echo
from segnet_jax.system.disk import DiskRetry
from segnet_jax.system.files import atomic_write_json
from segnet_jax.training import batch_norm_statistics
from segnet_jax.training.batch_norm_statistics import precise_statistics
from segnet_jax.training.checkpoint_folders import Which, preprocessing_of
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.evaluation import Evaluation, evaluate_boundaries
from segnet_jax.training.experiment_check import overrides
from segnet_jax.training.restore_network import Restored
from segnet_jax.training.state import TrainState

logger = logging.getLogger(__name__)


def by_statistics(confusions: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Return the scores with "running" and with "recompute" (precise) statistics, as JSON; {} without the latter."""
    if confusions.keys() == {"running"}:
        return {}
    by_rule = {rule: scores(confusion) for rule, confusion in confusions.items()}
    return {
        "batch_norm": {rule: {key: each.values[key] for key in primary_metrics()} for rule, each in by_rule.items()}
    }


def write_result(
    folder: pathlib.Path,
    setup: Setup,
    meta: dict,
    run_logger: RunLogger,
    sum_of_state: str,
    evaluation: Evaluation | None,
    boundary: BoundaryF1 | None,
) -> None:
    """Write `result.json` of a finished run and print its table.

    `meta` and `sum_of_state` are metadata and checksum of the last checkpoint; `evaluation` and `boundary` score the
    result's checkpoint, with precise batch-norm statistics if configured, and are None if it is damaged.
    """
    config = setup.config
    chosen, classes = meta[config.result_checkpoint], setup.dataset.classes
    confusions = {"running": np.array(chosen["confusion"])}
    recomputed = config.batch_norm == "recompute" and evaluation is not None
    if recomputed:
        confusions["recompute"] = evaluation.confusion
    confusion = confusions["recompute" if recomputed else "running"]
    table = scores(confusion)
    summary = result(
        table,
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
        "num_steps": meta["last"]["step"],
        **({"stopped_early": True} if meta["last"]["step"] < setup.total_steps else {}),
        "last_miou": selection_score(meta["last"]),
        "precision": setup.precision,
        "state": sum_of_state,
        **by_statistics(confusions),
        **({"confusion": confusion} if recomputed else {}),
    }
    path, names = images_path(folder, chosen["step"]), setup.eval_split.names
    if recomputed and evaluation.confusions is not None:  # the result is computed from these
        write_images(path, Images(names, evaluation.confusions))
    images = read_images(path)
    if images is not None and not np.array_equal(images.confusions.sum(axis=0), confusion):
        images = None  # of another evaluation
    by_image = summarize_images(images)
    extra |= recipe(config, setup.dataset.name, setup.sampler.global_batch_size) | by_image
    baseline = commonest_class_baseline(confusion)
    if baseline is not None:
        extra["baseline"] = {"class": classes.names[baseline.class_id], **baseline.values}
    changes = {"overrides": changed} if (changed := overrides(folder)) else {}
    atomic_write_json(folder / run_folder.RESULT_FILE, summary | extra | changes)
    print_table(table, classes, interval=by_image["interval"], boundary=boundary)
    if meta["last"]["step"] < setup.total_steps:
        stopped = f"stopped early after step {meta['last']['step']} of {setup.total_steps}"
        echo(f"{stopped}: {config.best_metric} did not improve in the last {config.patience} evaluations")
    echo(f"{setup.eval_name} scores of the {config.result_checkpoint} checkpoint, step {chosen['step']}; see {folder}")
    if baseline is not None:
        _print_baseline(table.miou, baseline, classes.names[baseline.class_id])


def _print_baseline(miou: float, baseline: Baseline, name: str) -> None:
    """Print the scores of predicting the most common class, and warn if the network is hardly better."""
    always = f"mIoU {percent(baseline.values['miou'])}, global accuracy {percent(baseline.values['global_accuracy'])}"
    echo(f"for comparison, predicting {name} everywhere: {always}")
    if not is_clearly_better(miou, baseline):
        logger.warning(
            f"the network is not clearly better than predicting {name} everywhere: check the labels with doctor, train "
            "longer, or start from pretrained weights (--init)"
        )


def recipe(config: Config, dataset: str, global_batch_size: int | None) -> dict[str, Any]:
    """Return the dataset of a result, and how its settings differ from the protocol or, without one, the defaults."""
    _, base, changes = recipe_differences(config)
    # The global batch size, compared below, includes the accumulation.
    changes = {name: both for name, both in changes.items() if name != "grad_accum_steps"}
    data = f"camvid-{base.split_rule}" if base.data == "camvid" else base.data
    num_devices = (global_batch_size or 0) // (config.batch_size_per_device * config.grad_accum_steps)
    batch = protocol_batch(base, num_devices)
    for name, both in {"dataset": (data, dataset), "global_batch_size": (batch, global_batch_size)}.items():
        if both[1] is not None and both[0] != both[1]:
            changes[name] = both
    return {"dataset": dataset, "differences": {name: list(both) for name, both in changes.items()}}


def summarize_images(images: Images | None) -> dict[str, Any]:
    """Return the bootstrap intervals and the score of each video sequence; {"interval": {}} without images."""
    if images is None:
        return {"interval": {}}
    summary: dict[str, Any] = {"interval": intervals([images.confusions])}
    names = sequences_of(images.names)
    if names is not None and len(set(names)) > 1:  # the score of a single sequence is the total
        sequences = {}
        for name in sorted(set(names)):
            confusions = images.confusions[[each == name for each in names]]
            matrix = confusions.sum(axis=0, dtype=np.int64)
            sequences[name] = {"miou": scores(matrix).miou if matrix.any() else np.nan, "num_images": len(confusions)}
        summary["sequences"] = sequences
    return summary


def recompute_statistics(
    run: str, trained: Config, dataset: Dataset, restored: Restored, devices: Devices
) -> dict[str, Any]:
    """Compute precise batch-norm statistics of a restored network over the training images of its run.

    Args:
      run: name of the run.
      trained: config that the run was trained with.
      dataset: dataset in use; its training images are read only if the run was trained on them.
      restored: the network with running statistics.
      devices: devices to compute on.

    Raises:
      UserError: If the training images cannot be read.
    """
    fingerprint = restored.meta["data"]["train"]
    split = dataset.splits["train"]
    if split.fingerprint != fingerprint:  # evaluated on another dataset
        split = open_data(trained).splits["train"]
    if split.fingerprint != fingerprint:
        logger.warning(
            f"the training images in {trained.data} have changed since {run} was trained; BatchNorm statistics are "
            "recomputed over the current images"
        )
    samples = decode(split, trained, "reading train images")
    preprocessing = preprocessing_of(restored.meta)
    with bar("recomputing BatchNorm", len(split)) as advance:
        network = (restored.model, restored.variables, samples, preprocessing)
        return precise_statistics(trained, restored.meta["global_batch_size"], *network, devices, advance)


def result_variables(
    setup: Setup, checkpoints: Checkpoints, meta: dict[str, Any], state: TrainState, step: int, disk: DiskRetry
) -> dict[str, Any] | None:
    """Return the variables of the result's checkpoint; every process must call this function.

    With `--batch-norm recompute`, it first computes and saves precise statistics of the best and newest checkpoints.
    `meta` belongs to the newest checkpoint, and `state` is the state after the last step, `step`.

    Returns:
      "params" and "batch_stats"; None if the result's checkpoint is the best one and is damaged.
    """
    config, best = setup.config, meta["best"]["step"]
    chosen = best if config.result_checkpoint == "best" else step
    precise = config.batch_norm == "recompute"
    by_step = {}
    for which, saved_step in (("newest", step), ("best", best)):
        if saved_step in by_step or not (precise or saved_step == chosen):
            continue
        if saved_step == step:
            variables = state.variables
        else:
            checkpoints.wait()
            if not checkpoints.is_latest(which, saved_step):
                continue
            variables = checkpoints.restore(which, saved_step, setup.state_shapes).variables
        if precise:
            variables = save_precise_statistics(setup, checkpoints, which, saved_step, variables, disk)
        by_step[saved_step] = variables
    return by_step.get(chosen)


def score_result(
    setup: Setup, variables: dict[str, Any] | None, evaluate: Callable[..., Evaluation | None]
) -> tuple[Evaluation | None, BoundaryF1 | None] | None:
    """Evaluate the result's checkpoint.

    Args:
      setup: setup of the run.
      variables: from `result_variables`.
      evaluate: function (variables, on_prediction) -> evaluation, or None if stopped.

    Returns:
      The evaluation and its boundary F1, both None if the checkpoint is damaged; None if stopped.
    """
    if variables is None:
        lost = " and uses the running statistics" if setup.config.batch_norm == "recompute" else ""
        logger.warning(f"the best checkpoint is damaged: the result has no boundary F1{lost}")
        return None, None
    return evaluate_boundaries(partial(evaluate, variables), setup.eval_samples, len(setup.dataset.classes))


def save_precise_statistics(
    setup: Setup, checkpoints: Checkpoints, which: Which, step: int, variables: dict[str, Any], disk: DiskRetry
) -> dict[str, Any]:
    """Compute and save precise batch-norm statistics of a checkpoint; every process must call this function.

    Return the checkpoint's variables with these statistics.
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
