"""Compare with tuned PyTorch: check that outputs are equal, then time both alternately in one process.

python experiments/peers/compare.py pooling|network|layers|input [--json FILE]

pooling: pool, unpool, and their gradients.  network: training step and inference.  layers: each convolution of the
network, and the rest of a step.  input: the host's augmented batches.
"""

import argparse
import datetime
import importlib.metadata
import os
import pathlib
import shlex
import sys
from collections.abc import Iterable
from typing import Any

import machine as machines
import peer_input
import peer_layers
import peer_network
import peer_pooling
import rich.box
import side_by_side
import torch
from problem import draw_problem
from rich.console import Console
from rich.table import Table

from segnet_jax.reporting.environment import commit, versions
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_json

ROOT = pathlib.Path(__file__).resolve().parents[2]
FULL_SIZE = (360, 480)
STEPS = {"pooling": 10, "network": 2, "layers": 2}  # of a turn on the CPU
STEPS_ON_GPU = 20
ROUNDS = 5
TUNING = ("MALLOC_", "OMP_", "XLA_FLAGS")  # of the environment


def main() -> int:
    """Run the command."""
    given = parse(sys.argv[1:])
    if given.json and not given.json.absolute().parent.is_dir():
        raise UserError(f"no folder for --json {given.json}: make it first")
    machine = machines.start(given.precision, given.compile)
    parts = {"pooling": pooling, "network": network, "layers": layers, "input": input_}
    found = parts[given.what](given, machine)
    if given.json:
        about = {
            "command": command(given.json),
            "machine": str(machine),
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "versions": versions() | peer_versions(),
            "what": given.what,
            "image_size": given.image_size,
            "rounds": given.rounds,
        }
        atomic_write_json(given.json, about | found)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    for name in ("pooling", "network", "layers", "input"):
        part = parts.add_parser(name)
        batch_sizes = {"network": [1, 2], "input": [4]}.get(name, [1])
        part.add_argument(
            "--batch-size", type=positive, nargs="+", default=batch_sizes, help="one or several batch sizes"
        )
        part.add_argument("--image-size", type=positive, nargs=2, default=FULL_SIZE, help="height and width")
        part.add_argument("--rounds", type=positive, default=ROUNDS, help="turns of each side")
        part.add_argument("--steps", type=positive, help="steps per turn; default: by part and device")
        part.add_argument("--json", type=pathlib.Path, help="file to write everything to")
        if name == "input":
            part.set_defaults(width=1.0, precision="float32", compile="off")
            part.add_argument("--data", default="", help="CamVid in the tutorial's layout")
            part.add_argument("--workers", type=int, default=2, help="processes of PyTorch's loader")
            continue
        part.add_argument("--width", type=float, default=1.0, help="multiplier of the channels")
        part.add_argument(
            "--precision", choices=["auto", *machines.DTYPES], default="auto", help="dtype of activations"
        )
        part.add_argument(
            "--compile",
            nargs="?",
            const="default",
            default=None,
            choices=["off", "default", "reduce-overhead", "max-autotune"],
            help="torch.compile's mode; default: off on the CPU, on on a GPU",
        )
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """Parse a positive integer."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


# --- the parts: each compares, prints a table, and returns what goes into the JSON ---


def pooling(given: argparse.Namespace, machine: machines.Machine) -> dict[str, Any]:
    """Compare pooling and unpooling, forward and backward."""
    channels = max(1, round(64 * given.width))
    found = [
        peer_pooling.compare(
            (batch, *given.image_size, channels), machine, rounds=given.rounds, steps=steps(given, machine)
        )
        for batch in given.batch_size
    ]
    passes = {}
    if is_full_size(given) and given.batch_size[0] == 1 and machine.precision == "float32":
        passes["at most 0.5 of the time of PyTorch's faster layout"] = found[0].over_fastest <= 0.5
    return about_network(given, machine) | print_comparisons(found, machine, passes)


def network(given: argparse.Namespace, machine: machines.Machine) -> dict[str, Any]:
    """Compare the training step and inference."""
    found = []
    for batch in given.batch_size:
        problem = draw_problem(batch, tuple(given.image_size), given.width)
        found += peer_network.compare(problem, machine, rounds=given.rounds, steps=steps(given, machine))
    return about_network(given, machine) | print_comparisons(found, machine, {})


def layers(given: argparse.Namespace, machine: machines.Machine) -> dict[str, Any]:
    """Compare each convolution, and the rest of the step."""
    accounts = []
    for batch in given.batch_size:
        problem = draw_problem(batch, tuple(given.image_size), given.width)
        parts, sums, checks = peer_layers.compare(problem, machine, rounds=given.rounds, steps=steps(given, machine))
        rows = [part.row() for part in parts], [part.row() for part in sums]
        show(f"{machine}, {machine.precision}, batch {batch}", peer_layers.HEADINGS, *rows, left=2)
        both = {"layers": [part.as_json() for part in parts], "sums": [part.as_json() for part in sums]}
        accounts.append({"batch_size": batch, **both, "equal": checks})
    return about_network(given, machine) | {"accounts": accounts, "passes": {}}


def input_(given: argparse.Namespace, machine: machines.Machine) -> dict[str, Any]:
    """Compare the host's input pipelines."""
    size = tuple(given.image_size)
    with peer_input.camvid(given.data, size) as (folder, data):
        found = [
            peer_input.compare(folder, batch, size, given.workers, rounds=given.rounds, steps=given.steps)
            for batch in given.batch_size
        ]
    passes = {}
    if is_full_size(given):
        rate = found[0].times["ours"].summary(found[0].images)["images_per_second"]
        if machines.num_cores() <= 2:
            passes["at least 900 images/s on two cores"] = rate >= 900
        passes["PyTorch at least 4 times slower"] = found[0].over_fastest <= 0.25
    return {"data": data, "workers": given.workers} | print_comparisons(found, machine, passes)


