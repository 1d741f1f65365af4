"""Compare several runs: scores, settings, data and machines side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from segnet_jax.config.differences import differences
from segnet_jax.metrics.table import METRICS, percent
from segnet_jax.reporting.page import content, wording
from segnet_jax.reporting.page.classes import class_rows
from segnet_jax.reporting.page.run_summary import RunSummary

_MAX_PICTURE_CHARS = 4_000_000  # of base64 on a page


@dataclass(frozen=True)
class ScoreRow:
    """A metric, or the IoU of a class, for each run.

    Attributes:
      name: name of the metric or class.
      values: value of each run, or None.
      format: function that converts a value to text.
      intervals: bootstrap interval of each run, or None.
    """

    name: str
    values: list[float | None]
    format: Callable[[float | None], str] = percent
    intervals: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side; each row has one value per run.

    Attributes:
      names: unique names of the runs.
      warnings: reasons why the scores may not be comparable.
      comparable: whether to mark the best scores.
      scores: a row for each metric.
      facts: (name, texts) pairs.
      settings: (field, texts) pairs for the fields that differ.
      classes: a row with the IoU of each class.
      pictures: the preview samples, each with name, image, label and one prediction per run, as base64.
      class_names: names of the runs' classes, if they are the same and have colors.
    """

    names: list[str]
    warnings: list[str]
    comparable: bool
    scores: list[ScoreRow]
    facts: list[tuple[str, list[str]]]
    settings: list[tuple[str, list[str]]]
    classes: list[ScoreRow]
    pictures: list[dict[str, Any]]
    class_names: tuple[str, ...]


def comparison(runs: Sequence[RunSummary]) -> Comparison:
    """Compare runs."""
    headlines = [content.headline(run) for run in runs]
    run_facts, differing, warnings = [content.facts(run) for run in runs], _differing(runs), _warnings(runs)
    intervals = [content.interval(run) for run in runs]
    facts = [
        *(("started", [wording.date_words(run.started) or "-" for run in runs]),) * any(run.started for run in runs),
        ("evaluated on", [content.scored_on(run) for run in runs]),
        ("state", [content.status(run)[0] for run in runs]),
    ]
    for heading, name in (
        *(("Speed and memory", each) for each in ("Throughput", "Time", "Steps")),
        *(("Speed and memory", each) for each in ("Peak device memory", "Peak process memory")),
        *(("Machine", each) for each in ("Devices", "Precision", "System")),
        *(("Versions", each) for each in ("jax", "commit")),
    ):
        values = [each.get(heading, {}).get(name, "-") for each in run_facts]
        if set(values) != {"-"}:
            facts.append((name.lower(), values))
    return Comparison(
        names=_names(runs),
        warnings=[*differing, *warnings],
        comparable=not differing,
        scores=[
            ScoreRow(
                metric.label,
                [each[key] for each in headlines],
                metric.format,
                [each.get(key) for each in intervals],
            )
            for key, metric in METRICS.items()
        ],
        facts=facts,
        settings=_settings(runs),
        classes=_classes(runs),
        pictures=_pictures(runs),
        class_names=runs[0].classes if runs[0].colors and len({run.classes for run in runs}) == 1 else (),
    )


def _names(runs: Sequence[RunSummary]) -> list[str]:
    """Return the folder names, with numbers if they are not unique."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _differing(runs: Sequence[RunSummary]) -> list[str]:
    """Return the reasons why the scores are not comparable."""
    messages = []
    properties = {
        "The classes differ": lambda run: run.classes,
        "The evaluated splits differ": lambda run: run.result.get("split") or run.about.get("split"),
        "The image sizes differ": lambda run: run.config.image_size if run.config else None,
    }
    for message, value in properties.items():
        if len({repr(value(run)) for run in runs}) > 1:
            messages.append(f"{message}, so the scores are not comparable.")
    fingerprints = [_fingerprints(run) for run in runs]
    for split in sorted(set().union(*fingerprints)):
        if all(fingerprints) and len({repr(each.get(split)) for each in fingerprints}) > 1:
            messages.append(f"The {split} images or labels differ, so the scores are not comparable.")
    return messages


def _warnings(runs: Sequence[RunSummary]) -> list[str]:
    """Return warnings about unknown or incomplete facts."""
    messages = []
    if not all(map(_fingerprints, runs)):
        messages.append("Some runs have no fingerprints of their data, so their data may differ.")
    if {content.status(run)[1] for run in runs} != {"good"}:
        messages.append("Some runs are not finished.")
    return messages


def _fingerprints(run: RunSummary) -> dict[str, Any]:
    fingerprints = run.about.get("fingerprints")
    return fingerprints if isinstance(fingerprints, dict) else {}


def _settings(runs: Sequence[RunSummary]) -> list[tuple[str, list[str]]]:
    """Return the config fields that differ, and the global batch size if it differs."""
    configs = [run.config for run in runs if run.config is not None]
    if not configs:
        return []
    names = list(dict.fromkeys(name for config in configs for name in differences(configs[0], config)))
    rows = [(name, [content.shown(getattr(run.config, name)) if run.config else "-" for run in runs]) for name in names]
    batches = [content.global_batch_size(run) for run in runs]
    if len(set(batches)) > 1:
        rows.append(("global_batch_size", ["-" if each is None else str(each) for each in batches]))
    return rows


def _pictures(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Return the preview samples that all runs have, with the predictions of their chosen steps.

    Return none if the classes differ, or if a run stores no predictions of its chosen step.
    """
    if len({(run.classes, run.colors) for run in runs}) > 1 or any(run.chosen is None for run in runs):
        return []
    found, num_chars = [], 0
    for index, sample in enumerate(runs[0].samples):
        if not sample["image"] or any(run.samples[index : index + 1] != [sample] for run in runs):
            continue
        predictions = [(*run.chosen.predictions, *[""] * (index + 1))[index] for run in runs]
        num_chars += len(sample["image"]) + len(sample["label"]) + sum(map(len, predictions))
        if all(predictions) and sample["label"] and num_chars < _MAX_PICTURE_CHARS:
            found.append(sample | {"predictions": predictions})
    return found


def _classes(runs: Sequence[RunSummary]) -> list[ScoreRow]:
    """Return the IoU of each class of any run, by name."""
    ious = [{row.name: row.iou for row in class_rows(run)} for run in runs]
    names = dict.fromkeys(name for each in ious for name in each)
    return [ScoreRow(name, [each.get(name) for each in ious]) for name in names]
