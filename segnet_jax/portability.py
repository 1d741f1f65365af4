"""Shows that the network is one on all platforms: `python -m segnet_jax.portability --help`."""

import argparse
import dataclasses
import datetime
import difflib
import os
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from segnet_jax.benchmarks.portability.lowering import PLATFORMS
from segnet_jax.benchmarks.portability.side_by_side import as_markdown, print_sides, side_by_side
from segnet_jax.config.fields import Config
from segnet_jax.config.files import CONFIG_FILE, read_run
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.reporting.environment import environment, versions
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError, listed
from segnet_jax.system.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    check_place,
    read_own_json,
    write_result,
)

PROG = "segnet_jax.portability"
OVERVIEW = """usage: python -m segnet_jax.portability lower|measure|report ...

  lower    lower and serialise the steps for cpu, cuda, rocm and tpu, from a machine that has none of these devices
  measure  what a run's network is on this machine: differences, score, speed, memory, in several precisions
  report   set what was measured on several machines side by side

Each has --help. Example:

  python -m segnet_jax.portability lower --width 0.25 --out lowered
  python -m segnet_jax.portability measure --run runs/demo-1 --json here.json
  python -m segnet_jax.portability report here.json there.json --out both.md"""

LOWER = f"""Lowers the steps of training, evaluation and inference for other platforms and serialises them, on a CPU and
without the devices. Writes a file for each and lowered.json, which counts their operations by kind.

Example:  python -m segnet_jax.portability lower --width 0.25 --image-size 120 160 --out lowered

Flags as those of train, and: --out DIR, where to; --platforms NAME..., of {", ".join(PLATFORMS)}; --run RUN takes the
config of that run in place of the defaults, and classes, preprocessing and class weights from its newest checkpoint.
Without a run the programs are there to be counted: of CamVid's {len(CAMVID)} classes, all of weight 1, with the
preprocessing of torchvision's weights and epochs of one step. --devices N lowers for N devices. --precision auto takes
all three, --input auto makes the batch in the step. A file is run by jax.export.deserialize, on such a device, with
arrays by name."""

MEASURE = """Measures a run's network on the device at hand in several precisions: how far each convolution's result is
from a float64 reference, how many pixels change their class, the score, speed, memory, and how it goes on training.
A device tells the most memory that was in use since the start: a later precision has such a number only where it needs
more than those before it. --precision NAME measures one alone.

Example:  python -m segnet_jax.portability measure --run runs/demo-1 --json here.json"""

REPORT = """Sets the JSON files of several machines side by side.

Example:  python -m segnet_jax.portability report cpu.json h100.json --out both.md"""

PRECISIONS = ("float32", "bfloat16", "float16")
LOWERED_FILE = "lowered.json"


def main() -> int:
    """The command."""
    use, *rest = sys.argv[1:] or ["--help"]
    if use in ("-h", "--help"):
        print(OVERVIEW)
        return 0
    if use == "lower":
        return lower(*_lower_options(rest))
    if use == "measure":
        return measure(parse_flags(Measure, rest, prog=f"{PROG} measure", description=MEASURE))
    if use == "report":
        return report(parse_flags(Report, rest, prog=f"{PROG} report", description=REPORT))
    near = difflib.get_close_matches(use, ("lower", "measure", "report"), n=1)
    raise UserError(
        f"portability does lower, measure or report, got {use!r}{f'; nearest: {near[0]}' if near else ''} "
        f"(see python -m {PROG} --help)"
    )


# --- lower ---


def _lower_options(args: Sequence[str]) -> tuple[Config, pathlib.Path, tuple[str, ...], str]:
    """The config, the folder to write to, the platforms, and the run, if any.

    Raises:
      UserError: for a flag that is wrong, or no `--out`.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--out", default="")
    own.add_argument("--platforms", nargs="+", default=PLATFORMS)
    own.add_argument("--run", default="")
    try:
        given, flags = own.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if given.run:
        there = pathlib.Path(given.run) / CONFIG_FILE
        read_run(given.run)  # for its messages
        flags = ["--config", str(there), *flags]
    config = parse_config(flags, prog=f"{PROG} lower", description=LOWER)
    if not given.out:
        raise UserError("lower needs the folder to write to: add --out DIR")
    if unknown := [name for name in given.platforms if name not in PLATFORMS]:
        raise UserError(f"--platforms are {', '.join(PLATFORMS)}; got {' '.join(unknown)}")
    return config, pathlib.Path(given.out), tuple(dict.fromkeys(given.platforms)), given.run


def lower(config: Config, out: pathlib.Path, platforms: Sequence[str], run: str = "") -> int:
    """Lowers all steps, writes them, and prints how many operations each has; returns the exit code.

    Args:
      config: of the training.
      out: the folder to write to.
      platforms: to lower for.
      run: the folder of the run whose programs they are to be, if any.

    Raises:
      UserError: the config does not fit itself, the run has no checkpoint, or the folder holds something already or
        cannot be written to.
    """
    import jax

    from segnet_jax.benchmarks.portability.steps import Given, lower_steps
    from segnet_jax.runs.checks import check_network
    from segnet_jax.system.compilation_cache import keep_no_paths

    check_network(dataclasses.replace(config, init="none"))  # no weights are in the programs
    jax.config.update("jax_platforms", "cpu")  # whatever device is here has no part in it
    keep_no_paths()
    precisions = PRECISIONS if config.precision == "auto" else (config.precision,)
    num_devices = 1 if config.devices == "all" else int(config.devices)
    given = Given.of_run(run, config, num_devices) if run else Given(len(CAMVID))
    _make_folder(out)
    told = []
    for lowered in lower_steps(config, given, precisions=precisions, platforms=platforms, num_devices=num_devices):
        serialised = lowered.exported.serialize()
        atomic_write_bytes(out / lowered.file, serialised)
        told.append(lowered.about(serialised))
        one = told[-1]
        print(f"{one['file']:40} {one['num_operations']:6} operations  {one['bytes'] / 1e3:8.1f} kB", flush=True)
    kept = (
        *("protocol", "image_size", "network", "encoder", "depth", "width", "pooling", "upsampling"),
        *("encoder_addition", "decoder", "dropout", "batch_size_per_device", "grad_accum_steps", "input"),
    )
    about = {"config": {name: getattr(config, name) for name in kept}, "num_devices": num_devices, **given.about}
    atomic_write_json(
        out / LOWERED_FILE,
        {"date": datetime.date.today().isoformat(), "versions": versions(), **about, "programs": told},
    )
    print(f"operations by kind, sums and versions: {out / LOWERED_FILE}")
    return 0


def _make_folder(out: pathlib.Path) -> None:
    """Makes a folder that holds nothing.

    Raises:
      UserError: if it cannot be.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if there := sorted(os.listdir(out)):
            raise UserError(f"{out} holds {listed(there)} already: name another --out, nothing is overwritten")
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; name another by --out") from None


