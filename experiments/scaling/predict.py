"""Predict how data-parallel training of SegNet scales, from counted bytes and assumed speeds, without measuring.

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
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).parent
    parser.add_argument(
        "--out", type=pathlib.Path, default=here / "prediction.json", help="JSON file; the figure is written next to it"
    )
    parser.add_argument("--measured", type=pathlib.Path, help="a benchmark's JSON to compare with")
    parser.add_argument("--figure", type=pathlib.Path, help="PNG for the figure of --measured and prediction")
    parser.add_argument("--machine", choices=MACHINES, default="p3.16xlarge", help="machine to compare --measured with")
    given = parser.parse_args(argv)
    console = Console(highlight=False)
    if given.measured:
        machine, rows = MACHINES[given.machine], read_measured(given.measured)
        console.print(measured_table(machine, rows))
        if given.figure:
            atomic_write_bytes(given.figure, draw_measured(machine, rows))
        return
    if given.out != here / "prediction.json":  # the default is meant to be overwritten
        check_place("out", str(given.out))
    print_predictions(console)
    atomic_write_text(given.out, prediction_json())
    atomic_write_bytes(given.out.with_suffix(".png"), draw_predictions())


def prediction_json() -> str:
    """Return the text of `prediction.json`, one line per input and row."""
    rows = []
    for name, scaling, devices, links, overlap in itertools.product(MACHINES, SCALINGS, DEVICES, LINKS, OVERLAPS):
        prediction = asdict(predict(MACHINES[name], scaling, devices, **links, overlap=overlap))
        row = {"machine": name, "scaling": scaling.kind, "devices": devices}
        row |= {"batch_size_per_device": scaling.batch_size_per_device(devices), **links, "overlap": overlap}
        rows.append(row | {f"predicted_{key}": float(f"{value:.4g}") for key, value in prediction.items()})
    sections = {
        "note": f"{NOTE}: this project measured no number in this file",
        "not_modeled": "input, evaluation, stragglers, the few bytes of loss, counts and BatchNorm statistics",
        "published": ARTICLE | {"speed_up": round(ARTICLE_SPEED_UP, 2), "source": "NVIDIA's article of 2018, MATLAB"},
        "given": {name: asdict(given) for name, given in given_numbers().items()},
        "rows": rows,
    }
    return json.dumps(sections, indent=1).replace("\n   ", " ").replace("\n  }", " }") + "\n"


def span(low: float, high: float, decimals: int = 0) -> str:
    """Format a range, or one number if both ends are formatted alike."""
    low, high = f"{low:,.{decimals}f}", f"{high:,.{decimals}f}"
    return low if low == high else f"{low}–{high}"


def new_table(title: str, first: str, *others: str) -> Table:
    """Format a table whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def prediction_table(machine: Machine) -> Table:
    """Format every setting of a machine; ranges are from no overlap to full overlap."""
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
    """Print all tables, how to read them, and the assumptions."""
    for machine in MACHINES.values():
        console.print(prediction_table(machine))
    console.print(
        "Ranges: from no overlap of the gradients' all-reduce to full overlap. Percent: efficiency with BatchNorm over "
        "all devices (sync) or each by itself (local), gradients sent in 32 or 16 bits. Images/s, speed-up: sync, 32."
    )
    console.print("\nNot modeled: input (taken to be always ready), evaluation, stragglers. Assumed, not measured:")
    for name, given in given_numbers().items():
        if given.source.startswith("assumed"):
            console.print(f"  {name}: {given} ({given.source.removeprefix('assumed: ')})", soft_wrap=True)
    minutes = f"{ARTICLE['minutes_on_1']} min on 1 V100, {ARTICLE['minutes_on_8']} min on 8"
    efficiency = ARTICLE_SPEED_UP / ARTICLE["devices"]
    console.print(f"\nPublished, to compare: MATLAB, 2018, {minutes}: {ARTICLE_SPEED_UP:.2f}x, {100 * efficiency:.0f}%")


def measured_table(machine: Machine, rows: Sequence[Measured]) -> Table:
    """Format each row with its prediction, if there is a single-device row with its batch size."""
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
