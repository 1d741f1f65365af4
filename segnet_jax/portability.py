"""Lower the steps for other platforms and compare machines: `python -m segnet_jax.portability --help`."""

import dataclasses
import datetime
import os
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from segnet_jax.benchmarks.portability.compiled.flags import COMPILE_FLAGS
from segnet_jax.benchmarks.portability.compiled.report import compare_programs
from segnet_jax.benchmarks.portability.flags import LOWER_FLAGS, check_choices, own_flags, parse_with_config
from segnet_jax.benchmarks.portability.lowering import PLATFORMS
from segnet_jax.benchmarks.portability.results import read_written
from segnet_jax.benchmarks.portability.side_by_side import as_markdown, compare_machines, is_page, print_comparison
from segnet_jax.config.fields import Config
from segnet_jax.config.flag_specs import DataFolder, File, Files, Name, NumDevices, RunFolder
from segnet_jax.config.flags import parse_flags
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.reporting.environment import environment, versions
from segnet_jax.system.command import run_command
from segnet_jax.system.command_name import as_called
from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError, listed
from segnet_jax.system.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    check_distinct,
    check_place,
    write_result,
)
from segnet_jax.system.flag_names import option_of

PROG = "segnet_jax.portability"
OVERVIEW = """usage: python -m segnet_jax.portability lower|compile|measure|report ...

  lower    lower and serialize the steps for cpu, cuda, rocm and tpu, without these devices
  compile  compile the steps for a GPU or TPU that is not present: kernels, bytes, collectives, memory
  measure  measure a run's network on this machine: numerical differences, scores, speed and memory by precision
  report   compare the measurements of several machines, or the compiled programs of several chips

Each has --help. Examples:

  python -m segnet_jax.portability lower --width 0.25 --out lowered
  python -m segnet_jax.portability compile --target h200 --batch-size-per-device 16 --json h200.json
  python -m segnet_jax.portability measure --run runs/demo-1 --json here.json
  python -m segnet_jax.portability report here.json there.json --out both.md"""

LOWER = f"""Lower the steps of training, evaluation and inference for other platforms and serialize them, on a CPU and
without the target devices. Writes one file per step, and lowered.json with their operation counts.

Takes the flags of train, and those of the section "lower". Without --run the programs are only for counting
operations: they have CamVid's {len(CAMVID)} classes with equal weights, torchvision's preprocessing and one step per
epoch. --devices N lowers for N devices. --precision auto lowers in all three precisions. With --input auto the step
takes its batch from a device-resident dataset. To run a file, load it on a target device with jax.export.deserialize
and pass the arrays by name.

Example:
  python -m segnet_jax.portability lower --width 0.25 --image-size 120 160 --out lowered"""

MEASURE = """Measure a run's network on this machine in several precisions: the difference of each convolution's output
from a float64 reference, the pixels whose class changes, scores, throughput, memory, and a few more training steps.
Devices report only their peak memory since the process started, so a later precision has a figure only if it uses more
than the earlier ones; to measure one precision alone, use --precision NAME.

Example:
  python -m segnet_jax.portability measure --run runs/demo-1 --json here.json"""

REPORT = """Compare the JSON files that `measure` wrote on several machines, or that `compile` wrote for several chips.

Examples:
  python -m segnet_jax.portability report cpu.json h100.json --out both.md
  python -m segnet_jax.portability report h200.json v100.json --against old/h200.json"""

PRECISIONS = ("float32", "bfloat16", "float16")
LOWERED_FILE = "lowered.json"


def main() -> int:
    """Run the command."""
    use, *rest = sys.argv[1:] or ["--help"]
    if use in ("-h", "--help", "--help-all"):
        print(as_called(OVERVIEW))
        return 0
    if use == "lower":
        return lower(*_lower_options(rest))
    if use == "compile":
        from segnet_jax.benchmarks.portability.compiled import command

        return command.compile_steps(*command.parse(rest, f"{PROG} compile"))
    if use == "measure":
        return measure(parse_flags(MeasureOptions, rest, prog=f"{PROG} measure", description=MEASURE))
    if use == "report":
        return report(parse_flags(CompareOptions, rest, prog=f"{PROG} report", description=REPORT))
    raise UserError(
        f"the subcommand must be lower, compile, measure or report, got {use!r}"
        f"{nearest_hint(use, SUBCOMMANDS)} (see {as_called(f'python -m {PROG}')} --help)"
    )


