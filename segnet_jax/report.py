"""Draws a run's report, or sets several runs side by side: `python -m segnet_jax.report --help`."""

import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from segnet_jax.config.flags import parse_flags
from segnet_jax.reporting.page import content
from segnet_jax.reporting.page.classes import class_rows
from segnet_jax.reporting.page.compare import comparison
from segnet_jax.reporting.page.draw import REPORT_FILE, comparison_html, is_report, write_page
from segnet_jax.reporting.page.own_results import average_over_seeds, from_evaluation, from_run
from segnet_jax.reporting.page.run_summary import RunSummary, read_run_summary, worst_accuracies
from segnet_jax.reporting.published import compare_with_published, print_published
from segnet_jax.reporting.tables import percent
from segnet_jax.system import confined
from segnet_jax.system.command import run_command
from segnet_jax.system.console import echo
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_text, check_place, read_own_json, write_result

logger = logging.getLogger(__name__)

DESCRIPTION = """Draws a run's report.html anew from its folder alone, or sets several runs side by side.

Example:  python -m segnet_jax.report runs/demo-1

Several:  python -m segnet_jax.report runs/demo-1 runs/demo-2 --out both.html

Beside what others published:  python -m segnet_jax.report runs/seed-0 runs/seed-1 --published --scores 0.json 1.json"""

MOST_RUNS = 12
"""That one page can tell apart."""


@dataclass(frozen=True)
class Options:
    """What to draw."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]  # folders of runs
    out: str = ""  # file to draw to; default: report.html in the run, or comparison.html here for several
    json: str = ""  # file to write what the page tells to, as data
    published: bool = False  # set the scores beside each published one, runs that differ by seed alone as one
    scores: tuple[str, ...] = ()  # with --published: for each run what evaluate --json wrote, such as its test scores


def main() -> int:
    """The command."""
    return report(parse_flags(Options, sys.argv[1:], prog="segnet_jax.report", description=DESCRIPTION))


def report(options: Options) -> int:
    """Draws the page, writes the JSON if asked, and tells where; returns the exit code.

    Raises:
      UserError: for what is no run, and for a file that is not ours to write.
    """
    if not 1 <= len(options.runs) <= MOST_RUNS:
        raise UserError(f"from 1 to {MOST_RUNS} runs can be drawn, got {len(options.runs)}")
    folders = [_folder_of(run) for run in options.runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"a run is named twice: {' '.join(options.runs)}")
    if options.scores and not options.published:
        raise UserError("--scores needs --published")
    alone = len(folders) == 1
    path = pathlib.Path(options.out or (folders[0] / REPORT_FILE if alone else "comparison.html"))
    check_place("json", options.json)
    if os.path.lexists(path) and not (is_report(path) and _is_free_of_runs(path, folders)):
        raise UserError(f"{path} is there and is no report of this: name another --out, nothing is overwritten")
    try:
        records = [read_run_summary(folder) for folder in folders]
        told = _beside_published(records, options) if options.published else None
        if alone:
            write_page(records[0], path, told)
        else:
            atomic_write_text(path, comparison_html(records, told))
        if options.json:
            found = summary(records[0]) if alone else _compared(records)
            write_result(options.json, found | ({"published_comparison": told} if told else {}))
    except OSError as error:
        raise UserError(f"cannot write {error.filename or path}: {error.strerror or error}") from None
    for record in records:
        for problem in record.problems:
            logger.warning(f"{record.folder}: {problem}")
        echo(f"{record.name}: {content.status(record)[0]}; mIoU {percent(content.headline(record)['miou'])}")
    if not alone:
        for warning in comparison(records).warnings:
            logger.warning(warning)
    if told:
        print_published(told)
    echo(f"drew {path}")
    return 0


def _is_free_of_runs(path: pathlib.Path, folders: Sequence[pathlib.Path]) -> bool:
    """Whether a page is not the report of another run than the one that is drawn."""
    around = path.resolve().parent
    mine = [folder.resolve() for folder in folders] if len(folders) == 1 else []
    return path.name != REPORT_FILE or around in mine or not os.path.lexists(around / "config.toml")


def _beside_published(records: Sequence[RunSummary], options: Options) -> dict[str, Any]:
    """The runs' scores beside the published ones.

    Raises:
      UserError: there is not one file of scores for each run, or it is none.
    """
    if not options.scores:
        return compare_with_published(average_over_seeds([from_run(record) for record in records]))
    if len(options.scores) != len(records):
        raise UserError(f"--scores takes one file for each run, got {len(options.scores)} for {len(records)} runs")
    found = []
    for record, path in zip(records, options.scores, strict=True):
        try:
            told = read_own_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no JSON'}") from None
        if not isinstance(told, dict) or "confusion" not in told:
            raise UserError(f"{path} was not written by evaluate --json")
        if record.result and record.config is not None and not _is_of(record, told):
            raise UserError(f"{path} is of another run than {record.folder}: give the files in the order of the runs")
        found.append(from_evaluation(record, told))
    return compare_with_published(average_over_seeds(found))


def _is_of(record: RunSummary, told: dict[str, Any]) -> bool:
    """Whether an evaluation can be of the run, by seed and recipe; not by data, for a run is scored on others too."""

    def recipe(result: dict[str, Any]) -> dict[str, Any]:
        differences = result.get("differences")
        known = differences if isinstance(differences, dict) else {}
        return {name: both for name, both in known.items() if name != "dataset"}

    return told.get("seed") == record.config.seed and recipe(told) == recipe(record.result)


def summary(record: RunSummary) -> dict[str, Any]:
    """What a run's report tells, as data."""
    rows = class_rows(record)
    source, changes = content.changed_settings(record)
    confusion = record.chosen.confusion if record.chosen else None
    return {
        "run": record.name,
        "state": content.status(record)[0],
        "scored_on": content.scored_on(record),
        "step": record.chosen_step,
        **content.headline(record),
        "interval": content.interval(record),
        "protocol": content.protocol(record),
        "per_class": {row.name: {"iou": row.iou, "accuracy": row.accuracy, "pixels": row.pixels} for row in rows},
        "classes": record.classes,
        "confusion": confusion.tolist() if confusion is not None else None,
        "worst": [{"name": name, "accuracy": accuracy} for name, accuracy in worst_accuracies(record)],
        "notes": content.split_notes(record),
        "warnings": content.warnings(record),
        "facts": content.facts(record),
        "differs_from": source,
        "differences": [{"name": name, "there": there, "here": here} for name, there, here in changes],
    }


def _compared(records: Sequence[RunSummary]) -> dict[str, Any]:
    """What a comparison tells, as data."""
    told = comparison(records)
    by_run = {name: summary(record) for name, record in zip(told.names, records, strict=True)}
    settings = {name: dict(zip(told.names, values, strict=True)) for name, values in told.settings}
    return {"runs": by_run, "warnings": told.warnings, "settings": settings}


def _folder_of(run: str) -> pathlib.Path:
    """The folder of a run.

    Raises:
      UserError: there is no such run.
    """
    folder = pathlib.Path(run)
    if not os.path.isdir(folder):
        raise UserError(f"no run {run}: there is no such folder")
    if not confined.is_file(folder, "config.toml"):
        raise UserError(f"no run in {run}: it holds no config.toml")
    confined.check_tree(folder)
    return folder


if __name__ == "__main__":
    run_command(main)
