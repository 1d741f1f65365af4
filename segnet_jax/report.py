"""Write a run's HTML report, or compare several runs: `python -m segnet_jax.report --help`."""

import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from segnet_jax.config.files import CONFIG_FILE, missing_run_message
from segnet_jax.config.flag_specs import File, Files, RunFolders
from segnet_jax.config.flags import parse_flags
from segnet_jax.reporting.page import content
from segnet_jax.reporting.page.classes import class_rows
from segnet_jax.reporting.page.compare import comparison
from segnet_jax.reporting.page.render import REPORT_FILE, comparison_html, is_report, write_page
from segnet_jax.reporting.page.run_summary import RunSummary, read_run_summary, worst_accuracies
from segnet_jax.reporting.page.seed_averages import average_over_seeds, from_evaluation, from_run
from segnet_jax.reporting.published import compare_with_published, print_published
from segnet_jax.reporting.tables import percent
from segnet_jax.system import untrusted_files
from segnet_jax.system.command import run_command
from segnet_jax.system.console import echo
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_text, check_distinct, check_place, read_own_json, write_result

logger = logging.getLogger(__name__)

DESCRIPTION = """Write report.html from the files of a run folder, or one page that compares several runs.

Examples:
  python -m segnet_jax.report runs/demo-1
  python -m segnet_jax.report runs/demo-1 runs/demo-2 --out both.html
  python -m segnet_jax.report runs/seed-0 runs/seed-1 --published --scores 0.json 1.json"""

MAX_RUNS = 12
"""Maximum number of runs on a page, limited by the number of distinguishable line colors."""


@dataclass(frozen=True)
class ReportOptions:
    """Flags of `report`."""

    runs: Annotated[RunFolders, tyro.conf.Positional]  # run folders
    out: File = ""  # HTML file to write; default: RUN/report.html, or comparison.html for several runs
    json: File = ""  # JSON file to write the page's data to
    published: bool = False  # compare with published scores, averaging runs that differ only in the seed
    scores: Files = ()  # with --published: one file of evaluate --json per run, such as its test scores


def main() -> int:
    """Run the command."""
    return report(parse_flags(ReportOptions, sys.argv[1:], prog="segnet_jax.report", description=DESCRIPTION))


def report(options: ReportOptions) -> int:
    """Write the page and, if requested, the JSON; return the exit code.

    Raises:
      UserError: If a folder is not a run, or a file cannot be written or must not be overwritten.
    """
    if not 1 <= len(options.runs) <= MAX_RUNS:
        raise UserError(f"a report takes 1 to {MAX_RUNS} runs, got {len(options.runs)}")
    folders = [_run_folder(run) for run in options.runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"the same run is given twice: {' '.join(options.runs)}")
    if options.scores and not options.published:
        raise UserError("--scores needs --published")
    is_single = len(folders) == 1
    path = pathlib.Path(options.out or (folders[0] / REPORT_FILE if is_single else "comparison.html"))
    check_distinct({"--out": path, "--json": options.json}, options.scores)
    check_place("json", options.json)
    if os.path.lexists(path) and not (is_report(path) and _may_overwrite(path, folders)):
        raise UserError(f"{path} exists, is not a report of this run and is not overwritten; choose another --out")
    if not (is_single and path.resolve() == folders[0].resolve() / REPORT_FILE):
        check_place("out", str(path), is_ours=lambda head: True)  # an existing file was checked above
    try:
        runs = [read_run_summary(folder) for folder in folders]
        published = _compare_published(runs, options) if options.published else None
        if is_single:
            write_page(runs[0], path, published)
        else:
            atomic_write_text(path, comparison_html(runs, published))
        if options.json:
            data = summary(runs[0]) if is_single else _comparison_data(runs)
            write_result(options.json, data | ({"published_comparison": published} if published else {}))
    except OSError as error:
        raise UserError(f"cannot write {error.filename or path}: {error.strerror or error}") from None
    for run in runs:
        for problem in run.problems:
            logger.warning(f"{run.folder}: {problem}")
        echo(f"{run.name}: {content.status(run)[0]}; mIoU {percent(content.headline(run)['miou'])}")
    if not is_single:
        for warning in comparison(runs).warnings:
            logger.warning(warning)
    if published:
        print_published(published)
    echo(f"wrote {path}")
    return 0


