"""Run the benchmark: measure the chosen parts, print a table and write JSON."""

import dataclasses
import datetime
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import jax
import tyro

from segnet_jax.benchmarks import throughput
from segnet_jax.benchmarks.table import print_measurements
from segnet_jax.config.fields import Config
from segnet_jax.config.flag_specs import DataFolder, File, ImageSize, NumDevices, Section
from segnet_jax.reporting.environment import environment
from segnet_jax.runs.out_of_memory import explain_out_of_memory
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import check_place, read_own_json, write_result
from segnet_jax.training.choose_devices import start_devices

Part = Literal["train", "epoch", "infer", "input", "pooling", "scaling", "all"]


@dataclass(frozen=True)
class BenchmarkOptions:
    """Flags of `benchmark`."""

    SECTIONS: ClassVar[tuple[Section, ...]] = (
        Section("network and input", "batch_size_per_device", ("batch_size_per_device", "image_size", "precision")),
        Section("devices", "devices", ("devices",)),
        Section("pipeline", "input", ("input", "data")),
        Section("measurement", "strong", ("steps", "rounds", "json", "compare")),
    )

    what: Annotated[Part, tyro.conf.Positional, tyro.conf.arg(metavar="PART")] = "train"  # part to measure
    batch_size_per_device: int = 4  # images per device and forward pass
    image_size: ImageSize = (360, 480)  # height and width
    width: float = 1.0  # multiplier of the channels of every hidden layer
    depth: int = 5  # number of encoder stages, 1 to 5
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # dtype of activations
    devices: NumDevices = "all"  # number of devices, or "all"
    fake_devices: int = 0  # split the CPU into this many devices, for testing
    sync_batch_norm: bool = True  # compute batch statistics over all devices
    half_gradients: bool = False  # all-reduce gradients in 16 bits
    deterministic: bool = False  # make GPU runs bit-reproducible on the same machine; slower
    input: Literal["auto", "host", "device"] = "auto"  # train: input pipeline on the host, or dataset in device memory
    steps_per_dispatch: int = 1  # train: optimizer steps per dispatch, with --input device
    data: DataFolder = "synthetic"  # epoch, input: a dataset folder, "camvid" or "synthetic"
    strong: bool = False  # scaling: also measure strong scaling, with a constant global batch size
    steps: int = 20  # number of steps per round, dispatched without waiting
    rounds: int = 5  # number of rounds, whose median is reported
    json: File = ""  # JSON file to write the measurements to, updated after each part
    compare: File = ""  # earlier --json file to compare with

    def __post_init__(self):
        """Check `steps` and `rounds`.

        Raises:
          UserError: If `steps` or `rounds` is less than 1.
        """
        if self.steps < 1 or self.rounds < 1:
            raise UserError(f"--steps and --rounds must be at least 1, got {self.steps} and {self.rounds}")

    @property
    def config(self) -> Config:
        """Config of a training run with these options."""
        own = {"json", "compare", "what", "rounds", "steps", "strong"}
        shared = {name: value for name, value in vars(self).items() if name not in own}
        return Config(init="none", class_weights="none", **shared)


def benchmark(options: BenchmarkOptions) -> int:
    """Measure the chosen parts, print a table and, if requested, write the JSON; return the exit code.

    After an error, the measurements made before it are still printed and written.

    Raises:
      UserError: If there are too few devices or images, or a file cannot be written or compared with.
      OutOfMemory: If a batch does not fit into memory.
    """
    check_place("json", options.json)
    earlier = read_earlier(options.compare) if options.compare else None
    # Compilation is timed. JAX reads this option when it compiles the first program.
    jax.config.update("jax_enable_compilation_cache", False)
    devices, precision = start_devices(options.config)
    images_per_step = devices.total * options.batch_size_per_device
    config = dataclasses.replace(options.config, scenes=scenes_for(images_per_step))
    setup = throughput.BenchmarkSetup(config, devices, precision, options.steps, options.rounds)
    chosen = get_args(Part)[:-1] if options.what == "all" else (options.what,)
    found = {
        "command": " ".join(["python -m segnet_jax.benchmark", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        **{name: value for name, value in vars(options).items() if name not in ("json", "compare", "what")},
        "precision": precision,
        "device": str(devices),
        "environment": environment(devices.kinds),
    }
    try:
        with explain_out_of_memory(config, devices, flags=BenchmarkOptions):
            for _ in _measure(chosen, setup, options.strong, found):
                if devices.is_writer and options.json:
                    write_result(options.json, found)
    finally:
        done = {name: found[name] for name in chosen if found.get(name)}
        if devices.is_writer and done:
            print_measurements(done, earlier, title=f"{devices}, {precision}")
    return 0


def _measure(
    chosen: Sequence[str], setup: throughput.BenchmarkSetup, strong: bool, found: dict[str, Any]
) -> Iterator[None]:
    """Add the measurements to `found`; yield after each part, and after each row of scaling."""
    parts = {"train": throughput.train, "epoch": throughput.epoch, "infer": throughput.infer}
    parts |= {"input": throughput.input_, "pooling": throughput.pooling}
    for name in chosen:
        if name == "scaling":
            for row in throughput.scaling(setup, strong):
                found.setdefault("left_out" if "left_out" in row else "scaling", []).append(row)
                yield
        else:
            found[name] = parts[name](setup)
            yield


def scenes_for(images_per_step: int) -> tuple[int, int]:
    """Return the numbers of training and validation scenes: enough for four steps, within limits on rendering time."""
    train = max(64, images_per_step, min(4 * images_per_step, 512))
    return train, train // 4


def read_earlier(path: str) -> dict[str, Any]:
    """Read the measurements of an earlier `--json`.

    Raises:
      UserError: If the file cannot be read, or was not written by `benchmark`.
    """
    try:
        found = read_own_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot compare with {path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(found, dict) or "command" not in found:
        raise UserError(f"cannot compare with {path}: it was not written by benchmark --json")
    return found