# --- lower ---


def _lower_options(args: Sequence[str]) -> tuple[Config, pathlib.Path, tuple[str, ...], str]:
    """Parse the flags of `lower` into the config, the output folder, the platforms and the run ("" for none).

    Raises:
      UserError: If a flag is wrong, or `--out` is missing.
    """
    own = own_flags()
    own.add_argument("--out", default="")
    own.add_argument("--platforms", nargs="+", default=PLATFORMS)
    given, config = parse_with_config(own, args, prog=f"{PROG} lower", description=LOWER, flags=LOWER_FLAGS)
    if not given.out:
        raise UserError("lower needs an output folder: add --out DIR")
    check_choices("platforms", given.platforms, PLATFORMS)
    return config, pathlib.Path(given.out), tuple(dict.fromkeys(given.platforms)), given.run


def lower(config: Config, out: pathlib.Path, platforms: Sequence[str], run: str = "") -> int:
    """Lower and write all steps, and print their operation counts; return the exit code.

    Args:
      config: training config.
      out: output folder; must be empty or not exist.
      platforms: platforms to lower for.
      run: run folder to read classes, preprocessing and class weights from; "" for none.

    Raises:
      UserError: If the config is inconsistent, the run has no checkpoint, or the folder is not empty or not writable.
    """
    import jax

    from segnet_jax.benchmarks.portability.steps import StepConstants, lower_steps
    from segnet_jax.runs.config_checks import check_network
    from segnet_jax.system.compilation_cache import keep_no_paths

    check_network(dataclasses.replace(config, init="none"))  # the programs take the weights as arguments
    jax.config.update("jax_platforms", "cpu")  # lowering needs no other device
    keep_no_paths()
    precisions = PRECISIONS if config.precision == "auto" else (config.precision,)
    num_devices = 1 if config.devices == "all" else int(config.devices)
    constants = StepConstants.from_run(run, config, num_devices) if run else StepConstants(len(CAMVID))
    _make_folder(out)
    programs = []
    for lowered in lower_steps(config, constants, precisions=precisions, platforms=platforms, num_devices=num_devices):
        serialized = lowered.exported.serialize()
        atomic_write_bytes(out / lowered.file, serialized)
        about = lowered.about(serialized)
        programs.append(about)
        print(f"{about['file']:40} {about['num_operations']:6} operations  {about['bytes'] / 1e3:8.1f} kB", flush=True)
    fields = (
        *("protocol", "image_size", "network", "encoder", "depth", "width", "pooling", "upsampling"),
        *("encoder_addition", "decoder", "dropout", "batch_size_per_device", "grad_accum_steps", "input"),
    )
    settings = {"config": {name: getattr(config, name) for name in fields}, "num_devices": num_devices}
    atomic_write_json(
        out / LOWERED_FILE,
        {
            "date": datetime.date.today().isoformat(),
            "versions": versions(),
            **settings,
            **constants.as_json(),
            "programs": programs,
        },
    )
    print(f"operation counts, checksums and versions: {out / LOWERED_FILE}")
    return 0