def _may_overwrite(path: pathlib.Path, folders: Sequence[pathlib.Path]) -> bool:
    """Return whether a page may be replaced because it is not the report of another run."""
    parent = path.resolve().parent
    own = [folder.resolve() for folder in folders] if len(folders) == 1 else []
    return path.name != REPORT_FILE or parent in own or not os.path.lexists(parent / "config.toml")


def _compare_published(runs: Sequence[RunSummary], options: ReportOptions) -> dict[str, Any]:
    """Compare the runs' scores, or those in the files of `--scores`, with published ones.

    Raises:
      UserError: If the number of score files differs from the number of runs, or a file does not belong to its run.
    """
    if not options.scores:
        return compare_with_published(average_over_seeds([from_run(run) for run in runs]))
    if len(options.scores) != len(runs):
        raise UserError(f"--scores takes one file per run, got {len(options.scores)} for {len(runs)} runs")
    results = []
    for run, path in zip(runs, options.scores, strict=True):
        try:
            evaluation = read_own_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not JSON'}") from None
        if not isinstance(evaluation, dict) or "confusion" not in evaluation:
            raise UserError(f"{path} was not written by evaluate --json")
        if run.result and run.config is not None and not _may_belong_to(run, evaluation):
            raise UserError(f"{path} does not belong to {run.folder}; give the files in the order of the runs")
        results.append(from_evaluation(run, evaluation))
    return compare_with_published(average_over_seeds(results))


def _may_belong_to(run: RunSummary, evaluation: dict[str, Any]) -> bool:
    """Return whether an evaluation has the run's seed and settings; its dataset may differ."""

    def recipe(result: dict[str, Any]) -> dict[str, Any]:
        differences = result.get("differences")
        known = differences if isinstance(differences, dict) else {}
        return {name: both for name, both in known.items() if name != "dataset"}

    return evaluation.get("seed") == run.config.seed and recipe(evaluation) == recipe(run.result)


def summary(run: RunSummary) -> dict[str, Any]:
    """Return the data of a run's report, JSON-serializable."""
    rows = class_rows(run)
    source, changes = content.changed_settings(run)
    confusion = run.chosen.confusion if run.chosen else None
    return {
        "run": run.name,
        "state": content.status(run)[0],
        "scored_on": content.scored_on(run),
        "step": run.chosen_step,
        **content.headline(run),
        "interval": content.interval(run),
        "protocol": content.protocol(run),
        "per_class": {
            row.name: {key: getattr(row, key) for key in ("iou", "accuracy", "precision", "dice", "pixels")}
            for row in rows
        },
        "classes": run.classes,
        "confusion": confusion.tolist() if confusion is not None else None,
        "worst": [{"name": name, "accuracy": accuracy} for name, accuracy in worst_accuracies(run)],
        "notes": content.split_notes(run),
        "warnings": content.warnings(run),
        "facts": content.facts(run),
        "differs_from": source,
        "differences": [{"name": name, "there": there, "here": here} for name, there, here in changes],
    }


def _comparison_data(runs: Sequence[RunSummary]) -> dict[str, Any]:
    """Return the data of a comparison page, JSON-serializable."""
    page = comparison(runs)
    by_run = {name: summary(run) for name, run in zip(page.names, runs, strict=True)}
    settings = {name: dict(zip(page.names, values, strict=True)) for name, values in page.settings}
    return {"runs": by_run, "warnings": page.warnings, "settings": settings}


def _run_folder(run: str) -> pathlib.Path:
    """Return the folder of a run.

    Raises:
      UserError: If the folder does not exist or is not a run folder.
    """
    folder = pathlib.Path(run)
    if not os.path.isdir(folder) or not untrusted_files.is_file(folder, CONFIG_FILE):
        raise UserError(missing_run_message(folder))
    untrusted_files.check_tree(folder)
    return folder


if __name__ == "__main__":
    run_command(main)
