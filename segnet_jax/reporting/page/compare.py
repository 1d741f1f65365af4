"""Several runs side by side: what differs in config, data and scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segnet_jax.config.fields import differences
from segnet_jax.reporting.page import content
from segnet_jax.reporting.page.classes import class_rows
from segnet_jax.reporting.page.record import Record


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side; each row has a value for each run.

    Attributes:
      names: of the runs, each another.
      warnings: why their scores may not compare.
      compares: whether a best one may be named.
      scores: (score, fractions).
      facts: (name, texts).
      settings: (field, texts), of those that differ.
      classes: (class, IoUs).
    """

    names: list[str]
    warnings: list[str]
    compares: bool
    scores: list[tuple[str, list[float | None]]]
    facts: list[tuple[str, list[str]]]
    settings: list[tuple[str, list[str]]]
    classes: list[tuple[str, list[float | None]]]


def comparison(records: Sequence[Record]) -> Comparison:
    """Sets runs side by side."""
    headlines = [content.headline(record) for record in records]
    told, warnings = [content.facts(record) for record in records], _warnings(records)
    facts = [("scored on", [content.scored_on(record) for record in records])]
    facts.append(("state", [content.status(record)[0] for record in records]))
    for heading, name in (
        *(("Speed and memory", each) for each in ("Throughput", "Time", "Steps")),
        *(("Speed and memory", each) for each in ("Memory of a device", "Memory of the process")),
        *(("Machine", each) for each in ("Devices", "Precision", "System")),
        *(("Versions", each) for each in ("jax", "commit")),
    ):
        values = [each.get(heading, {}).get(name, "-") for each in told]
        if set(values) != {"-"}:
            facts.append((name.lower(), values))
    return Comparison(
        names=_names(records),
        warnings=warnings,
        compares=not any("differ" in warning for warning in warnings),
        scores=[(content.SCORES[name], [each[name] for each in headlines]) for name in content.SCORES],
        facts=facts,
        settings=_settings(records),
        classes=_classes(records),
    )


def _names(records: Sequence[Record]) -> list[str]:
    """The folders' names, with a number where two are alike."""
    names = [record.name for record in records]
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, start=1)]


def _warnings(records: Sequence[Record]) -> list[str]:
    """Why the scores may not compare."""
    told = []
    looks = {
        "classes": lambda record: record.classes,
        "scored split": lambda record: record.result.get("split") or record.about.get("split"),
        "image size": lambda record: record.config.image_size if record.config else None,
    }
    for what, look in looks.items():
        if len({repr(look(record)) for record in records}) > 1:
            told.append(f"The {what} differ{'' if what == 'classes' else 's'}: these scores do not compare.")
    prints = [_fingerprints(record) for record in records]
    if not all(prints):
        told.append("Not every run has kept the fingerprints of its data: whether they are the same is not known.")
    for split in sorted(set().union(*prints)):
        if all(prints) and len({repr(each.get(split)) for each in prints}) > 1:
            told.append(f"The data differ: the {split} images or labels of these runs are not the same.")
    ends = {content.status(record)[1] for record in records}
    if ends != {"good"}:
        told.append("Not every run is finished.")
    return told


def _fingerprints(record: Record) -> dict[str, Any]:
    told = record.about.get("fingerprints")
    return told if isinstance(told, dict) else {}


def _settings(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """The fields of the experiments that differ, in the order of the config."""
    configs = [record.config for record in records if record.config is not None]
    if not configs:
        return []
    names = list(dict.fromkeys(name for config in configs for name in differences(configs[0], config)))
    rows = [
        (name, [content.shown(getattr(record.config, name)) if record.config else "-" for record in records])
        for name in names
    ]
    batches = [content.global_batch_size(record) for record in records]
    if len(set(batches)) > 1:  # devices and their batches may differ where this does not
        rows.append(("global_batch_size", ["-" if each is None else str(each) for each in batches]))
    return rows


def _classes(records: Sequence[Record]) -> list[tuple[str, list[float | None]]]:
    """The IoU of each class that any run has, by name."""
    found = [{row.name: row.iou for row in class_rows(record)} for record in records]
    names = dict.fromkeys(name for each in found for name in each)
    return [(name, [each.get(name) for each in found]) for name in names]
