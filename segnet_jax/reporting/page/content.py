"""What a report says of a run, as plain values for its template: scores, notes, facts and the next commands."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from segnet_jax.config.files import recipe_differences
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.reporting.pace import duration
from segnet_jax.reporting.page.record import Record, number, text, whole
from segnet_jax.reporting.tables import percent
from segnet_jax.system.errors import UserError

_MOST_CHANGES = 200  # settings that a page lists

SCORES = {
    "miou": "mean IoU",
    "global_accuracy": "pixels right",
    "mean_accuracy": "mean class accuracy",
    "weighted_iou": "weighted IoU",
}


def headline(record: Record) -> dict[str, float | None]:
    """The four scores of the chosen evaluation, from where they stand."""
    row, told = record.chosen_row, record.result
    return {name: number(told.get(name)) if name in told else number(row.get(name)) for name in SCORES}


def scored_on(record: Record) -> str:
    """Which images and which checkpoint the scores are of, in words."""
    split = text(record.result.get("split") or record.about.get("split") or "validation", 20)
    number_of = whole(record.result.get("num_images")) or whole(_of(record.about.get("num_images"), split))
    images = f"{number_of:,} {split} images" if number_of else f"the {split} images"
    if record.chosen_step is None:
        return images
    which = text(record.result.get("checkpoint") or ("last" if _selects_nothing(record) else "best"), 20)
    so_far = "" if record.result else " so far"
    statistics = ", BatchNorm's statistics recomputed" if "recompute" in _dict(record.result.get("batch_norm")) else ""
    return f"{images}, {which} checkpoint{so_far}, step {record.chosen_step:,}{statistics}"


def status(record: Record) -> tuple[str, str]:
    """How the run stands, in words, and of which kind that is: "good", "open" or "bad"."""
    total = _total_steps(record)
    place = f"step {record.last_step:,}" + (f" of {total:,}" if total else "")
    code = whole(record.outcome.get("exit_code"))
    if record.result:
        return f"finished after {place}", "good"
    if source := record.outcome.get("converted_from"):
        return f"converted from {text(source, 80)}", "good"
    if code == 0 or code is not None and code >= 128:
        return f"stopped at {place}", "open"
    if code is not None:
        return f"ended early at {place}", "bad"
    return (f"in training, {place}", "open") if record.last_step else ("begun, no step yet", "open")


def split_notes(record: Record) -> list[str]:
    """What the scores can bear, said honestly."""
    dataset, split = record.about.get("dataset"), record.result.get("split") or record.about.get("split") or "val"
    notes = []
    if not record.val and not record.result:
        return []
    if _selects_nothing(record):
        notes.append("Nothing was selected by these images: the score is that of the last step.")
    else:
        notes.append("The checkpoint was chosen by the same images that it is scored on, so the score flatters.")
    if dataset == "synthetic" or record.config is not None and record.config.data == "synthetic":
        return [
            *notes,
            "These are rendered scenes: the score shows that the network learns, and nothing about real roads.",
        ]
    if dataset == "camvid-tutorial" and split == "val":
        notes.append(
            "CamVid's validation images are one clip of 6.7 seconds, cut out of a training drive. Others report 12 to "
            "19 points less mIoU on the test images for the same network: score those before you quote a number."
        )
    elif dataset == "camvid-tutorial":
        notes.append("73 % of CamVid's test frames are of a drive, at dusk, that never occurs in training.")
    elif dataset == "camvid-matlab":
        notes.append(
            "This split was drawn at random from the frames of a few drives: neighbours in time, two video frames "
            "apart, are on both sides. Expect clearly higher numbers than with the tutorial's split; the two do not "
            "compare."
        )
    elif record.config is not None and record.config.split_rule == "leave-out":
        notes.append("No image of the scored sequence was trained on.")
    elif record.classes != CAMVID.names or dataset:
        notes.append(
            "Where video neighbours, or pictures of one place, are both trained on and scored, a score flatters: make "
            "sure that the split keeps them together."
        )
    if record.classes == CAMVID.names:
        notes.append(
            "The often quoted 60.1 % mIoU was trained on 3,433 images of four data sets: no target for CamVid's 367."
        )
    return notes


def warnings(record: Record) -> list[str]:
    """What is odd about the run."""
    told = []
    if (code := whole(record.outcome.get("exit_code"))) and not record.result:
        told.append(f"The last start ended early (exit code {code}): {text(record.outcome.get('why', 'unknown'), 600)}")
    skipped = number((record.train or [{}])[-1].get("skipped"))
    if skipped:
        told.append(f"{skipped:,.0f} steps were skipped, for their gradients did not fit into float16.")
    for incident in record.incidents:
        images = incident.get("images")
        names = ", ".join(text(name, 60) for name in images[:5]) if isinstance(images, list) else "unknown images"
        told.append(f"Step {text(incident.get('step'), 20)} was not finite on {names}: see incident/.")
    for note in record.overrides:
        changes = _dict(note.get("changes"))
        what = ", ".join(
            f"{text(name, 40)} {shown(_of(change, 'old'))} -> {shown(_of(change, 'new'))}"
            for name, change in changes.items()
        )
        told.append(f"The recipe was changed after step {text(note.get('step'), 20)}: {what or 'unknown'}.")
    return [*told, *(f"Of this folder, {problem}." for problem in record.problems)]


def facts(record: Record) -> dict[str, dict[str, str]]:
    """Heading -> name -> value: speed, memory, machine and versions."""
    environment, train = record.environment, record.train
    rate = number(record.result.get("images_per_second"))
    if rate is None:
        rates = [each for row in train[-200:] if (each := number(row.get("images_per_second")))]
        rate = float(np.median(rates)) if rates else None
    seconds = number(record.result.get("seconds"))
    if seconds is None:
        seconds = max((number(row.get("seconds")) or 0.0 for row in (*train[-1:], *record.val[-1:])), default=None)
    total = _total_steps(record)
    memory = record.evaluations[-1].peak_memory if record.evaluations else {}
    devices = environment.get("devices")
    kinds = (
        [f"{text(count, 10)} × {text(kind, 60)}" for kind, count in devices.items()]
        if isinstance(devices, dict)
        else []
    )
    versions = environment.get("versions")
    learning_rate = number((train or [{}])[-1].get("learning_rate"))
    sections = {
        "Speed and memory": {
            "Throughput": f"{rate:,.1f} images a second" if rate else "",
            "Time": duration(seconds) if seconds else "",
            "Steps": f"{record.last_step:,}" + (f" of {total:,}" if total else ""),
            "Learning rate": f"{learning_rate:.3g}" if learning_rate is not None else "",
            "Memory of a device": f"at most {_bytes(memory['device'])}" if memory.get("device") else "",
            "Memory of the process": f"at most {_bytes(memory['host'])}" if memory.get("host") else "",
        },
        "Recipe": {
            "Protocol": protocol(record),
            "Differences from it": f"{len(changed_settings(record)[1])}, listed below",
            "Data": text(record.result.get("dataset") or record.about.get("dataset") or "", 60),
        },
        "Machine": {
            "Devices": ", ".join(kinds),
            "Precision": text(record.result.get("precision") or "", 20),
            "Processor cores": text(environment.get("num_cpus") or "", 20),
            "System": text(environment.get("platform") or "", 80),
        },
        "Versions": {
            **{
                text(name, 40): text(value, 40)
                for name, value in (versions if isinstance(versions, dict) else {}).items()
            },
            "python": text(environment.get("python") or "", 20),
            "commit": _commit(text(environment.get("commit") or "", 60)),
        },
    }
    told = {heading: {name: value for name, value in rows.items() if value} for heading, rows in sections.items()}
    return {heading: rows for heading, rows in told.items() if rows}


def changed_settings(record: Record) -> tuple[str, list[tuple[str, str, str]]]:
    """What the run's recipe differs from, in words, and what differs: name, there, here.

    A finished run has written it down, with the data and the batch over all devices; of another, the config tells.
    """
    if record.config is None:
        return "", []
    name, _, changes = recipe_differences(record.config)
    source = "the defaults" if name == "custom" else f"protocol {name}"
    told = record.result.get("differences")
    if isinstance(told, dict):
        changes = {
            text(key, 60): both
            for key, both in list(told.items())[:_MOST_CHANGES]
            if isinstance(both, list) and len(both) == 2
        }
    return source, [(key, shown(old), shown(new)) for key, (old, new) in changes.items()]


def protocol(record: Record) -> str:
    """The protocol's name, or that the recipe is the user's own."""
    return text(record.config.protocol, 60) if record.config is not None and record.config.protocol else "custom"


def global_batch_size(record: Record) -> int | None:
    """Images a step; None where the run does not tell it, or as an earlier version only if it is not its protocol's."""
    both = _dict(record.result.get("differences")).get("global_batch_size")
    of_result = whole(both[-1]) if isinstance(both, list) and both else None
    return whole(record.about.get("global_batch_size")) or of_result


