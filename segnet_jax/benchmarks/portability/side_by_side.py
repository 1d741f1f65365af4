"""Compare the measurements of several machines, as a table in the terminal and as Markdown."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import rich.box
from rich.console import Console
from rich.table import Table

from segnet_jax.system.console import cell
from segnet_jax.system.errors import shown

_OF_MACHINE = {"device": ("device",), "platform": ("platform",), "date": ("date",)}
_VERSIONS = ("segnet_jax", "jax", "jaxlib", "flax")
_SPEEDS = {
    "images/s": "images_per_second",
    "fraction of peak": "fraction_of_peak",
    "fraction of roofline": "fraction_of_roofline",
    "compile time, s": "compile_seconds",
    "peak memory, MB": "peak_memory_mb",
    "program memory, MB": "program_memory_mb",
}
_LARGEST = "Largest difference from float64, relative to the largest value"
_FRACTIONS = (
    "pixels with another class",
    "mIoU",
    "mean accuracy",
    "global accuracy",
    "fraction of peak",
    "fraction of roofline",
)


@dataclass(frozen=True)
class MachineComparison:
    """A table of the measurements of several machines, or of the programs of several targets.

    Attributes:
      columns: (machine, precision) pairs.
      warnings: reasons why the machines may not be comparable.
      sections: (title, rows) pairs; a row is a name and one value per column, None if not measured.
      title: title of the Markdown page.
    """

    columns: list[tuple[str, str]]
    warnings: list[str]
    sections: list[tuple[str, list[tuple[str, list[Any]]]]]
    title: str = "One network on several machines"


def compare_machines(machines: Sequence[dict[str, Any]]) -> MachineComparison:
    """Return a table of the results of `portability measure`, with one column per machine and precision."""
    names = names_of([str(one.get("name") or one.get("device")) for one in machines])
    columns = [(name, precision) for name, one in zip(names, machines, strict=True) for precision in one["precisions"]]
    of_columns = [one for one in machines for _ in one["precisions"]]
    parts = [part for one in machines for part in one["precisions"].values()]

    def row(*path: Any) -> list[Any]:
        return [_at(part, path) for part in parts]

    versions = [(name, [_at(one, ("environment", "versions", name)) for one in of_columns]) for name in _VERSIONS]
    machine = [(name, [_at(one, path) for one in of_columns]) for name, path in _OF_MACHINE.items()]
    machine.append(("python", [_at(one, ("environment", "python")) for one in of_columns]))
    layers, poolings = (
        list(dict.fromkeys(name for part in parts for name in part.get(kind, {}))) for kind in ("layers", "poolings")
    )
    losses = max((len(_at(part, ("train", "losses")) or ()) for part in parts), default=0)
    sections = [
        ("Machine", [*machine, *versions, ("fails", row("fails"))]),
        (
            "Score",
            [
                ("mIoU", row("score", "miou")),
                ("mean accuracy", row("score", "mean_accuracy")),
                ("global accuracy", row("score", "global_accuracy")),
                ("images scored", row("score", "num_images")),
                ("pixels with another class", row("pixels_changed")),
                ("pixels compared", row("pixels_compared")),
            ],
        ),
        ("Training", [(name, row("train", key)) for name, key in _SPEEDS.items()]),
        (
            "Training from the checkpoint",
            [
                *((f"loss of step {i + 1}", row("train", "losses", i)) for i in range(losses)),
                ("relative difference of the parameter update", row("train", "update_difference")),
            ],
        ),
        ("Inference", [(name, row("infer", key)) for name, key in _SPEEDS.items()]),
        (
            "Pooling windows with another maximum than in float64",
            [(name, [_fraction_text(one) for one in row("poolings", name)]) for name in poolings],
        ),
        ("Difference from float64, relative root mean square", [(name, row("layers", name, "rms")) for name in layers]),
        (_LARGEST, [(name, row("layers", name, "largest")) for name in layers]),
        *((f"Operations of the {step} step", rows) for step, rows in _operations(parts)),
    ]
    kept = [
        (title, [(name, values) for name, values in rows if set(map(repr, values)) != {"None"}])
        for title, rows in sections
    ]
    return MachineComparison(columns, _warnings(machines), [(title, rows) for title, rows in kept if rows])


def print_comparison(comparison: MachineComparison, file: TextIO | None = None) -> None:
    """Print the table, by default to standard output, without the largest differences of layers."""
    console = Console(file=file or sys.stdout, highlight=False)
    for warning in comparison.warnings:
        console.print(cell(f"warning: {warning}", "bold"))
    table = Table(box=rich.box.SIMPLE, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name, precision in comparison.columns:
        table.add_column(cell(f"{name}\n{precision}"), justify="right")
    for title, rows in comparison.sections:
        if title == _LARGEST:
            continue
        table.add_row(cell(title), style="bold")
        for name, values in rows:
            table.add_row(cell(f"  {name}"), *(cell(_text(name, value)) for value in values))
    console.print(table)


MARK = "<!-- written by segnet_jax.portability report -->"
"""First line of the Markdown page; later commands may replace a file with this line."""


def is_page(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a page of `as_markdown`."""
    return head.startswith(MARK.encode())


def as_markdown(comparison: MachineComparison) -> str:
    """Return the table as a Markdown page."""
    lines = [MARK, "", f"# {comparison.title}", ""]
    lines += [f"* **Warning:** {shown(warning)}" for warning in comparison.warnings] + [""] * bool(comparison.warnings)
    for title, rows in comparison.sections:
        lines += [
            f"## {shown(title)}",
            "",
            _line(["", *(f"{name}, {precision}" for name, precision in comparison.columns)]),
        ]
        lines.append(_line(["---", *("---:" for _ in comparison.columns)]))
        lines += [_line([name, *(_text(name, value) for value in values)]) for name, values in rows]
        lines.append("")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(shown(text).replace('|', '/') for text in cells)} |"


def names_of(names: Sequence[str]) -> list[str]:
    """Return the names of columns, with numbers appended to names that are not unique."""
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _warnings(machines: Sequence[dict[str, Any]]) -> list[str]:
    """Return reasons why the machines may not be comparable."""
    warnings = []
    for name, path in {"weights": ("weights",), "images": ("data",), "image sizes": ("image_size",)}.items():
        if len({repr(_at(one, ("subject", *path))) for one in machines}) > 1:
            warnings.append(f"the {name} differ between machines, so the measurements are not comparable")
    if len({repr(one.get("settings")) for one in machines}) > 1:
        warnings.append("the batch size, number of images or number of rounds differs between machines")
    return warnings


def _operations(parts: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[tuple[str, list[Any]]]]]:
    """Yield the rows of each step: the total, and the operations whose counts differ between columns."""
    for step in dict.fromkeys(step for part in parts for step in part.get("operations", {})):
        counts = [_at(part, ("operations", step)) for part in parts]
        kinds = sorted({kind for count in counts if count for kind in count})
        rows = [(kind, [count and count.get(kind, 0) for count in counts]) for kind in kinds]
        total = ("total", [count and sum(count.values()) for count in counts])
        yield step, [total, *(row for row in rows if len({*row[1]} - {None}) > 1)]


def _fraction_text(counts: dict[str, int] | None) -> str | None:
    return counts and f"{counts['other_maxima']:,} of {counts['windows']:,}"


def _at(value: Any, path: Sequence[Any]) -> Any:
    """Return the value at a path of keys and indices, or None if it does not exist."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _text(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if name in _FRACTIONS:
        return f"{100 * value:.3f} %"
    return f"{value:.2e}" if abs(value) < 1e-3 and value else f"{value:,.4g}"
