"""Draw the report of a run, or a comparison of several runs, as one self-contained HTML file.

The page's content security policy allows only embedded pictures and, by hash, the page's style and script.
"""

import base64
import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from segnet_jax.metrics.bootstrap import LEVEL_TEXT
from segnet_jax.metrics.table import METRICS, class_pixels, percent
from segnet_jax.reporting.page import classes, content
from segnet_jax.reporting.page.charts import HEIGHT, WIDTH, comparison_charts, training_charts
from segnet_jax.reporting.page.compare import comparison
from segnet_jax.reporting.page.recipe import overview
from segnet_jax.reporting.page.run_summary import (
    RunSummary,
    integer,
    read_run_summary,
    worst_accuracies,
    worst_pictures,
)
from segnet_jax.reporting.page.uncertainty import uncertainty
from segnet_jax.reporting.page.wording import setting_words, value_words
from segnet_jax.reporting.published import score_columns, verdict
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_text

REPORT_FILE, CONFUSION_FILE = "report.html", "confusion.csv"
MARK = '<meta name="generator" content="segnet_jax">'
"""Marks our pages, which may be overwritten, near their start."""

MAX_BYTES = 5_000_000
"""Upper bound on the size of a run's page, whatever its folder contains."""

_MAX_TABLE_CLASSES = 40  # with more classes, the confusion matrix is a picture
_LEVELS = 10  # of color in the confusion matrix
_MAX_SAMPLES_BYTES = 2_500_000  # of samples/latest.png, shown for a run without stored predictions


def write_report(folder: pathlib.Path) -> None:
    """Write a run's `report.html` and `confusion.csv`.

    Raises:
      OSError: If a file cannot be written.
    """
    write_page(read_run_summary(folder), folder / REPORT_FILE)


def write_page(run: RunSummary, path: pathlib.Path, published: Mapping[str, Any] | None = None) -> None:
    """Write a run's report to `path`, and `confusion.csv` to the run folder if the run has a confusion matrix.

    The page includes `published`, the result of `published.compare_with_published`, if given.

    Raises:
      OSError: If a file cannot be written.
    """
    if run.chosen is not None and run.chosen.scores is not None:
        atomic_write_text(run.folder / CONFUSION_FILE, classes.confusion_csv(run.chosen.confusion, run.classes))
    atomic_write_text(path, report_html(run, published))


def report_html(run: RunSummary, published: Mapping[str, Any] | None = None) -> str:
    """Return the HTML of a run's report; see `write_page`."""
    confusion = _confusion(run)
    preview, worst = _preview(run), worst_pictures(run)
    base, changes = content.changed_settings(run)
    values = {
        "run": run,
        "published": published,
        "status": content.status(run),
        "headline": content.headline(run),
        "overview": overview(run),
        "boundary": content.boundary(run),
        "scored_on": content.scored_on(run),
        "baseline": content.baseline(run),
        "interval": content.interval(run),
        "level": LEVEL_TEXT,
        "protocol": content.protocol(run),
        "notes": content.split_notes(run),
        "warnings": content.warnings(run),
        "charts": training_charts(run),
        "rows": classes.class_rows(run),
        "matrix": _matrix(confusion),
        "confused": classes.most_confused(confusion, run.classes) if confusion is not None else [],
        "csv": _base64(classes.confusion_csv(confusion, run.classes).encode()) if confusion is not None else "",
        "samples_png": "" if preview["pictures"] else _samples_png(run),
        "worst_accuracies": worst_accuracies(run),
        "worst_step": integer(run.worst.get("step")),
        "uncertainty": uncertainty(run),
        "facts": content.facts(run),
        "changes": changes,
        "base": base,
        "commands": content.next_commands(run),
    }
    page = ""
    for fewer, fewer_worst in _fewer_pictures(preview, worst):
        page = _render("report.html.j2", _colors(run), **values, preview=fewer, worst=fewer_worst)
        if len(page) < MAX_BYTES:
            break
    return page


def comparison_html(runs: Sequence[RunSummary], published: Mapping[str, Any] | None = None) -> str:
    """Return the HTML of a comparison of several runs and, if given, published results."""
    compared = comparison(runs)
    values = {"charts": comparison_charts(runs, compared.names), "comparison": compared, "published": published}
    style = _colors(runs[0]) if compared.class_names else ""
    return _render("compare.html.j2", style, **values, level=LEVEL_TEXT)