def interval(record: Record) -> dict[str, tuple[float, float]]:
    """The bootstrap interval of each score that the result has one of."""
    return interval_of(record.result)


def interval_of(result: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The same of what a `result.json` says."""
    found = {name: _dict(result.get("interval")).get(name) for name in SCORES}
    pairs = {name: tuple(map(number, both)) for name, both in found.items() if isinstance(both, list)}
    return {name: both for name, both in pairs.items() if len(both) == 2 and None not in both}


def boundary(record: Record) -> dict[str, float]:
    """Boundary F1 of the result, by definition: "paper" and "script"."""
    told = _dict(record.result.get("boundary_f1"))
    found = {name: number(told.get(name)) for name in ("paper", "script")}
    return {name: value for name, value in found.items() if value is not None}


def next_commands(record: Record) -> list[tuple[str, str]]:
    """What to paste into a shell next: (what for, command)."""
    run = shlex.quote(text(record.folder, 1000))
    commands = []
    if not record.result and "converted_from" not in record.outcome:
        commands.append(("go on with the training", f"python -m segnet_jax.train --run {run} --resume"))
    if not record.val and "converted_from" not in record.outcome:
        return commands
    has_test = whole(_of(record.about.get("num_images"), "test"))
    split = "test" if has_test else "val"
    commands += [
        (
            f"score the {'test' if has_test else 'validation'} images",
            f"python -m segnet_jax.evaluate {run} --split {split}",
        ),
        ("label pictures of your own", f"python -m segnet_jax.predict {run} PICTURES"),
        ("take the network elsewhere", f"python -m segnet_jax.export {run} --format onnx"),
        ("set it beside another run", f"python -m segnet_jax.report {run} OTHER_RUN"),
    ]
    return commands


def _total_steps(record: Record) -> int | None:
    """Steps of the whole run, as far as that can be told."""
    told = whole(record.result.get("num_steps"))
    if told is None and record.config is not None and record.train:
        row = record.train[-1]
        epoch = number(row.get("epoch"))
        told = round(record.config.epochs * row["step"] / epoch) if epoch and epoch > 0 else None
    return told


def _selects_nothing(record: Record) -> bool:
    told = record.result.get("checkpoint") or (record.config.result_checkpoint if record.config else "best")
    return told == "last"


def _commit(told: str) -> str:
    """A commit in short, and whether the code was another."""
    name, _, changed = told.partition("-")
    return f"{name[:12]}, with changes" if changed else name[:12]


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _of(value: Any, key: str) -> Any:
    return _dict(value).get(key)


def shown(value: Any) -> str:
    """A setting's value as TOML has it."""
    try:
        return text(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError, UserError):
        return text(value)


def score_text(value: float | None) -> str:
    """A fraction in percent."""
    return percent(value)
