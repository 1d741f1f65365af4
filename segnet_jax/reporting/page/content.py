"""Texts and values of a run's report: scores, notes, warnings, facts and follow-up commands."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from segnet_jax.config.differences import recipe_differences
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.metrics.baseline import commonest_class_baseline, is_clearly_better
from segnet_jax.metrics.table import METRICS
from segnet_jax.reporting.page import wording
from segnet_jax.reporting.page.run_summary import RunSummary, integer, number, text
from segnet_jax.system.disk import format_bytes
from segnet_jax.system.errors import UserError

_MAX_CHANGES = 200  # settings listed on a page


def headline(run: RunSummary) -> dict[str, float | None]:
    """Return the value of each metric by key, from the result or else the chosen evaluation."""
    row, result = run.chosen_row, run.result
    return {key: number(result.get(key)) if key in result else number(row.get(key)) for key in METRICS}


def scored_on(run: RunSummary) -> str:
    """Describe the evaluated images and the checkpoint of the scores."""
    split = text(run.result.get("split") or run.about.get("split") or "validation", 20)
    num_images = integer(run.result.get("num_images")) or integer(_get(run.about.get("num_images"), split))
    word = wording.split_word(split)
    images = f"{num_images:,} {word} images" if num_images else f"the {word} images"
    if run.chosen_step is None:
        return images
    which = text(run.result.get("checkpoint") or ("last" if _uses_last_checkpoint(run) else "best"), 20)
    so_far = "" if run.result else " so far"
    statistics = ", precise batch-norm statistics" if "recompute" in _dict(run.result.get("batch_norm")) else ""
    return f"{images}, {which} checkpoint{so_far}, step {run.chosen_step:,}{statistics}"


def status(run: RunSummary) -> tuple[str, str]:
    """Describe the state of the run, and classify it as "good", "open" or "bad" for the page's style."""
    total = _total_steps(run)
    step = f"step {run.last_step:,}" + (f" of {total:,}" if total else "")
    code = integer(run.outcome.get("exit_code"))
    if run.result:
        is_early = run.result.get("stopped_early") is True
        return (f"stopped early after step {run.last_step:,}" if is_early else f"finished after {step}"), "good"
    if source := run.outcome.get("converted_from"):
        return f"converted from {text(source, 80)}", "good"
    if code == 0 or code is not None and code >= 128:
        return f"stopped at {step}", "open"
    if code is not None:
        return f"failed at {step}", "bad"
    return (f"training, {step}", "open") if run.last_step else ("started, no finished step", "open")


def split_notes(run: RunSummary) -> list[str]:
    """Return notes on how far the scores generalize, given the choice of split and checkpoint."""
    dataset, split = run.about.get("dataset"), run.result.get("split") or run.about.get("split") or "val"
    if not run.val and not run.result:
        return []
    if _uses_last_checkpoint(run):
        notes = ["The scores are those of the last step; no checkpoint was selected on these images."]
    else:
        notes = ["The checkpoint was selected on the same images that it is scored on, so its scores are optimistic."]
    if dataset == "synthetic" or run.config is not None and run.config.data == "synthetic":
        return [
            *notes,
            "These are rendered scenes: the scores show that the network learns, not how well it works on real roads.",
        ]
    if dataset == "camvid-tutorial" and split == "val":
        notes.append(
            "CamVid's validation images are one clip of 6.7 seconds, cut from a training drive. For the same network, "
            "others report 12 to 19 points less mIoU on the test images; evaluate those before you quote a number."
        )
    elif dataset in ("camvid-tutorial", "camvid-trainval"):
        notes.append("73 % of CamVid's test frames are from a drive at dusk that has no training images.")
    elif dataset == "camvid-matlab":
        notes.append(
            "This split was drawn at random from the frames of a few drives, so it separates neighbors in time, two "
            "video frames apart. Expect clearly higher scores than with the tutorial's split; the two are not "
            "comparable."
        )
    elif run.config is not None and run.config.split_rule == "leave-out":
        first = run.config.leave_out_train
        notes.append(
            f"The network was trained only on the first {first} frames of the sequence it is scored on."
            if first
            else "The network was not trained on any image of the sequence it is scored on."
        )
    elif run.classes != CAMVID.names or dataset:
        notes.append(
            "Scores are optimistic if neighboring video frames, or photos of one place, are in both the training and "
            "the evaluated images; make sure that the split keeps them together."
        )
    if run.classes == CAMVID.names:
        notes.append(
            "The often quoted 60.1 % mIoU was trained on 3,433 images of four datasets; it is not a target for the 367 "
            "training images of CamVid."
        )
    return notes


