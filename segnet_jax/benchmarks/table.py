"""The table of measured speeds, beside earlier ones where there are such."""

import sys
from collections.abc import Iterator
from typing import Any, TextIO

import rich.box
from rich.console import Console
from rich.table import Table


def print_measurements(
    found: dict[str, Any], earlier: dict[str, Any] | None = None, *, title: str, file: TextIO | None = None
) -> None:
    """Prints measurements, to standard output unless told otherwise.

    Args:
      found: part -> name -> value; a part may be a list of such.
      earlier: the same of another time; numbers that stand in both get a ratio.
      title: what was measured on.
      file: where to.
    """
    table = Table(title=title, title_justify="left", box=rich.box.SIMPLE, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("measured")
    table.add_column("now", justify="right")
    if earlier is not None:
        table.add_column("before", justify="right")
        table.add_column("now / before", justify="right")
    before = dict(_flat(earlier or {}))
    for name, value in _flat(found):
        cells = [name.replace("_", " "), _text(value)]
        if earlier is not None:
            old = before.get(name)
            ratio = f"{value / old:.2f}" if _is_number(value) and _is_number(old) and old else ""
            cells += [_text(old), ratio]
        table.add_row(*cells)
    Console(file=file or sys.stdout, highlight=False).print(table)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of nested dicts and lists; an element of a list is told by its devices and their BatchNorm."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name} {key}".strip())
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            sync = "synchronised" if item.get("sync_batch_norm") else "local"
            told = ("devices", "sync_batch_norm", "batch_size_per_device", "scaling")
            kept = {key: item[key] for key in item if key not in told}
            strong = "strong, " if item.get("scaling") == "strong" else ""
            yield from _flat(kept, f"{name} {strong}{item.get('devices')} devices, {sync} BatchNorm:")
    else:
        yield name, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if _is_number(value)
        else str(value)
    )