# --- measure ---


@dataclass(frozen=True)
class Measure:
    """What to measure."""

    run: str  # folder of the run whose network it is
    json: str  # file to write what was found to
    data: str = ""  # where its images are, if not where the run was trained
    precision: tuple[Literal["float32", "bfloat16", "float16"], ...] = PRECISIONS  # of activations, one or several
    checkpoint: Literal["result", "best", "newest"] = "result"  # of the run; result: the one that its result is of
    images: int = 0  # validation images to score, evenly spread; 0: all
    compared: int = 2  # of these, images whose every convolution is compared with float64
    training_steps: int = 5  # that are taken from the checkpoint
    batch_size_per_device: int = 4  # images a device takes at once
    devices: str = "1"  # how many devices to train on: a number or "all"; all else is done on one
    steps: int = 10  # of a timed round
    rounds: int = 3  # of which the median is given
    name: str = ""  # what to call this machine in reports; default: its device

    def __post_init__(self):
        """Refuses what cannot be measured.

        Raises:
          UserError: for numbers below their least.
        """
        for name, least in (("images", 0), ("compared", 1), ("training_steps", 1), ("steps", 1), ("rounds", 1)):
            if getattr(self, name) < least:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} must be at least {least}, got {getattr(self, name)}")


def measure(options: Measure) -> int:
    """Measures in each precision, writes the JSON, and prints it as a report of one machine; returns the exit code.

    Raises:
      UserError: for a missing run or data, or a file that cannot be written.
      OutOfMemory: float32 does not fit.
    """
    from segnet_jax.benchmarks.portability.machine import Machine
    from segnet_jax.runs.out_of_memory import explain_out_of_memory

    check_place("json", options.json)
    machine = Machine.of(options)
    found: dict[str, Any] = {
        "portability": 1,
        "name": options.name or str(machine.devices),
        "date": datetime.date.today().isoformat(),
        "device": str(machine.devices),
        "platform": machine.platform,
        "environment": environment(machine.devices.kinds),
        "subject": machine.subject,
        "settings": {
            name: value
            for name, value in dataclasses.asdict(options).items()
            if name not in ("run", "json", "data", "name", "precision")
        },
        "precisions": {},
    }
    with explain_out_of_memory(machine.config, machine.devices, flags=Measure):
        for precision in dict.fromkeys(options.precision):
            found["precisions"][precision] = machine.measure(precision)
            write_result(options.json, found)  # after each, so that a long one that breaks off has left the others
    print_sides(side_by_side([found]))
    print(f"wrote {options.json}")
    return 0


# --- report ---


@dataclass(frozen=True)
class Report:
    """What to set side by side."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional]  # that measure wrote, one of each machine
    out: str = ""  # Markdown file to write the tables to
    json: str = ""  # file to write them to as data
    overwrite: bool = False  # replace what --out and --json name


def report(options: Report) -> int:
    """Sets the files side by side; returns the exit code.

    Raises:
      UserError: for a file that cannot be read or was not written by measure, or one that is there already.
    """
    sides = side_by_side([read_measured(pathlib.Path(file)) for file in options.files])
    for path in filter(None, (options.out, options.json)):
        if os.path.lexists(path) and not options.overwrite:
            raise UserError(f"{path} is there already: name another file, or add --overwrite")
    print_sides(sides)
    try:
        if options.out:
            atomic_write_text(options.out, as_markdown(sides))
        if options.json:
            write_result(options.json, dataclasses.asdict(sides))
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    return 0


def read_measured(path: pathlib.Path) -> dict[str, Any]:
    """What `measure` wrote of a machine.

    Raises:
      UserError: for a file that cannot be read or is none of these.
    """
    try:
        found = read_own_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(found, dict) or found.get("portability") != 1 or not isinstance(found.get("precisions"), dict):
        raise UserError(f"{path} was not written by portability measure")
    return found


if __name__ == "__main__":
    run_command(main)
