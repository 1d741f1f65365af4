"""The report of a run and the comparison of several, each one HTML file that asks for nothing else.

The page carries a content security policy that allows its own style and script, by their sums, and pictures inside the
page; nothing else is loaded or run, whatever names and settings a run brought with it.
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

from segnet_jax.reporting.page import classes, content
from segnet_jax.reporting.page.charts import HEIGHT, WIDTH, comparing_charts, training_charts
from segnet_jax.reporting.page.compare import comparison
from segnet_jax.reporting.page.record import Record, read_record, whole, worst_listed, worst_pictures
from segnet_jax.reporting.page.uncertainty import uncertainty_told
from segnet_jax.reporting.published import verdict
from segnet_jax.system.files import atomic_write_text

REPORT_FILE, CONFUSION_FILE = "report.html", "confusion.csv"
MARK = '<meta name="generator" content="segnet_jax">'
"""Stands at the start of each page of ours."""

MOST_BYTES = 5_000_000
"""A page is smaller than this, whatever a run has kept."""

_MOST_CELLS_WIDE = 40  # classes up to which the confusion matrix is a table that can be read
_LEVELS = 10  # of heat in the confusion matrix
_LARGEST_SHEET = 2_500_000  # bytes; of an older run's picture, which is shown as it is


def write_report(folder: pathlib.Path) -> None:
    """Draws a run's `report.html`, and writes `confusion.csv` beside it, from what its folder holds.

    Raises:
      OSError: it cannot be written.
    """
    write_page(read_record(folder), folder / REPORT_FILE)


def write_page(record: Record, path: pathlib.Path, beside: Mapping[str, Any] | None = None) -> None:
    """Draws a run's report to a file of any name; `confusion.csv` comes to the run's folder where it has a matrix.

    Args:
      record: of the run.
      path: of the page.
      beside: what `published.beside` tells, to be shown too.

    Raises:
      OSError: it cannot be written.
    """
    if record.chosen is not None and record.chosen.scores is not None:
        atomic_write_text(
            record.folder / CONFUSION_FILE, classes.confusion_csv(record.chosen.confusion, record.classes)
        )
    atomic_write_text(path, report_html(record, beside))


def report_html(record: Record, beside: Mapping[str, Any] | None = None) -> str:
    """The report of a run."""
    confusion = _confusion(record)
    flips, worst = _flips(record), worst_pictures(record)
    source, changes = content.changed_settings(record)
    values = {
        "record": record,
        "beside": beside,
        "status": content.status(record),
        "headline": content.headline(record),
        "score_names": content.SCORES,
        "boundary": content.boundary(record),
        "scored_on": content.scored_on(record),
        "interval": content.interval(record),
        "protocol": content.protocol(record),
        "notes": content.split_notes(record),
        "warnings": content.warnings(record),
        "charts": training_charts(record),
        "rows": classes.class_rows(record),
        "matrix": _matrix(confusion),
        "confused": classes.most_confused(confusion, record.classes) if confusion is not None else [],
        "csv": _base64(classes.confusion_csv(confusion, record.classes).encode()) if confusion is not None else "",
        "sheet": "" if flips["pictures"] else _sheet(record),
        "worst_listed": worst_listed(record),
        "worst_step": whole(record.worst.get("step")),
        "unsure": uncertainty_told(record),
        "facts": content.facts(record),
        "changes": changes,
        "source": source,
        "commands": content.next_commands(record),
    }
    page = ""
    for fewer_flips, fewer_worst in _smaller_and_smaller(flips, worst):
        page = _render("report.html.j2", _colors(record), **values, flips=fewer_flips, worst=fewer_worst)
        if len(page) < MOST_BYTES:
            break
    return page


def comparison_html(records: Sequence[Record], beside: Mapping[str, Any] | None = None) -> str:
    """Several runs side by side, and beside published results."""
    told = comparison(records)
    values = {"charts": comparing_charts(records, told.names), "told": told, "records": records, "beside": beside}
    return _render("compare.html.j2", "", **values)


def _confusion(record: Record) -> np.ndarray | None:
    """The matrix of the chosen evaluation, where it holds a pixel."""
    return record.chosen.confusion if record.chosen is not None and record.chosen.scores is not None else None


def _flips(record: Record) -> dict[str, Any]:
    """The fixed records with their predictions at some steps; the chosen step is shown first."""
    shown = [each for each in record.evaluations if each.predictions]
    pictures = [
        each
        | {"predictions": [(found.step, found.predictions[place]) for found in shown if place < len(found.predictions)]}
        for place, each in enumerate(record.records)
        if each["image"] and each["label"]
    ]
    steps = [each.step for each in shown]
    first = steps.index(record.chosen_step) if record.chosen_step in steps else len(steps) - 1
    return {"steps": steps, "first": first, "pictures": pictures if steps else []}


def _smaller_and_smaller(flips: dict[str, Any], worst: list[dict[str, str]]):
    """Fewer and fewer pictures, for a page that would be too large."""
    yield flips, worst
    for most in (3, 1):
        steps = flips["steps"]
        kept = {steps[0], steps[flips["first"]], steps[-1]} if most == 3 else {steps[flips["first"]]}
        kept = [step for step in steps if step in kept] if steps else []
        first = kept.index(steps[flips["first"]]) if kept else 0
        pictures = [
            each | {"predictions": [(step, found) for step, found in each["predictions"] if step in kept]}
            for each in flips["pictures"]
        ]
        flips = {"steps": kept, "first": first, "pictures": pictures}
        yield flips, worst[:most]
    while flips["pictures"]:
        flips = flips | {"pictures": flips["pictures"][: len(flips["pictures"]) // 2]}
        yield flips, []


def _matrix(confusion: np.ndarray | None) -> dict[str, Any]:
    """The confusion matrix as rows of (level of heat, text) for a table, or as a picture for many classes."""
    if confusion is None:
        return {}
    shares = classes.confusion_shares(confusion)
    if len(confusion) > _MOST_CELLS_WIDE:
        heat = np.nan_to_num(255 - 255 * shares).round().astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(heat).save(buffer, "PNG")
        return {"picture": _base64(buffer.getvalue())}
    rows = [[_cell(float(share)) for share in row] for row in shares]
    return {"rows": rows, "pixels": confusion.sum(axis=1).tolist()}


def _cell(share: float) -> tuple[int, str]:
    if np.isnan(share):
        return 0, ""
    percent = 100 * share
    told = "0" if share == 0 else "<1" if percent < 0.5 else f"{percent:.0f}"
    return round(_LEVELS * share), told


def _sheet(record: Record) -> str:
    """The newest picture of predictions, of a run that kept no others."""
    path = record.folder / "samples" / "latest.png"
    try:
        if path.is_file() and path.stat().st_size <= _LARGEST_SHEET:
            return _base64(path.read_bytes())
    except OSError:
        pass
    return ""


def _colors(record: Record) -> str:
    """The style of the classes' swatches; numbers alone go into it."""
    return "".join(
        f".c{place}{{background:rgb({red} {green} {blue})}}\n" for place, (red, green, blue) in enumerate(record.colors)
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _render(template: str, more_style: str, **values) -> str:
    from markupsafe import Markup

    style, script = _text("report.css") + more_style, _text("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_sum(style)}'; script-src '{_sum(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = {"mark": Markup(MARK), "style": Markup(style), "script": Markup(script), "policy": policy}
    return _templates().get_template(template).render(**page, **values, chart_size=(WIDTH, HEIGHT))


def _sum(text: str) -> str:
    """How a content security policy names a text."""
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
    environment.filters["percent"] = content.score_text
    environment.filters["verdict"] = verdict
    return environment


def is_ours(path: str | os.PathLike) -> bool:
    """Whether a file is a page that we have drawn, and may draw anew."""
    with open(path, "rb") as file:
        return MARK.encode() in file.read(1000)
