"""Runs as results that can be set beside published ones: those that differ by their seed alone are one result."""

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segnet_jax.config.fields import differences
from segnet_jax.metrics.bootstrap import Interval, intervals
from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.evaluations import Images, images_path, read_images
from segnet_jax.reporting.page import content
from segnet_jax.reporting.page.record import Record, number, text, whole
from segnet_jax.reporting.published import SCORES, Ours


@dataclass(frozen=True)
class Scored:
    """A run's record and the scores that count for it.

    Attributes:
      record: of the run.
      told: `result.json`, or what `evaluate --json` wrote of the run.
      images: the matrices of the single images, where they were kept.
    """

    record: Record
    told: Mapping[str, Any]
    images: Images | None

    @property
    def scores(self) -> dict[str, float]:
        """Those of published results that it has, as fractions."""
        own = {} if self.told is not self.record.result else content.headline(self.record)
        found = {name: own.get(name) or _number(self.told.get(name)) for name in SCORES}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def place(self) -> tuple:
        """What was scored, and what was trained on, how many images a step."""
        about = self.record.about
        split = text(self.told.get("split") or about.get("split") or "val", 20)
        counts = about.get("num_images") if isinstance(about.get("num_images"), dict) else {}
        num_images = whole(self.told.get("num_images")) or whole(counts.get(split))
        dataset = text(self.told.get("dataset") or about.get("dataset") or "unknown data", 60)
        return (
            dataset,
            split,
            num_images,
            whole(counts.get("train")),
            (
                repr(about.get("fingerprints")),
                content.global_batch_size(self.record),
            ),
        )


def of_run(record: Record) -> Scored:
    """A run by its own result, or by its evaluations so far."""
    step = record.chosen_step
    images = read_images(images_path(record.folder, step)) if step is not None else None
    told = content.headline(record)["miou"]
    if images is not None and (told is None or abs(_miou(images) - told) > 1e-9):
        images = None  # of another evaluation
    return Scored(record, record.result, images)


def _number(value: Any) -> float | None:
    """A score; boundary F1 by the paper's definition, by which the published ones are told."""
    return number(value.get("paper") if isinstance(value, dict) else value)


def _miou(images: Images) -> float:
    summed = images.confusions.sum(axis=0, dtype=np.int64)
    return scores(summed).miou if summed.any() else np.nan


def of_evaluation(record: Record, told: Mapping[str, Any]) -> Scored:
    """A run by what `evaluate --json` wrote of it."""
    packed, images = told.get("images"), None
    if isinstance(packed, str):
        try:
            images = read_images(io.BytesIO(base64.b64decode(packed, validate=True)))
        except binascii.Error:
            images = None
    return Scored(record, told, images)


def results(all_scored: Sequence[Scored]) -> list[Ours]:
    """One result for each recipe: the mean over runs that differ by their seed alone."""
    groups: list[list[Scored]] = []
    for scored in all_scored:
        group = next((each for each in groups if all(_differ_by_seed_alone(one, scored) for one in each)), None)
        if group is None:
            groups.append([scored])
        else:
            group.append(scored)
    return [_result(group) for group in groups]


def _differ_by_seed_alone(one: Scored, other: Scored) -> bool:
    if one.record.config is None or other.record.config is None or one.place != other.place:
        return False
    return differences(one.record.config, other.record.config).keys() == {"seed"}


def _result(group: Sequence[Scored]) -> Ours:
    config = group[0].record.config
    dataset, split, num_images, train_images, _ = group[0].place
    names = set.intersection(*(set(each.scores) for each in group))
    each = {name: [scored.scores[name] for scored in group] for name in SCORES if name in names}
    return Ours(
        name=", ".join(scored.record.name for scored in group),
        seeds=tuple(scored.record.config.seed if scored.record.config else 0 for scored in group),
        protocol=content.protocol(group[0].record),
        dataset=dataset,
        split=split,
        num_images=num_images,
        train_images=train_images,
        image_size=config.image_size if config else None,
        pretrained=text(config.init, 60) if config else "unknown",
        scores={name: float(np.mean(values)) for name, values in each.items()},
        interval=_interval(group),
        each=each,
    )


def _interval(group: Sequence[Scored]) -> dict[str, Interval]:
    """Over images, of the mean over the runs; of a single run what its result says, where no images were kept."""
    kept = [scored.images for scored in group]
    alike = all(each is not None and each.names == kept[0].names for each in kept)
    if alike and len({each.confusions.shape for each in kept}) == 1:
        return intervals([each.confusions for each in kept])
    return content.interval_of(group[0].told) if len(group) == 1 else {}
