"""The result of a finished run: `result.json` and the table that is printed of it."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from segnet_jax import runs
from segnet_jax.config import Config
from segnet_jax.config_files import protocol_batch, recipe_differences
from segnet_jax.datasets.sequences import sequences_of
from segnet_jax.files import atomic_write_json
from segnet_jax.metrics.bootstrap import SCORES, intervals
from segnet_jax.metrics.boundary import BoundaryF1
from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.kept import Images, images_path, read_images, write_images
from segnet_jax.reporting.logbook import Logbook
from segnet_jax.reporting.run_folder import result
from segnet_jax.reporting.saying import tell
from segnet_jax.reporting.tables import print_table
from segnet_jax.setting import Setting
from segnet_jax.training.evaluation import Evaluation


def merit(scored: dict, selected_by: str = "miou") -> float:
    """The score by which checkpoints are compared, of what a checkpoint's JSON says of a scored step."""
    return getattr(scores(np.array(scored["confusion"])), selected_by)


def by_statistics(confusions: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """The scores under BatchNorm's running and recomputed statistics, as JSON; nothing where there are only the former.

    Args:
      confusions: "running", and "recompute" where they were, int64 [C,C].
    """
    if confusions.keys() == {"running"}:
        return {}
    found = {rule: scores(confusion) for rule, confusion in confusions.items()}
    return {"batch_norm": {rule: {name: getattr(each, name) for name in SCORES} for rule, each in found.items()}}


def write_result(
    folder: pathlib.Path,
    config: Config,
    setting: Setting,
    meta: dict,
    logbook: Logbook,
    sum_of_state: str,
    evaluation: Evaluation | None,
    boundary: BoundaryF1 | None,
) -> None:
    """Writes `result.json` of a finished run and prints its table.

    Args:
      folder: the run's.
      config: its.
      setting: what that came to.
      meta: of its last checkpoint.
      logbook: of its training.
      sum_of_state: of its last state.
      evaluation: of the checkpoint that counts, once more after the training: with BatchNorm's recomputed statistics,
        where they count; None where that checkpoint is not whole any more.
      boundary: likewise.
    """
    chosen, classes = meta[config.result_checkpoint], setting.data_set.classes
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
        split=setting.scored,
        num_images=len(setting.scored_split),
        seconds=logbook.seconds,
        images_per_second=logbook.images_per_second,
        device=str(setting.devices),
        seed=config.seed,
        boundary_f1=boundary,
    )
    extra = {
        "checkpoint": config.result_checkpoint,
        "step": chosen["step"],
        "num_steps": setting.total_steps,
        "last_miou": merit(meta["last"]),
        "precision": setting.precision,
        "state": sum_of_state,
        **by_statistics(confusions),
        **({"confusion": counted} if recomputed else {}),
    }
    path, names = images_path(folder, chosen["step"]), setting.scored_split.names
    if recomputed and evaluation.confusions is not None:  # they are what the result is of
        write_images(path, Images(names, evaluation.confusions))
    images = read_images(path)
    if images is not None and not np.array_equal(images.confusions.sum(axis=0), counted):
        images = None  # of another evaluation
    told = recipe(config, setting.data_set.name, setting.plan.global_batch_size) | of_images(images)
    extra |= told
    changes = {"overrides": runs.overrides(folder)} if runs.overrides(folder) else {}
    atomic_write_json(folder / runs.RESULT_FILE, summary | extra | changes)
    print_table(found, classes, interval=told["interval"], boundary=boundary)
    which = f"{setting.scored} scores of the {config.result_checkpoint} checkpoint, step {chosen['step']}; see {folder}"
    tell(which)


def recipe(config: Config, data_set: str, global_batch_size: int | None) -> dict[str, Any]:
    """What a result says of its recipe: the data, and all that differs from the protocol, else from the defaults.

    Args:
      config: of the run.
      data_set: name of the data that it was trained on.
      global_batch_size: images a step; None where it is not known.
    """
    _, base, changes = recipe_differences(config)
    changes = {name: both for name, both in changes.items() if name != "accumulate"}  # the batch tells it
    data = f"camvid-{base.split_rule}" if base.data == "camvid" else base.data
    num_devices = (global_batch_size or 0) // (config.batch_size_per_device * config.accumulate)
    batch = protocol_batch(base, num_devices)
    for name, both in {"data_set": (data, data_set), "global_batch_size": (batch, global_batch_size)}.items():
        if both[1] is not None and both[0] != both[1]:
            changes[name] = both
    return {"data_set": data_set, "differences": {name: list(both) for name, both in changes.items()}}


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
