"""Table of benchmark measurements, optionally compared with earlier ones."""

import sys
from collections.abc import Iterator
from typing import Any, TextIO

import rich.box
from rich.console import Console
from rich.table import Table

from segnet_jax.system.console import cell


def print_measurements(
    found: dict[str, Any], earlier: dict[str, Any] | None = None, *, title: str, file: TextIO | None = None
) -> None:
    """Print measurements by part and name, by default to standard output; a part may be a list of dicts.

    With `earlier` measurements, columns with their values and the ratios are added.
    """
    table = Table(title=title, title_justify="left", box=rich.box.SIMPLE, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("measurement")
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
        table.add_row(*map(cell, cells))
    Console(file=file or sys.stdout, highlight=False).print(table)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of nested dicts and lists; a list element is named by its devices and BatchNorm mode."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name} {key}".strip())
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            sync = "synchronized" if item.get("sync_batch_norm") else "local"
            in_name = ("devices", "sync_batch_norm", "batch_size_per_device", "scaling")
            others = {key: item[key] for key in item if key not in in_name}
            strong = "strong, " if item.get("scaling") == "strong" else ""
            yield from _flat(others, f"{name} {strong}{item.get('devices')} devices, {sync} BatchNorm:")
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
