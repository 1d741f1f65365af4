"""`portability compile`: compile the steps of a config or run for a chip, and write an analysis as JSON."""

import dataclasses
import datetime
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segnet_jax.benchmarks.portability.compiled.chips import Target, open_target, read_chip
from segnet_jax.benchmarks.portability.compiled.compiling import compile_program, describe
from segnet_jax.benchmarks.portability.compiled.flags import COMPILE_FLAGS
from segnet_jax.benchmarks.portability.flags import check_choices, own_flags, parse_with_config
from segnet_jax.benchmarks.portability.steps import STEPS, StepConstants, build_program
from segnet_jax.config.fields import Config
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.reporting.environment import commit, versions
from segnet_jax.runs.config_checks import check_network
from segnet_jax.system.compilation_cache import keep_no_paths
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_text, check_place, plain, read_own_json, write_result

DESCRIPTION = """Compile the steps of training, evaluation and inference for a GPU or TPU that is not present, and
analyze the optimized programs: kernels, bytes, convolutions, collectives, memory, and throughput to expect.

Also accepts the flags of train: --devices N compiles for N devices in one host, and --precision auto is the precision
that training chooses on the chip. Needs the compiler: pip install "segnet_jax[aot]". Compiling a step takes about a
minute of CPU time, and several times as long for a TPU.

Example:
  python -m segnet_jax.portability compile --target h200 --batch-size-per-device 16 --json h200.json"""

CONFIG_FIELDS = (
    *("protocol", "image_size", "network", "encoder", "depth", "width", "pooling", "upsampling", "encoder_addition"),
    *("decoder", "dropout", "batch_size_per_device", "grad_accum_steps", "input", "sync_batch_norm", "half_gradients"),
    "steps_per_dispatch",
)


@dataclass(frozen=True)
class Options:
    """The flags of `portability compile` in addition to those of the config.

    Attributes:
      target: name of the chip.
      json: file to write.
      programs: steps to compile, from STEPS.
      hlo: folder for the text of the programs, or "".
      run: run folder, or "".
    """

    target: str
    json: str
    programs: tuple[str, ...] = STEPS
    hlo: str = ""
    run: str = ""


def parse(args: Sequence[str], prog: str) -> tuple[Config, Options]:
    """Parse the flags.

    Raises:
      UserError: If a flag is invalid or missing.
    """
    own = own_flags()
    for flag in ("--target", "--json", "--hlo"):
        own.add_argument(flag, default="")
    own.add_argument("--programs", nargs="+", default=STEPS)
    given, config = parse_with_config(own, args, prog=prog, description=DESCRIPTION, flags=COMPILE_FLAGS)
    if not given.target or not given.json:
        raise UserError("compile needs a chip and an output file: add --target NAME --json FILE")
    check_choices("programs", given.programs, STEPS)
    check_place("json", given.json)
    options = vars(given) | {"programs": tuple(dict.fromkeys(given.programs))}
    return config, Options(**options)


def compile_steps(config: Config, options: Options) -> int:
    """Compile the steps, write the JSON and print a line for each; return the exit code.

    Raises:
      UserError: If the config is inconsistent, the compiler is missing, or a file cannot be written.
    """
    check_network(dataclasses.replace(config, init="none"))  # the weights are arguments of the programs
    chip = read_chip(options.target)
    num_devices = 1 if config.devices == "all" else int(config.devices)
    target = open_target(chip, num_devices)
    keep_no_paths()
    precision = chip.precision if config.precision == "auto" else config.precision
    constants = StepConstants(len(CAMVID))
    if options.run:
        constants = StepConstants.from_run(options.run, config, num_devices)
    result = {
        "compiled": 1,
        "date": datetime.date.today().isoformat(),
        "versions": versions() | target.versions,
        "commit": commit(),
        "target": {"name": chip.name, "device_kind": chip.device_kind, "sources": chip.sources},
        "precision": precision,
        "num_devices": num_devices,
        "config": {name: getattr(config, name) for name in CONFIG_FIELDS},
        "experiment": config.experiment(),
        "programs": {},
    }
    result["programs"] = _earlier_programs(options.json, result)
    for step in options.programs:
        result["programs"][step] = _compile(step, config, constants, precision, target, options.hlo)
        _write(options.json, result)  # after each step, so that an interruption loses only one
    print(f"wrote {options.json}")
    return 0


def _compile(
    step: str, config: Config, constants: StepConstants, precision: str, target: Target, hlo: str
) -> dict[str, Any]:
    per_call = max(1, config.steps_per_dispatch) if step == "train" else 1
    program = build_program(step, config, constants, precision, target.chip.platform, target.mesh.size, per_call)
    compiled, seconds = compile_program(program, target, config.deterministic)
    if hlo:
        atomic_write_text(pathlib.Path(hlo) / f"{step}-{target.chip.name}-{target.mesh.size}.hlo", compiled.as_text())
    num_images = config.batch_size_per_device * per_call * (config.grad_accum_steps if step == "train" else 1)
    described = describe(compiled, target, precision, num_images)
    print(
        f"{step:9} {described['num_kernels']:5} kernels  {described['mb_per_image']:8.1f} MB per image  "
        f"{described['memory']['temporary'] / 1e6:8.1f} MB temporary  compiled in {seconds:.1f} s",
        flush=True,
    )
    return {"compile_seconds": seconds, **described}


def _earlier_programs(path: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return the programs that an earlier call wrote for the same target and settings, or {}."""
    try:
        earlier = read_own_json(path)
        same = ("compiled", "versions", "commit", "target", "precision", "num_devices", "config", "experiment")
        is_same = all(plain(result[name]) == earlier[name] for name in same)
        return dict(earlier["programs"]) if is_same else {}
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return {}


def _write(path: str, result: dict[str, Any]) -> None:
    try:
        write_result(path, result)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
