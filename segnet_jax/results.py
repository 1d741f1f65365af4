"""The result of a finished run: `result.json` and the table that is printed of it."""

import pathlib
from collections.abc import Mapping

import numpy as np

from segnet_jax import runs
from segnet_jax.config import Config
from segnet_jax.files import atomic_write_json
from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.logbook import Logbook
from segnet_jax.reporting.run_folder import result
from segnet_jax.reporting.tables import print_table
from segnet_jax.setting import Setting


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
    names = ("miou", "mean_accuracy", "global_accuracy")
    return {
        "batch_norm": {
            rule: {name: getattr(scores(confusion), name) for name in names} for rule, confusion in confusions.items()
        }
    }


def write_result(
    folder: pathlib.Path,
    config: Config,
    setting: Setting,
    meta: dict,
    logbook: Logbook,
    sum_of_state: str,
    recomputed: np.ndarray | None = None,
) -> None:
    """Writes `result.json` of a finished run and prints its table.

    Args:
      folder: the run's.
      config: its.
      setting: what that came to.
      meta: of its last checkpoint.
      logbook: of its training.
      sum_of_state: of its last state.
      recomputed: the confusion matrix under BatchNorm's recomputed statistics, where it counts.
    """
    chosen, classes = meta[config.result_checkpoint], setting.data_set.classes
    confusions = {"running": np.array(chosen["confusion"])}
    confusions |= {} if recomputed is None else {"recompute": recomputed}
    found = scores(confusions[config.batch_norm])
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
    )
    extra = {
        "checkpoint": config.result_checkpoint,
        "step": chosen["step"],
        "num_steps": setting.total_steps,
        "last_miou": merit(meta["last"]),
        "precision": setting.precision,
        "state": sum_of_state,
        **by_statistics(confusions),
    }
    changes = {"overrides": runs.overrides(folder)} if runs.overrides(folder) else {}
    atomic_write_json(folder / runs.RESULT_FILE, summary | extra | changes)
    print_table(found, classes)
    told = f"{setting.scored} scores of the {config.result_checkpoint} checkpoint, step {chosen['step']}; see {folder}"
    print(told)
