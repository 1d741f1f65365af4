"""What was measured on several machines, side by side: as a table in the terminal and as Markdown."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import rich.box
from rich.console import Console
from rich.table import Table

_OF_MACHINE = {"device": ("device",), "platform": ("platform",), "date": ("date",)}
_VERSIONS = ("segnet_jax", "jax", "jaxlib", "flax")
_SPEEDS = {
    "images/s": "images_per_second",
    "share of peak": "share_of_peak",
    "share of roofline": "share_of_roofline",
    "compile, s": "compile_seconds",
    "memory in use at most, MB": "peak_memory_mb",
    "memory of the program, MB": "program_memory_mb",
}
_LARGEST = "Largest difference from float64, of the largest"
_SHARES = ("pixels that change class", "mIoU", "mean accuracy", "global accuracy", "share of peak", "share of roofline")


@dataclass(frozen=True)
class Sides:
    """Several machines side by side.

    Attributes:
      columns: a machine and a precision each.
      warnings: why they may not compare.
      sections: (title, rows), each row a name and a value for each column; None where there is none.
    """

    columns: list[tuple[str, str]]
    warnings: list[str]
    sections: list[tuple[str, list[tuple[str, list[Any]]]]]


def side_by_side(machines: Sequence[dict[str, Any]]) -> Sides:
    """Sets what `portability measure` wrote of each machine side by side, a column for each of its precisions."""
    names = _names(machines)
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
                ("pixels that change class", row("pixels_changed")),
                ("pixels compared", row("pixels_compared")),
            ],
        ),
        ("Training", [(name, row("train", key)) for name, key in _SPEEDS.items()]),
        (
            "Training goes on",
            [
                *((f"loss of step {i + 1}", row("train", "losses", i)) for i in range(losses)),
                ("difference of the parameters' way", row("train", "update_difference")),
            ],
        ),
        ("Inference", [(name, row("infer", key)) for name, key in _SPEEDS.items()]),
        (
            "Pooling windows that chose another pixel than in float64",
            [(name, [_of_all(one) for one in row("poolings", name)]) for name in poolings],
        ),
        ("Difference from float64, of the root mean square", [(name, row("layers", name, "rms")) for name in layers]),
        (_LARGEST, [(name, row("layers", name, "largest")) for name in layers]),
        *((f"Operations of the step: {step}", rows) for step, rows in _operations(parts)),
    ]
    kept = [
        (title, [(name, values) for name, values in rows if set(map(repr, values)) != {"None"}])
        for title, rows in sections
    ]
    return Sides(columns, _warnings(machines), [(title, rows) for title, rows in kept if rows])


def print_sides(sides: Sides, file: TextIO | None = None) -> None:
    """Prints the table, to standard output unless told otherwise; a layer's largest difference is left to the files."""
    console = Console(file=file or sys.stdout, highlight=False)
    for warning in sides.warnings:
        console.print(f"warning: {warning}", style="bold")
    table = Table(box=rich.box.SIMPLE, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name, precision in sides.columns:
        table.add_column(f"{name}\n{precision}", justify="right")
    for title, rows in sides.sections:
        if title == _LARGEST:
            continue
        table.add_row(title, style="bold")
        for name, values in rows:
            table.add_row(f"  {name}", *(_text(name, value) for value in values))
    console.print(table)


def as_markdown(sides: Sides) -> str:
    """The table as a page of Markdown."""
    lines = ["# One network on several machines", ""]
    lines += [f"* **Warning:** {warning}" for warning in sides.warnings] + [""] * bool(sides.warnings)
    for title, rows in sides.sections:
        lines += [f"## {title}", "", _line(["", *(f"{name}, {precision}" for name, precision in sides.columns)])]
        lines.append(_line(["---", *("---:" for _ in sides.columns)]))
        lines += [_line([name, *(_text(name, value) for value in values)]) for name, values in rows]
        lines.append("")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _names(machines: Sequence[dict[str, Any]]) -> list[str]:
    """Of each machine, with a number where two are alike."""
    names = [str(one.get("name") or one.get("device")) for one in machines]
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, start=1)]


def _warnings(machines: Sequence[dict[str, Any]]) -> list[str]:
    """Why the machines may not compare."""
    told = []
    for what, path in {"weights": ("weights",), "images": ("data",), "image sizes": ("image_size",)}.items():
        if len({repr(_at(one, ("subject", *path))) for one in machines}) > 1:
            told.append(f"the {what} are not the same on all machines: what was measured does not compare")
    if len({repr(one.get("settings")) for one in machines}) > 1:
        told.append("batch, number of images or rounds are not the same on all machines")
    return told


def _operations(parts: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[tuple[str, list[Any]]]]]:
    """Of each step, all operations together and each kind of which the columns have unequal numbers."""
    for step in dict.fromkeys(step for part in parts for step in part.get("operations", {})):
        counts = [_at(part, ("operations", step)) for part in parts]
        kinds = sorted({kind for count in counts if count for kind in count})
        rows = [(kind, [count and count.get(kind, 0) for count in counts]) for kind in kinds]
        total = ("all", [count and sum(count.values()) for count in counts])
        yield step, [total, *(row for row in rows if len({*row[1]} - {None}) > 1)]


def _of_all(choices: dict[str, int] | None) -> str | None:
    return choices and f"{choices['other_choices']:,} of {choices['windows']:,}"


def _at(value: Any, path: Sequence[Any]) -> Any:
    """What lies at a path of keys and places, or None."""
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
    if name in _SHARES:
        return f"{100 * value:.3f} %"
    return f"{value:.2e}" if abs(value) < 1e-3 and value else f"{value:,.4g}"
