"""Train the runs of a sweep in order, each in its own process, and write the table of their scores."""

import contextlib
import logging
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from segnet_jax.config.differences import differences
from segnet_jax.config.files import is_run, read_run_in
from segnet_jax.metrics.table import METRICS
from segnet_jax.runs.run_folder import RESULT_FILE, read_result
from segnet_jax.sweep.plan import Plan, PlannedRun
from segnet_jax.system import untrusted_files
from segnet_jax.system.console import echo
from segnet_jax.system.errors import Stopped, UserError
from segnet_jax.system.files import atomic_write_text, check_place, write_result
from segnet_jax.system.signals import Stop

logger = logging.getLogger(__name__)

TABLE, ROWS = "sweep.md", "sweep.json"
_MARK = "<!-- written by segnet_jax.sweep -->\n"
_RESULTS = ("split", "miou", "mean_accuracy", "global_accuracy", "step", "seconds")


def train_all(plan: Plan) -> int:
    """Train every run that is not finished, and write the table after each.

    Returns:
      0, the exit code of the first run that failed, or 1 if another run has no result.

    Raises:
      UserError: If the folder cannot be written to, or the folder of a run is a link.
      Stopped: If a signal stopped the sweep; the run in training is saved, and the same command resumes the sweep.
    """
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {plan.folder}: {error.strerror}; choose another folder with --out") from None
    for run in plan.runs:  # train follows a link that its --run names
        untrusted_files.check_folder(plan.folder, run.name)
    check_place("out", plan.folder / TABLE, is_ours=lambda head: head.startswith(_MARK.encode()))
    check_place("out", plan.folder / ROWS)
    codes: dict[str, int] = {}
    with Stop("the run is saved first") as stop:
        for number, run in enumerate(plan.runs, start=1):
            if not _is_finished_or_warn(run):
                logger.info(f"sweep    run {number} of {len(plan.runs)}: {run.name}")
                codes[run.name] = _train(run, stop)
            write_table(plan, codes)
            if stop.requested():
                done = sum(map(is_finished, plan.runs))
                raise Stopped(stop.exit_code or 130, f"stopped with {done} of {len(plan.runs)} runs finished")
    print_table(plan, codes)
    if any(row["split"] == "test" for row in rows_of(plan, codes)):
        logger.warning(
            "scores of the split test are of the test images: do not choose settings by them, but by scores of "
            "validation images; if there are none, split the data with val_fraction, or with folds and fold"
        )
    done = sum(map(is_finished, plan.runs))
    echo(f"{done} of {len(plan.runs)} runs finished; see {plan.folder / TABLE}")
    return next(filter(None, codes.values()), 0 if done == len(plan.runs) else 1)


def is_finished(run: PlannedRun) -> bool:
    """Return whether a run with these settings has an undamaged result."""
    with contextlib.suppress(UserError):
        return _read_result(run) is not None
    return False


def _is_finished_or_warn(run: PlannedRun) -> bool:
    try:
        return _read_result(run) is not None
    except UserError as error:
        logger.warning(f"{error}; the run is resumed now")
        return False


def _read_result(run: PlannedRun) -> dict[str, Any] | None:
    """Return the result of a finished run with these settings, or None; raise UserError if it is damaged."""
    try:
        known = read_run_in(run.folder.parent, run.name)
        if not untrusted_files.is_file(run.folder, RESULT_FILE) or differences(known, run.config):
            return None
    except (OSError, UserError):
        return None
    return read_result(run.folder)


def _train(run: PlannedRun, stop: Stop) -> int:
    """Train or resume a run in a separate process, passing a signal on to it; return its exit code."""
    process = subprocess.Popen([sys.executable, "-m", "segnet_jax.train", *run.words, "--run", str(run.folder)])
    is_asked = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.5)
        if stop.requested() and not is_asked:
            process.terminate()
            is_asked = True


def rows_of(plan: Plan, codes: dict[str, int]) -> list[dict[str, Any]]:
    """Return a row for each run: its name, settings, status and scores; `codes` are the exit codes of trained runs."""
    return [{"run": run.name, **_settings(plan, run), **_result(run, codes.get(run.name))} for run in plan.runs]


def _settings(plan: Plan, run: PlannedRun) -> dict[str, Any]:
    keys = dict.fromkeys(key for each in plan.runs for key in each.settings)
    return {key: getattr(run.config, key) for key in keys if hasattr(run.config, key)}


def _result(run: PlannedRun, code: int | None) -> dict[str, Any]:
    if is_finished(run):
        found = read_result(run.folder)
        return {"status": "finished", **{key: found.get(key) for key in _RESULTS}}
    status = "unfinished" if is_run(run.folder) else "waiting"
    if code:
        status = f"failed, exit code {code}" if code > 0 else f"killed by signal {-code}"
    return {"status": status, **dict.fromkeys(_RESULTS)}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows with equal keys as a table in Markdown; scores in percent, times in minutes."""
    headings = [METRICS[key].label if key in METRICS else key for key in rows[0]]
    lines = [headings, ["---"] * len(headings), *([_cell(key, row[key]) for key in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| seconds |", "| min |", 1)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in METRICS:
        return METRICS[key].format(value)
    if key == "seconds":
        return f"{value / 60:.1f}"
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.replace("|", "\\|")


def write_table(plan: Plan, codes: dict[str, int]) -> None:
    """Write the table as Markdown and as JSON."""
    rows = rows_of(plan, codes)
    atomic_write_text(plan.folder / TABLE, _MARK + markdown(rows))
    write_result(plan.folder / ROWS, {"runs": rows})


def print_table(plan: Plan, codes: dict[str, int] | None = None) -> None:
    """Print the table."""
    echo(markdown(rows_of(plan, codes or {})).rstrip())
