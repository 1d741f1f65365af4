"""What a config comes to on this machine with this data, checked before anything is read or compiled."""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from segnet_jax.config import Config
from segnet_jax.config_files import protocol_batch, recipe_differences
from segnet_jax.datasets.choose import open_data_set
from segnet_jax.datasets.legend import Legend, StoredLabels
from segnet_jax.datasets.reading import Reading
from segnet_jax.datasets.records import DataSet, Split
from segnet_jax.errors import UserError, UserErrors, listed
from segnet_jax.nn.segnet_basic import STAGES
from segnet_jax.pipeline.plan import Plan
from segnet_jax.programs import keep_compiled_programs
from segnet_jax.training.parallel import Devices, choose_devices, gpu_options, with_options
from segnet_jax.training.precision import choose_precision
from segnet_jax.training.startup import PLUGINS, check_device

NVIDIA_DRIVER = "/proc/driver/nvidia/version"
"""Is there where Linux has a driver for an NVIDIA GPU, whether JAX can use it or not."""


@dataclass(frozen=True)
class Setting:
    """What a config comes to on this machine with this data.

    Attributes:
      devices: to train on.
      precision: of activations, never "auto".
      data_set: opened, not read.
      scored: the split that is scored during training.
      plan: of the whole training.
      total_steps: of the whole training.
      steps_per_call: that the devices take at one bidding.
    """

    devices: Devices
    precision: str
    data_set: DataSet
    scored: str
    plan: Plan
    total_steps: int
    steps_per_call: int

    @property
    def train_split(self) -> Split:
        """What is trained on."""
        return self.data_set.splits["train"]

    @property
    def scored_split(self) -> Split:
        """What is scored."""
        return self.data_set.splits[self.scored]

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from, as JSON."""
        return {
            "classes": list(self.data_set.classes.names),
            "data": {name: split.fingerprint for name, split in self.data_set.splits.items()},
            "global_batch_size": self.plan.global_batch_size,
            "precision": self.precision,
        }

    @property
    def about(self) -> dict[str, Any]:
        """What a report tells of the data and the batch, as JSON."""
        return {
            "data_set": self.data_set.name,
            "split": self.scored,
            "num_images": {name: len(split) for name, split in self.data_set.splits.items()},
            "fingerprints": self.identity["data"],
            "global_batch_size": self.plan.global_batch_size,
        }


def settle(config: Config, say: Callable[[str], None]) -> Setting:
    """Finds devices and data, and says what it found.

    Raises:
      UserError: if the config does not fit them, or itself.
    """
    check_network(config)
    devices, precision = start_devices(config, say)
    say(f"devices  {devices}, {precision}")
    data_set = open_data(config)
    if data_set.doubts:
        raise UserErrors(config.data, data_set.doubts)
    for note in data_set.notes:
        say(note)
    tell_of_sizes(config, data_set, say)
    num_records = ", ".join(f"{len(split)} {name}" for name, split in data_set.splits.items())
    fingerprint = data_set.splits["train"].fingerprint[:12]
    say(f"data     {data_set.name}: {num_records}; {len(data_set.classes)} classes; {fingerprint}")
    plan = _plan(config, devices, len(data_set.splits["train"]))
    say(f"plan     {config.epochs} epochs of {plan.steps_per_epoch} steps of {plan.global_batch_size} images")
    if told := another_batch(config, devices, plan):
        say(f"warning: {told}")
    total_steps = config.epochs * plan.steps_per_epoch
    scored, per_call = validation_split(data_set), steps_per_call(config, devices)
    return Setting(devices, precision, data_set, scored, plan, total_steps, per_call)


def _plan(config: Config, devices: Devices, num_images: int) -> Plan:
    """The plan of the whole training; where there are too few images for it, the fix is the batch that would do."""
    at_once = devices.total * config.accumulate
    try:
        drawn = (config.flip, config.shift, config.scale, config.color)
        return Plan(num_images, at_once * config.batch_size_per_device, config.seed, *drawn)
    except UserError as error:
        most = num_images // at_once
        fix = f"--batch-size-per-device {most}" if most else "--devices 1 --accumulate 1 --batch-size-per-device 1"
        raise UserError(error.faults[0].what, kind=error.kind, fix=fix) from None


def another_batch(config: Config, devices: Devices, plan: Plan) -> str:
    """What to say where steps are of another batch than the named protocol's: it is another recipe; else nothing."""
    name, protocol, _ = recipe_differences(config)
    batch = protocol_batch(protocol, devices.total)
    if name == "custom" or batch == plan.global_batch_size or batch > plan.num_samples:
        return ""
    theirs, ours = (
        each.epochs * (plan.num_samples // size) for each, size in ((protocol, batch), (config, plan.global_batch_size))
    )
    rate = "the same learning rate"
    if config.learning_rate != protocol.learning_rate:
        rate = f"a learning rate of {config.learning_rate:g}, not {protocol.learning_rate:g}"
    told = f"{name} takes {theirs:,} steps of {batch} images; this takes {ours:,} of {plan.global_batch_size} at {rate}"
    count = math.gcd(batch, devices.total)
    if count == devices.total or jax.process_count() == 1:  # several processes take all their devices
        at_once = " --accumulate 1" * (config.accumulate > 1)
        told += f"; --devices {count} --batch-size-per-device {batch // count}{at_once} keeps to it"
    return told


def steps_per_call(config: Config, devices: Devices) -> int:
    """Steps that the devices take at one bidding; one on the CPU, where more would only make the program larger."""
    return 1 if devices.local[0].platform == "cpu" else config.steps_per_call


def start_devices(config: Config, say: Callable[[str], None] = print) -> tuple[Devices, str]:
    """Chooses devices and precision and tries them; to be called before anything else asks JAX for a device.

    Raises:
      UserError: if there are fewer devices than asked for, or they cannot train.
    """
    if config.fake_devices:
        flag = f"--xla_force_host_platform_device_count={config.fake_devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"  # read when the first device is asked for
        jax.config.update("jax_platforms", "cpu")
    if jax.distributed.is_initialized() and _expects_cuda():  # XLA reads them with the first device; see AheadOfTime
        options = gpu_options(are_several=True, deterministic=config.deterministic)
        os.environ["XLA_FLAGS"] = with_options(os.environ.get("XLA_FLAGS", ""), options)
    keep_compiled_programs()
    devices = choose_devices(config.devices, config.deterministic)
    if devices.local[0].platform == "cpu" and not config.fake_devices and os.path.exists(NVIDIA_DRIVER):
        say('warning: an NVIDIA GPU is present but jax sees only the CPU: pip install -U "jax[cuda12]"')
    precision = choose_precision(config.precision, devices.local[0])
    check_device(devices.local[0], precision)
    return devices, precision


def _expects_cuda() -> bool:
    """Whether JAX will choose NVIDIA GPUs, as far as can be told before it is asked for a device.

    Of a CPU, a TPU or another maker's GPU XLA never sees a flag that is for these, for it ends the process at an
    unknown one.
    """
    wanted = (jax.config.jax_platforms or "cuda").split(",")
    has_plugin = any(importlib.util.find_spec(plugin) for plugin in PLUGINS)
    return has_plugin and os.path.exists(NVIDIA_DRIVER) and not {"cuda", "gpu"}.isdisjoint(wanted)


def check_network(config: Config) -> None:
    """Refuses, before anything is read or compiled, settings of the network that do not go together.

    Raises:
      UserError: for an image too small for the poolings, first weights that cannot fit, or what the network has not.
    """
    if config.network == "segnet-basic":
        _check_basic(config)
    elif config.decoder != "full":
        raise UserError(f"--decoder {config.decoder} is for --network segnet-basic, got --network {config.network}")
    smallest = 2**config.depth
    if min(config.image_size) < smallest:
        height, width = config.image_size
        raise UserError(
            f"--image-size {height} {width} is smaller than the {config.depth} poolings need ({smallest}): take a "
            "larger one, or a smaller --depth",
            kind="image-too-small",
            fix=f"--image-size {max(height, smallest)} {max(width, smallest)}",
        )
    if config.init != "none" and config.width != 1:
        raise UserError(f"--init {config.init} needs --width 1, got {config.width:g}: add --init none to start afresh")
    if config.init in ("vgg16", "vgg16_bn", "vgg19") and not config.init.startswith(config.encoder):
        raise UserError(f"--init {config.init} does not fit --encoder {config.encoder}")


def _check_basic(config: Config) -> None:
    """Refuses what SegNet-Basic has not.

    Raises:
      UserError: naming the flag to change.
    """
    if config.depth > STAGES:
        raise UserError(f"--network segnet-basic has {STAGES} stages, got --depth {config.depth}: add --depth {STAGES}")
    if config.init != "none":
        raise UserError(f"--init {config.init} is for --network segnet: add --init none to start afresh")
    if config.final_batch_norm:
        raise UserError("--final-batch-norm is for --network segnet: add --no-final-batch-norm")
    if config.preprocessing not in ("auto", "raw"):
        raise UserError(
            f"--network segnet-basic normalises pixels of 0..255 itself, got --preprocessing {config.preprocessing}: "
            "add --preprocessing raw"
        )


def open_data(config: Config, stored: StoredLabels | None = None, legend: Legend | None = None) -> DataSet:
    """Open the dataset, which must have something to train on and something to score.

    Args:
      config: its data and read options.
      stored: what a run stores of its labels, by which they are read instead of by what the folder says.
      legend: the classes, where the folder names none.

    Raises:
      UserError: for every fault found.
    """
    if config.leave_out and config.split_rule != "leave-out":
        raise UserError(f"--leave-out {config.leave_out} needs --split-rule leave-out")
    data_set = open_data_set(
        config.data,
        split_rule=config.split_rule,
        image_size=config.image_size,
        seed=config.seed,
        num_train=config.scenes[0],
        num_val=config.scenes[1],
        reading=reading_of(config),
        leave_out=config.leave_out,
        stored=stored,
        legend=legend,
    )
    if not data_set.splits.get("train"):
        raise UserError(f"the training list of {config.data} is empty: nothing to train on", kind="empty-list")
    validation_split(data_set)
    return data_set


def reading_of(config: Config) -> Reading:
    """The read options of a config."""
    wishes = {item.name: getattr(config, item.name) for item in dataclasses.fields(Reading)}
    return Reading(**wishes | {"map": tuple(tuple(map(int, change.split("="))) for change in config.map)})


def tell_of_sizes(config: Config, data_set: DataSet, say: Callable[[str], None]) -> None:
    """Says what becomes of images that have not the shape of `--image-size`, where that is nothing asked for."""
    height, width = config.image_size
    others = [size for size in data_set.sizes if abs(size[0] * width / (size[1] * height) - 1) > 0.02]
    if others and config.fit == "stretch":
        sizes = listed([f"{h}x{w}" for h, w in others])
        say(f"warning: images of {sizes} are stretched to {height}x{width}: --fit letterbox or crop keeps their shape")


def validation_split(data_set: DataSet) -> str:
    """Which split is scored during training: "val", or "test" where a protocol has no validation split."""
    for name in ("val", "test"):
        if data_set.splits.get(name):
            return name
    what = f"{data_set.name} has neither validation nor test images: nothing could be scored"
    raise UserError(what, kind="nothing-to-score", fix="--val-share 0.2")
