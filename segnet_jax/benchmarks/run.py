"""A run of the benchmark: what is measured with which options, printed, and written as JSON."""

import dataclasses
import datetime
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import jax
import tyro

from segnet_jax.benchmarks import throughput
from segnet_jax.benchmarks.table import print_measurements
from segnet_jax.config.fields import Config
from segnet_jax.reporting.environment import environment
from segnet_jax.runs.out_of_memory import explain_out_of_memory
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import check_place, read_own_json, write_result
from segnet_jax.training.devices import start_devices

What = Literal["train", "epoch", "infer", "input", "pooling", "scaling", "all"]


@dataclass(frozen=True)
class Options:
    """What to measure, and how."""

    what: Annotated[What, tyro.conf.Positional] = "train"
    batch_size_per_device: int = 4  # images a device takes at once
    image_size: tuple[int, int] = (360, 480)  # height and width
    width: float = 1.0  # factor on every hidden layer's channels
    depth: int = 5  # encoder stages, 1 to 5
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of activations
    devices: str = "all"  # how many devices: a number or "all"
    fake_devices: int = 0  # pretend that the CPU is so many devices
    sync_batch_norm: bool = True  # BatchNorm's statistics over all devices
    half_gradients: bool = False  # sum gradients over devices in 16 bits
    deterministic: bool = False  # on GPUs, the same bits at every start
    input: Literal["auto", "host", "device"] = "auto"  # train: where batches are made
    steps_per_dispatch: int = 1  # train: steps a dispatch, with input device
    data: str = "synthetic"  # epoch, input: images; a folder, "camvid" or "synthetic"
    strong: bool = False  # scaling: also with as many images over all devices, divided among more and more
    steps: int = 20  # of a round, chained without a wait
    rounds: int = 5  # of which the median is given
    json: str = ""  # file to write the measurements to, after each part
    compare: str = ""  # file of an earlier --json to set beside

    def __post_init__(self):
        """Refuses what cannot be measured.

        Raises:
          UserError: for fewer than one step or round.
        """
        if self.steps < 1 or self.rounds < 1:
            raise UserError(f"--steps and --rounds must be at least 1, got {self.steps} and {self.rounds}")

    @property
    def config(self) -> Config:
        """The training that these options would be."""
        own = {"json", "compare", "what", "rounds", "steps", "strong"}
        shared = {name: value for name, value in vars(self).items() if name not in own}
        return Config(init="none", class_weights="none", **shared)


def benchmark(options: Options) -> int:
    """Measures, prints a table, and writes the JSON if asked; returns the exit code.

    What was measured before it ends early is printed and written all the same.

    Raises:
      UserError: for devices that are not there, too few images, or a file that cannot be written or, to compare with,
        is none of ours.
      OutOfMemory: it does not fit.
    """
    check_place("json", options.json)
    earlier = read_earlier(options.compare) if options.compare else None
    # Compiling is timed. Before the first program, for JAX looks at this once.
    jax.config.update("jax_enable_compilation_cache", False)
    devices, precision = start_devices(options.config)
    images_per_step = devices.total * options.batch_size_per_device
    config = dataclasses.replace(options.config, scenes=scenes_for(images_per_step))
    measured = throughput.Measured(config, devices, precision, options.steps, options.rounds)
    chosen = get_args(What)[:-1] if options.what == "all" else (options.what,)
    found = {
        "command": " ".join(["python -m segnet_jax.benchmark", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        **{name: value for name, value in vars(options).items() if name not in ("json", "compare", "what")},
        "precision": precision,
        "device": str(devices),
        "environment": environment(devices.kinds),
    }
    try:
        with explain_out_of_memory(config, devices, flags=Options):
            for _ in _measure(chosen, measured, options.strong, found):
                if devices.is_writer and options.json:
                    write_result(options.json, found)
    finally:
        done = {name: found[name] for name in chosen if found.get(name)}
        if devices.is_writer and done:
            print_measurements(done, earlier, title=f"{devices}, {precision}")
    return 0


def _measure(
    chosen: Sequence[str], measured: throughput.Measured, strong: bool, found: dict[str, Any]
) -> Iterator[None]:
    """Puts what it measures into `found`, and comes back after each part and each row of scaling."""
    parts = {"train": throughput.train, "epoch": throughput.epoch, "infer": throughput.infer}
    parts |= {"input": throughput.input_, "pooling": throughput.pooling}
    for name in chosen:
        if name == "scaling":
            for row in throughput.scaling(measured, strong):
                found.setdefault("left_out" if "left_out" in row else "scaling", []).append(row)
                yield
        else:
            found[name] = parts[name](measured)
            yield


def scenes_for(images_per_step: int) -> tuple[int, int]:
    """Training and validation scenes of an epoch: four steps' worth, if rendering them takes a minute at most."""
    train = max(64, images_per_step, min(4 * images_per_step, 512))
    return train, train // 4


def read_earlier(path: str) -> dict[str, Any]:
    """The measurements of an earlier `--json`.

    Raises:
      UserError: for a file that cannot be read or is none of ours.
    """
    try:
        found = read_own_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot compare with {path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(found, dict) or "command" not in found:
        raise UserError(f"cannot compare with {path}: it was not written by benchmark --json")
    return found
