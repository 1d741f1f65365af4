"""Average our runs over their seeds, for the comparison with published results."""

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segnet_jax.config.differences import differences
from segnet_jax.metrics.bootstrap import Interval, intervals
from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.evaluations import Images, images_path, read_images
from segnet_jax.reporting.page import content
from segnet_jax.reporting.page.run_summary import RunSummary, integer, number, text
from segnet_jax.reporting.published import SeedAverage, score_columns


@dataclass(frozen=True)
class ScoredRun:
    """A run and the evaluation to compare.

    Attributes:
      run: the run folder.
      result: its `result.json`, or the output of `evaluate --json`.
      images: the confusion matrix of each image, if stored.
    """

    run: RunSummary
    result: Mapping[str, Any]
    images: Images | None

    @property
    def scores(self) -> dict[str, float]:
        """Key -> fraction, for the scores that published results may have."""
        own = content.headline(self.run) if self.result is self.run.result else {}
        values = {key: own.get(key) or _number(self.result.get(key)) for key in score_columns()}
        return {key: value for key, value in values.items() if value is not None}

    @property
    def data(self) -> tuple[str, str, int | None, int | None]:
        """The dataset, the evaluated split, and the numbers of evaluated and of training images."""
        about = self.run.about
        split = text(self.result.get("split") or about.get("split") or "val", 20)
        counts = about.get("num_images") if isinstance(about.get("num_images"), dict) else {}
        num_images = integer(self.result.get("num_images")) or integer(counts.get(split))
        dataset = text(self.result.get("dataset") or about.get("dataset") or "unknown data", 60)
        return dataset, split, num_images, integer(counts.get("train"))


def from_run(run: RunSummary) -> ScoredRun:
    """Pair a run with its own result or, before it has one, with its evaluations."""
    step = run.chosen_step
    images = read_images(images_path(run.folder, step)) if step is not None else None
    miou = content.headline(run)["miou"]
    if images is not None and (miou is None or abs(_miou(images) - miou) > 1e-9):
        images = None  # of a different evaluation
    return ScoredRun(run, run.result, images)


def _number(value: Any) -> float | None:
    """Return a score; for boundary F1, the paper's definition is used, as in the published numbers."""
    return number(value.get("paper") if isinstance(value, dict) else value)


def _miou(images: Images) -> float:
    summed = images.confusions.sum(axis=0, dtype=np.int64)
    return scores(summed).miou if summed.any() else np.nan


def from_evaluation(run: RunSummary, result: Mapping[str, Any]) -> ScoredRun:
    """Pair a run with the output of `evaluate --json`."""
    encoded, images = result.get("images"), None
    if isinstance(encoded, str):
        try:
            images = read_images(io.BytesIO(base64.b64decode(encoded, validate=True)))
        except binascii.Error:
            images = None
    return ScoredRun(run, result, images)


def average_over_seeds(scored_runs: Sequence[ScoredRun]) -> list[SeedAverage]:
    """Return one result for each group of runs that differ only in their seed."""
    groups: list[list[ScoredRun]] = []
    for scored in scored_runs:
        group = next((each for each in groups if all(_differ_only_in_seed(one, scored) for one in each)), None)
        if group is None:
            groups.append([scored])
        else:
            group.append(scored)
    return [_average(group) for group in groups]


def _differ_only_in_seed(one: ScoredRun, other: ScoredRun) -> bool:
    if one.run.config is None or other.run.config is None or one.data != other.data:
        return False
    if repr(one.run.about.get("fingerprints")) != repr(other.run.about.get("fingerprints")):
        return False
    if content.global_batch_size(one.run) != content.global_batch_size(other.run):
        return False
    return differences(one.run.config, other.run.config).keys() == {"seed"}


def _average(group: Sequence[ScoredRun]) -> SeedAverage:
    config = group[0].run.config
    dataset, split, num_images, train_images = group[0].data
    keys = set.intersection(*(set(each.scores) for each in group))
    each = {key: [scored.scores[key] for scored in group] for key in score_columns() if key in keys}
    return SeedAverage(
        name=", ".join(scored.run.name for scored in group),
        seeds=tuple(scored.run.config.seed if scored.run.config else 0 for scored in group),
        protocol=content.protocol(group[0].run),
        dataset=dataset,
        split=split,
        num_images=num_images,
        train_images=train_images,
        image_size=config.image_size if config else None,
        pretrained=text(config.init, 60) if config else "unknown",
        scores={key: float(np.mean(values)) for key, values in each.items()},
        interval=_interval(group),
        each=each,
    )


def _interval(group: Sequence[ScoredRun]) -> dict[str, Interval]:
    """Return the interval of the mean over the runs, or a single run's own interval if its images are not stored."""
    images = [scored.images for scored in group]
    same_images = all(each is not None and each.names == images[0].names for each in images)
    if same_images and len({each.confusions.shape for each in images}) == 1:
        return intervals([each.confusions for each in images])
    return content.result_interval(group[0].result) if len(group) == 1 else {}