def _make_folder(out: pathlib.Path) -> None:
    """Create a folder, or accept an empty one.

    Raises:
      UserError: If the folder is not empty or cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if existing := sorted(os.listdir(out)):
            raise UserError(f"{out} already contains {listed(existing)}, which is not overwritten; use another --out")
    except OSError as error:
        raise UserError(f"cannot create the folder {out}: {error.strerror}; choose another with --out") from None


# --- measure ---


@dataclass(frozen=True)
class MeasureOptions:
    """Flags of `portability measure`."""

    run: RunFolder  # run folder
    json: File  # JSON file to write the measurements to
    data: DataFolder = ""  # dataset folder; default: the one that the run was trained on
    precision: tuple[Literal["float32", "bfloat16", "float16"], ...] = PRECISIONS  # dtypes of activations to measure
    checkpoint: Literal["result", "best", "newest"] = "result"  # checkpoint; result: the one that result.json scores
    images: int = 0  # number of validation images to score, evenly spaced; 0: all
    compared: int = 2  # number of images on which every convolution is compared with float64
    training_steps: int = 5  # number of training steps to take from the checkpoint
    batch_size_per_device: int = 4  # images per device and forward pass
    devices: NumDevices = "1"  # number of devices to train on, or "all"; everything else runs on one
    steps: int = 10  # number of steps per timed round
    rounds: int = 3  # number of timed rounds, whose median is reported
    name: Name = ""  # name of this machine in reports; default: its device

    def __post_init__(self):
        """Check the numbers.

        Raises:
          UserError: If a number is below its minimum.
        """
        for name, minimum in (("images", 0), ("compared", 1), ("training_steps", 1), ("steps", 1), ("rounds", 1)):
            if getattr(self, name) < minimum:
                flag = option_of(name)
                raise UserError(f"{flag} must be at least {minimum}, got {getattr(self, name)}")


def measure(options: MeasureOptions) -> int:
    """Measure each precision, write the JSON and print the table of this machine; return the exit code.

    Raises:
      UserError: If the run or dataset is missing, or the file cannot be written.
      OutOfMemory: If float32 does not fit into memory.
    """
    from segnet_jax.benchmarks.portability.measure import Machine
    from segnet_jax.runs.out_of_memory import explain_out_of_memory

    check_place("json", options.json)
    machine = Machine.open(options)
    measurements: dict[str, Any] = {
        "portability": 1,
        "name": options.name or str(machine.devices),
        "date": datetime.date.today().isoformat(),
        "device": str(machine.devices),
        "platform": machine.platform,
        "environment": environment(machine.devices.kinds),
        "subject": machine.describe_network(),
        "settings": {
            name: value
            for name, value in dataclasses.asdict(options).items()
            if name not in ("run", "json", "data", "name", "precision")
        },
        "precisions": {},
    }
    with explain_out_of_memory(machine.config, machine.devices, flags=MeasureOptions):
        for precision in dict.fromkeys(options.precision):
            measurements["precisions"][precision] = machine.measure(precision)
            write_result(options.json, measurements)  # after each precision, so an interruption loses none
    print_comparison(compare_machines([measurements]))
    print(f"wrote {options.json}")
    return 0


# --- report ---


@dataclass(frozen=True)
class CompareOptions:
    """Flags of `portability report`."""

    files: Annotated[Files, tyro.conf.Positional]  # JSON files written by measure, one per machine, or by compile
    against: Files = ()  # earlier JSON files written by compile, to list the changes
    out: File = ""  # Markdown file to write the tables to
    json: File = ""  # JSON file to write the tables to
    overwrite: bool = False  # replace files that earlier commands wrote with --out and --json


def report(options: CompareOptions) -> int:
    """Compare the files of several machines, print the table and write the requested files; return the exit code.

    Raises:
      UserError: If a file cannot be read or was not written by measure or compile, or if an output file exists and must
        not be replaced, or was not written by this command.
    """
    files, earlier = ([read_written(pathlib.Path(file)) for file in each] for each in (options.files, options.against))
    kinds = {"compiled" in one for one in (*files, *earlier)}
    if len(kinds) > 1 or (earlier and kinds == {False}):
        raise UserError("report compares files of measure or of compile, not both; --against takes those of compile")
    comparison = compare_programs(files, earlier) if kinds == {True} else compare_machines(files)
    check_distinct({"--out": options.out, "--json": options.json}, (*options.files, *options.against))
    for path in filter(None, (options.out, options.json)):
        if os.path.lexists(path) and not options.overwrite:
            raise UserError(f"{path} already exists; choose another file, or add --overwrite")
    check_place("out", options.out, is_ours=is_page)
    check_place("json", options.json)
    print_comparison(comparison)
    try:
        if options.out:
            atomic_write_text(options.out, as_markdown(comparison))
        if options.json:
            write_result(options.json, dataclasses.asdict(comparison))
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    return 0


SUBCOMMANDS = {
    "lower": (Config, LOWER_FLAGS),
    "compile": (Config, COMPILE_FLAGS),
    "measure": (MeasureOptions, ()),
    "report": (CompareOptions, ()),
}
"""Subcommand -> (dataclass of its flags, additional flags)."""


if __name__ == "__main__":
    run_command(main)