def about_network(given: argparse.Namespace, machine: machines.Machine) -> dict[str, Any]:
    """Return the settings for the JSON file, except those common to all parts."""
    return {
        "width": given.width,
        "precision": machine.precision,
        "compiled": machine.compiled,
        "threads": machines.num_cores(),
        "steps_a_turn": steps(given, machine),
    }


def steps(given: argparse.Namespace, machine: machines.Machine) -> int:
    """Return the number of steps in each side's turn."""
    return given.steps or (STEPS[given.what] if machine.is_cpu else STEPS_ON_GPU)


def is_full_size(given: argparse.Namespace) -> bool:
    """Return whether the published network is compared at full size; thresholds exist only for that case."""
    return tuple(given.image_size) == FULL_SIZE and given.width == 1


# --- output ---


def print_comparisons(
    found: list[side_by_side.Comparison], machine: machines.Machine, passes: dict[str, bool]
) -> dict[str, Any]:
    """Print a table of comparisons; return them with their thresholds and whether they pass."""
    rows = [list(comparison.rows()) for comparison in found]
    show(f"{machine}, {machine.precision}", side_by_side.HEADINGS, *rows, left=2)
    for line, is_passed in passes.items():
        print(f"{'passes' if is_passed else 'FAILS'}: {line}")
    return {"comparisons": [comparison.as_json() for comparison in found], "passes": passes}


def show(title: str, headings: Iterable[str], *sections: Iterable[tuple[str, ...]], left: int) -> None:
    """Print a table: sections of rows, with this many left-aligned columns before right-aligned numbers."""
    table = Table(title=title, title_justify="left", box=rich.box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < left else "right")
    for rows in sections:
        for row in rows:
            table.add_row(*row)
        table.add_section()
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


def command(json: pathlib.Path) -> str:
    """Return the command that reproduces the file, without folders outside this checkout.

    Environment variables that tune either side are included.
    """
    json = json.resolve()
    shown = str(json.relative_to(ROOT)) if json.is_relative_to(ROOT) else json.name
    flags = [shown if pathlib.Path(flag).resolve() == json else flag for flag in sys.argv[1:]]
    tuned = [f"{name}={shlex.quote(value)}" for name, value in sorted(os.environ.items()) if name.startswith(TUNING)]
    return " ".join([*tuned, "python experiments/peers/compare.py", *flags])


def peer_versions() -> dict[str, str]:
    """Return the versions of PyTorch and of the libraries that decode and send images."""
    found = {"torch": torch.__version__, "pillow": importlib.metadata.version("pillow")}
    if torch.version.cuda:
        found |= {"cuda of torch": torch.version.cuda, "cudnn of torch": str(torch.backends.cudnn.version())}
    for name in ("tensorflow-cpu", "tensorflow"):
        try:
            return found | {name: importlib.metadata.version(name)}
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


if __name__ == "__main__":
    run_command(main)
