"""Predicts how data-parallel training of SegNet scales, from counted bytes and assumed speeds. It measures nothing.

python experiments/scaling/predict.py
python experiments/scaling/predict.py --measured experiments/scaling/measured.json --machine h200
"""

import argparse
import itertools
import json
import pathlib
from collections.abc import Sequence
from dataclasses import asdict

import rich.box
from communication import (
    ARTICLE,
    ARTICLE_SPEED_UP,
    DEVICES,
    LINKS,
    MACHINES,
    NOTE,
    OVERLAPS,
    SCALINGS,
    Machine,
    given_numbers,
    predict,
)
from measured_rows import Measured, held, one_device, predicted_efficiencies, read_measured
from rich.console import Console
from rich.table import Table
from scaling_figures import draw_measured, draw_predictions

from segnet_jax.system.command import run_command
from segnet_jax.system.files import atomic_write_bytes, atomic_write_text, check_place


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).parent
    parser.add_argument("--out", type=pathlib.Path, default=here / "prediction.json", help="the figure goes beside it")
    parser.add_argument("--measured", type=pathlib.Path, help="a benchmark's JSON to compare with")
    parser.add_argument("--figure", type=pathlib.Path, help="PNG to draw what was --measured and what is predicted to")
    parser.add_argument(
        "--machine", choices=MACHINES, default="p3.16xlarge", help="whose links --measured is held against"
    )
    given = parser.parse_args(argv)
    console = Console(highlight=False)
    if given.measured:
        machine, rows = MACHINES[given.machine], read_measured(given.measured)
        console.print(measured_table(machine, rows))
        if given.figure:
            atomic_write_bytes(given.figure, draw_measured(machine, rows))
        return
    if given.out != here / "prediction.json":  # which this command is there to replace
        check_place("out", str(given.out))
    print_predictions(console)
    atomic_write_text(given.out, prediction_json())
    atomic_write_bytes(given.out.with_suffix(".png"), draw_predictions())


def prediction_json() -> str:
    """The text of `prediction.json`: everything given, a line each, and every row, a line each."""
    rows = []
    for name, scaling, devices, links, overlap in itertools.product(MACHINES, SCALINGS, DEVICES, LINKS, OVERLAPS):
        prediction = asdict(predict(MACHINES[name], scaling, devices, **links, overlap=overlap))
        row = {"machine": name, "scaling": scaling.kind, "devices": devices}
        row |= {"batch_size_per_device": scaling.batch_size_per_device(devices), **links, "overlap": overlap}
        rows.append(row | {f"predicted_{key}": float(f"{value:.4g}") for key, value in prediction.items()})
    sections = {
        "note": f"{NOTE}: this project measured no number in this file",
        "not_modelled": "input, evaluation, stragglers, the few bytes of loss, counts and BatchNorm statistics",
        "published": ARTICLE | {"speed_up": round(ARTICLE_SPEED_UP, 2), "source": "NVIDIA's article of 2018, MATLAB"},
        "given": {name: asdict(given) for name, given in given_numbers().items()},
        "rows": rows,
    }
    return json.dumps(sections, indent=1).replace("\n   ", " ").replace("\n  }", " }") + "\n"


def span(low: float, high: float, decimals: int = 0) -> str:
    """Writes a range, or one number where both ends look alike."""
    low, high = f"{low:,.{decimals}f}", f"{high:,.{decimals}f}"
    return low if low == high else f"{low}–{high}"


def new_table(title: str, first: str, *others: str) -> Table:
    """A table whose first column holds words and whose others hold numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def prediction_table(machine: Machine) -> Table:
    """Every setting of a machine; ranges go from no overlap to full overlap."""
    efficiencies = [f"{'sync' if k['sync_batch_norm'] else 'local'}\n{k['wire_bits']} bit\n%" for k in LINKS]
    title = f"{machine.title}: {NOTE}"
    table = new_table(title, "batch", "devices", "images/s", "speed-up", *efficiencies)
    for scaling, devices in itertools.product(SCALINGS, DEVICES):
        ends = [[predict(machine, scaling, devices, **links, overlap=way) for way in OVERLAPS] for links in LINKS]
        table.add_row(
            {1: scaling.kind, 2: scaling.held}.get(devices),
            str(devices),
            span(*(end.images_per_second for end in ends[0])),
            span(*(end.speed_up for end in ends[0]), decimals=1),
            *(span(*(100 * end.efficiency for end in pair)) for pair in ends),
            end_section=devices == DEVICES[-1],
        )
    return table


def print_predictions(console: Console) -> None:
    """Prints all tables, how to read them, and what is assumed."""
    for machine in MACHINES.values():
        console.print(prediction_table(machine))
    console.print(
        "Ranges: from no overlap of the gradients' all-reduce to full overlap. Percent: efficiency with BatchNorm over "
        "all devices (sync) or each by itself (local), gradients sent in 32 or 16 bits. Images/s, speed-up: sync, 32."
    )
    console.print("\nNot modelled: input (taken to be always ready), evaluation, stragglers. Assumed, not measured:")
    for name, given in given_numbers().items():
        if given.source.startswith("assumed"):
            console.print(f"  {name}: {given} ({given.source.removeprefix('assumed: ')})", soft_wrap=True)
    minutes = f"{ARTICLE['minutes_on_1']} min on 1 V100, {ARTICLE['minutes_on_8']} min on 8"
    efficiency = ARTICLE_SPEED_UP / ARTICLE["devices"]
    console.print(f"\nPublished, to compare: MATLAB, 2018, {minutes}: {ARTICLE_SPEED_UP:.2f}x, {100 * efficiency:.0f}%")


def measured_table(machine: Machine, rows: Sequence[Measured]) -> Table:
    """Each row beside its prediction, which one without a row of one device at its batch size cannot have."""
    title = f"Measured, beside what the measured speed of one device and\nthe links of {machine.title} predict"
    headings = ["images/s\nmeasured", "images/s\npredicted", "% of ideal\nmeasured", "% of ideal\npredicted"]
    table = new_table(title, "BatchNorm", "images a\ndevice", "devices", *headings)
    for row in sorted(rows, key=lambda r: (not r.sync_batch_norm, held(r), r.devices)):
        cells = ["-", "-", "-"]
        if base := one_device(row, rows):
            ideal = row.devices * base.images_per_second
            ends = predicted_efficiencies(machine, row, base)
            cells = [span(*(ideal * end for end in ends), decimals=1), f"{100 * row.images_per_second / ideal:.0f}"]
            cells.append(span(*(100 * end for end in ends)))
        facts = (row.batch_size_per_device, row.devices, f"{row.images_per_second:,.1f}")
        table.add_row("sync" if row.sync_batch_norm else "local", *map(str, facts), *cells)
    return table


if __name__ == "__main__":
    run_command(main)