def _confusion(run: RunSummary) -> np.ndarray | None:
    """Return the confusion matrix of the chosen evaluation; None if it is unknown or zero."""
    return run.chosen.confusion if run.chosen is not None and run.chosen.scores is not None else None


def _preview(run: RunSummary) -> dict[str, Any]:
    """Return the preview samples with their predictions by step, and the index of the chosen step."""
    stored = [each for each in run.evaluations if each.predictions]
    pictures = [
        sample | {"predictions": [(each.step, each.predictions[i]) for each in stored if i < len(each.predictions)]}
        for i, sample in enumerate(run.samples)
        if sample["image"] and sample["label"]
    ]
    steps = [each.step for each in stored]
    first = steps.index(run.chosen_step) if run.chosen_step in steps else len(steps) - 1
    return {"steps": steps, "first": first, "pictures": pictures if steps else []}


def _fewer_pictures(preview: dict[str, Any], worst: list[dict[str, str]]):
    """Yield the pictures, then fewer and fewer of them, for a page that is too large."""
    yield preview, worst
    for max_steps in (3, 1):
        steps = preview["steps"]
        chosen = {steps[preview["first"]]} if steps else set()
        ends = {steps[0], steps[-1]} if steps and max_steps == 3 else set()
        kept = [step for step in steps if step in chosen | ends]
        first = kept.index(steps[preview["first"]]) if kept else 0
        pictures = [
            each | {"predictions": [(step, data) for step, data in each["predictions"] if step in kept]}
            for each in preview["pictures"]
        ]
        preview = {"steps": kept, "first": first, "pictures": pictures}
        yield preview, worst[:max_steps]
    while preview["pictures"]:
        preview = preview | {"pictures": preview["pictures"][: len(preview["pictures"]) // 2]}
        yield preview, []


def _matrix(confusion: np.ndarray | None) -> dict[str, Any]:
    """Return the confusion matrix as "rows" of (color level, text), or as a "picture" for many classes."""
    if confusion is None:
        return {}
    fractions = classes.normalized_confusion(confusion)
    if len(fractions) > _MAX_TABLE_CLASSES:
        heat = np.nan_to_num(255 - 255 * fractions).round().astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(heat).save(buffer, "PNG")
        return {"picture": _base64(buffer.getvalue())}
    rows = [[_cell(float(fraction)) for fraction in row] for row in fractions]
    return {"rows": rows, "pixels": class_pixels(confusion).tolist()}


def _cell(fraction: float) -> tuple[int, str]:
    if np.isnan(fraction):
        return 0, ""
    percentage = 100 * fraction
    label = "0" if fraction == 0 else "<1" if percentage < 0.5 else f"{percentage:.0f}"
    return round(_LEVELS * fraction), label


def _samples_png(run: RunSummary) -> str:
    """Return `samples/latest.png` as base64, for a run without stored predictions; "" if missing or too large."""
    try:
        return _base64(untrusted_files.read_bytes(run.folder, "samples/latest.png", most=_MAX_SAMPLES_BYTES))
    except (OSError, UserError):
        return ""


def _colors(run: RunSummary) -> str:
    """Return the CSS of the class colors, which contains only checked numbers."""
    return "".join(
        f".c{class_id}{{background:rgb({red} {green} {blue})}}\n"
        for class_id, (red, green, blue) in enumerate(run.colors)
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _render(template: str, more_style: str, **values) -> str:
    from markupsafe import Markup

    style, script = _text("report.css") + more_style, _text("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = {"mark": Markup(MARK), "style": Markup(style), "script": Markup(script), "policy": policy}
    return _templates().get_template(template).render(**page, **values, chart_size=(WIDTH, HEIGHT))


def _hash(text: str) -> str:
    """Return the hash of a style or script for the content security policy."""
    return f"sha256-{_base64(hashlib.sha256(text.encode()).digest())}"


@functools.cache
def _text(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


@functools.cache
def _templates():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    environment.filters |= {"verdict": verdict, "setting_words": setting_words, "value_words": value_words}
    environment.globals |= {"metrics": METRICS, "score_columns": score_columns}
    return environment


def is_report(path: str | os.PathLike) -> bool:
    """Return whether a file is one of our pages, which may be overwritten."""
    real = pathlib.Path(os.path.realpath(path))
    try:
        with untrusted_files.open_file(real.parent, real.name) as file:
            return MARK.encode() in file.read(1000)
    except (OSError, UserError):
        return False