def warnings(run: RunSummary) -> list[str]:
    """Return failures, skipped steps, changed settings and unreadable files of the run."""
    messages = []
    if (code := integer(run.outcome.get("exit_code"))) and not run.result:
        messages.append(f"The last start failed with exit code {code}: {text(run.outcome.get('why', 'unknown'), 600)}")
    skipped = number((run.train or [{}])[-1].get("skipped"))
    if skipped:
        messages.append(f"{skipped:,.0f} steps were skipped because their gradients overflowed float16.")
    for incident in run.incidents:
        images = incident.get("images")
        names = ", ".join(text(name, 60) for name in images[:5]) if isinstance(images, list) else "unknown images"
        messages.append(f"Step {text(incident.get('step'), 20)} was not finite on {names}; see incident/.")
    for override in run.overrides:
        changes = ", ".join(
            f"{text(name, 40)} {shown(_get(change, 'old'))} -> {shown(_get(change, 'new'))}"
            for name, change in _dict(override.get("changes")).items()
        )
        step = text(override.get("step"), 20)
        messages.append(f"The config was changed after step {step}: {changes or 'unknown'}.")
    return [*messages, *(f"In this folder, {problem}." for problem in run.problems)]


def facts(run: RunSummary) -> dict[str, dict[str, str]]:
    """Return heading -> name -> value: speed, memory, config, machine and versions."""
    environment, train = run.environment, run.train
    rate = number(run.result.get("images_per_second"))
    if rate is None:
        rates = [each for row in train[-200:] if (each := number(row.get("images_per_second")))]
        rate = float(np.median(rates)) if rates else None
    seconds = run.seconds
    total = _total_steps(run)
    memory = run.evaluations[-1].peak_memory if run.evaluations else {}
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
            "Throughput": f"{rate:,.1f} images/s" if rate else "",
            "Time": wording.duration_words(seconds) if seconds else "",
            "Steps": f"{run.last_step:,}" + (f" of {total:,}" if total else ""),
            "Last learning rate": f"{learning_rate:.3g}" if learning_rate is not None else "",
            "Peak device memory": format_bytes(memory["device"]) if memory.get("device") else "",
            "Peak process memory": format_bytes(memory["host"]) if memory.get("host") else "",
        },
        "Config": {
            "Protocol": protocol(run),
            "Changed settings": f"{count}, listed below" if (count := len(changed_settings(run)[1])) else "none",
            "Data": wording.dataset_words(text(run.result.get("dataset") or run.about.get("dataset") or "", 60)),
        },
        "Machine": {
            "Devices": ", ".join(kinds),
            "Precision": text(run.result.get("precision") or "", 20),
            "CPU cores": text(environment.get("num_cpus") or "", 20),
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
    filled = {heading: {name: value for name, value in rows.items() if value} for heading, rows in sections.items()}
    return {heading: rows for heading, rows in filled.items() if rows}


def changed_settings(run: RunSummary) -> tuple[str, list[tuple[str, str, str]]]:
    """Return the base of the run's config, and the settings that differ: name, base value, value in the run.

    A result also lists dataset and global batch size, which do not follow from the config alone.
    """
    if run.config is None:
        return "", []
    name, _, changes = recipe_differences(run.config)
    base = "the defaults" if name == "custom" else f"protocol {name}"
    stored = run.result.get("differences")
    if isinstance(stored, dict):
        changes = {
            text(key, 60): both
            for key, both in list(stored.items())[:_MAX_CHANGES]
            if isinstance(both, list) and len(both) == 2
        }
    return base, [(key, shown(old), shown(new)) for key, (old, new) in changes.items()]


def protocol(run: RunSummary) -> str:
    """Return the protocol's name, or "custom"."""
    return text(run.config.protocol, 60) if run.config is not None and run.config.protocol else "custom"


def global_batch_size(run: RunSummary) -> int | None:
    """Return the images per step, or None if unknown."""
    both = _dict(run.result.get("differences")).get("global_batch_size")
    from_result = integer(both[-1]) if isinstance(both, list) and both else None
    return integer(run.about.get("global_batch_size")) or from_result


def interval(run: RunSummary) -> dict[str, tuple[float, float]]:
    """Return the bootstrap intervals of a run's metrics by key."""
    return result_interval(run.result)


def result_interval(result: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the bootstrap intervals in a `result.json` or the output of `evaluate --json` by key."""
    stored = {key: _dict(result.get("interval")).get(key) for key in METRICS}
    pairs = {key: tuple(map(number, ends)) for key, ends in stored.items() if isinstance(ends, list)}
    return {key: ends for key, ends in pairs.items() if len(ends) == 2 and None not in ends}


def baseline(run: RunSummary) -> dict[str, Any] | None:
    """Return "name" and "values" of predicting the most common class, and whether the network "is_better", or None."""
    if run.chosen is None or run.chosen.scores is None:
        return None
    found = commonest_class_baseline(run.chosen.confusion)
    if found is None:
        return None
    is_better = is_clearly_better(run.chosen.scores.miou, found)
    return {"name": run.classes[found.class_id], "values": found.values, "is_better": is_better}


def boundary(run: RunSummary) -> dict[str, float]:
    """Return the result's boundary F1 by its definition, "paper" or "script"."""
    stored = _dict(run.result.get("boundary_f1"))
    values = {name: number(stored.get(name)) for name in ("paper", "script")}
    return {name: value for name, value in values.items() if value is not None}


def next_commands(run: RunSummary) -> list[tuple[str, str]]:
    """Return suggested follow-up commands as (purpose, command) pairs."""
    folder = shlex.quote(text(run.folder, 1000))
    commands = []
    if not run.result and "converted_from" not in run.outcome:
        commands.append(("Resume the training", f"python -m segnet_jax.train --run {folder} --resume"))
    if not run.val and "converted_from" not in run.outcome:
        return commands
    has_test = integer(_get(run.about.get("num_images"), "test"))
    split = "test" if has_test else "val"
    commands += [
        (
            f"Evaluate on the {'test' if has_test else 'validation'} images",
            f"python -m segnet_jax.evaluate {folder} --split {split}",
        ),
        ("Predict your own images", f"python -m segnet_jax.predict {folder} IMAGES"),
        ("Export the network", f"python -m segnet_jax.export {folder} --format onnx"),
        ("Compare with another run", f"python -m segnet_jax.report {folder} OTHER_RUN"),
    ]
    return commands


def _total_steps(run: RunSummary) -> int | None:
    """Return the steps of the whole run, or None if unknown."""
    steps = integer(run.result.get("num_steps"))
    if steps is None and run.config is not None and run.train:
        if run.config.steps:
            return run.config.steps
        row = run.train[-1]
        epoch = number(row.get("epoch"))
        steps = round(run.config.epochs * row["step"] / epoch) if epoch and epoch > 0 else None
    return steps


def _uses_last_checkpoint(run: RunSummary) -> bool:
    checkpoint = run.result.get("checkpoint") or (run.config.result_checkpoint if run.config else "best")
    return checkpoint == "last"


def _commit(commit: str) -> str:
    """Shorten a commit hash, and state whether the code had local changes."""
    name, _, dirty = commit.partition("-")
    return f"{name[:12]}, with local changes" if dirty else name[:12]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _get(value: Any, key: str) -> Any:
    return _dict(value).get(key)


def shown(value: Any) -> str:
    """Format a setting's value."""
    try:
        return text(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError, UserError):
        return text(value)
