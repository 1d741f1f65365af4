"""What a config resolves to on this machine with this data: checked, read, and built into steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from segnet_jax.config.fields import Config
from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.distributed.data_parallel import AheadOfTime, Devices, replicate
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.nn.segnet import SegNet
from segnet_jax.runs import dataset, dataset_checks
from segnet_jax.runs.checks import another_batch, check_network
from segnet_jax.runs.dataset import open_data, tell_of_sizes, validation_split
from segnet_jax.system.errors import UserError, UserErrors
from segnet_jax.training import build, build_steps, initial_weights
from segnet_jax.training.devices import device_shard, start_devices, steps_per_dispatch
from segnet_jax.training.evaluation import Evaluation
from segnet_jax.training.inputs import (
    Input,
    Place,
    agree_on_placement,
    choose_placement,
    evaluation_input,
    training_input,
)
from segnet_jax.training.state import TrainState, create_state
from segnet_jax.weights.vgg import VGG


@dataclass(frozen=True)
class Setting:
    """What a config comes to on this machine with this data.

    Attributes:
      devices: to train on.
      precision: of activations, never "auto".
      dataset: opened, not read.
      scored: the split that is scored during training.
      sampler: of the whole training.
      total_steps: of the whole training.
      steps_per_dispatch: that the devices take at one bidding.
    """

    devices: Devices
    precision: str
    dataset: Dataset
    scored: str
    sampler: Sampler
    total_steps: int
    steps_per_dispatch: int

    @property
    def train_split(self) -> Split:
        """What is trained on."""
        return self.dataset.splits["train"]

    @property
    def scored_split(self) -> Split:
        """What is scored."""
        return self.dataset.splits[self.scored]

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from, as JSON."""
        return {
            "classes": list(self.dataset.classes.names),
            "data": {name: split.fingerprint for name, split in self.dataset.splits.items()},
            "global_batch_size": self.sampler.global_batch_size,
            "precision": self.precision,
        }

    @property
    def about(self) -> dict[str, Any]:
        """What a report tells of the data and the batch, as JSON."""
        return {
            "dataset": self.dataset.name,
            "split": self.scored,
            "num_images": {name: len(split) for name, split in self.dataset.splits.items()},
            "fingerprints": self.identity["data"],
            "global_batch_size": self.sampler.global_batch_size,
        }


def settle(config: Config, say: Callable[[str], None]) -> Setting:
    """Finds devices and data, and says what it found.

    Raises:
      UserError: if the config does not fit them, or itself.
    """
    check_network(config)
    devices, precision = start_devices(config, say)
    say(f"devices  {devices}, {precision}")
    dataset = open_data(config)
    if dataset.doubts:
        raise UserErrors(config.data, dataset.doubts)
    for note in dataset.notes:
        say(note)
    tell_of_sizes(config, dataset, say)
    num_records = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    fingerprint = dataset.splits["train"].fingerprint[:12]
    say(f"data     {dataset.name}: {num_records}; {len(dataset.classes)} classes; {fingerprint}")
    sampler = _build_sampler(config, devices, len(dataset.splits["train"]))
    say(f"plan     {config.epochs} epochs of {sampler.steps_per_epoch} steps of {sampler.global_batch_size} images")
    if told := another_batch(config, devices, sampler):
        say(f"warning: {told}")
    total_steps = config.epochs * sampler.steps_per_epoch
    scored, per_call = validation_split(dataset), steps_per_dispatch(config, devices)
    return Setting(devices, precision, dataset, scored, sampler, total_steps, per_call)


def _build_sampler(config: Config, devices: Devices, num_images: int) -> Sampler:
    """The plan of the whole training; where there are too few images for it, the fix is the batch that would do."""
    at_once = devices.total * config.grad_accum_steps
    try:
        drawn = (config.flip, config.shift, config.scale, config.color)
        return Sampler(num_images, at_once * config.batch_size_per_device, config.seed, *drawn)
    except UserError as error:
        most = num_images // at_once
        fix = (
            f"--batch-size-per-device {most}" if most else "--devices 1 --grad-accum-steps 1 --batch-size-per-device 1"
        )
        raise UserError(error.faults[0].what, kind=error.kind, fix=fix) from None


@dataclass(frozen=True)
class Steps:
    """What a training computes.

    Attributes:
      source: of the training's batches.
      take: the training step; with the state and a call's inputs it gives the state after them, and measures.
      evaluate: with variables and what asks whether to stop, it scores them; None where it was to stop.
    """

    source: Input
    take: AheadOfTime
    evaluate: Callable[..., Evaluation | None]


@dataclass(frozen=True)
class Material:
    """What a training is made of.

    Attributes:
      config: of it.
      setting: what the config comes to here.
      vgg: the encoder's first weights; None where there are none, or none are needed any more.
      preprocessing: of pixels.
      class_weights: float32 [C].
      samples: to train on.
      eval_samples: to score.
      place: where both lie.
      shard: this process's part of each global batch.
      model: the network.
      optimizer: with its schedule.
      schedule: the course of the learning rate.
      shapes: of the state.
    """

    config: Config
    setting: Setting
    vgg: VGG | None
    preprocessing: Preprocessing
    class_weights: np.ndarray
    samples: CachedSplit
    eval_samples: CachedSplit
    place: Place
    shard: tf_data.BatchShard
    model: SegNet
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    shapes: TrainState

    @property
    def num_bytes(self) -> int:
        """Of all images and labels."""
        return self.samples.num_bytes + self.eval_samples.num_bytes

    def batch_of(self, step: int) -> tf_data.Batch:
        """This process's part of the batch of a step, counted from 0."""
        return tf_data.training_batch(
            self.samples, self.setting.sampler, self.shard, self.config.grad_accum_steps, step
        )

    def first_state(self) -> TrainState:
        """That before the first step, on the devices."""
        devices, precision = self.setting.devices, self.setting.precision
        first = (self.model, self.vgg, self.preprocessing, self.batch_of, devices)
        variables = initial_weights.first_variables(self.config, *first)
        return replicate(create_state(variables, self.optimizer, precision, self.config.ema_decay > 0), devices)

    def build_steps(self, say: Callable[[str], None]) -> Steps:
        """The steps of training and evaluation, which tell when they are compiled: when they are first taken."""
        config, devices, eval_samples = self.config, self.setting.devices, self.eval_samples
        settings = {
            "model": self.model,
            "class_weights": jnp.asarray(self.class_weights),
            "preprocessing": self.preprocessing,
        }
        source = training_input(
            self.place, self.samples, self.setting.sampler, self.shard, config.grad_accum_steps, devices
        )
        take = build_steps.build_train_step(
            source,
            devices,
            say,
            optimizer=self.optimizer,
            schedule=self.schedule,
            half_gradients=config.half_gradients,
            seed=config.seed,
            ema_decay=config.ema_decay,
            **settings,
        )
        source_scored = evaluation_input(self.place, eval_samples, self.shard, devices)
        evaluate = build_steps.build_evaluator(source_scored, len(eval_samples), self.shard, devices, say, **settings)
        return Steps(source, take, evaluate)


def read_material(
    config: Config,
    setting: Setting,
    vgg: VGG | None,
    preprocessing: Preprocessing,
    class_weights: np.ndarray,
    say: Callable[[str], None],
    exchange: Callable[[str], list[str]] = lambda text: [text],
) -> Material:
    """Decodes every record, looks at every label, and chooses where all of it lies; nothing is compiled.

    Args:
      config: of the training.
      setting: what it comes to here.
      vgg: the encoder's first weights, if there are any.
      preprocessing: of pixels.
      class_weights: float32 [C].
      say: prints a line.
      exchange: (this process's text) -> that of each process, for what they must agree on.

    Raises:
      UserError: if the labels teach nothing, or the records do not fit where they are wanted.
    """
    devices, sampler, classes = setting.devices, setting.sampler, setting.dataset.classes
    samples = dataset.decode(setting.train_split, config, "reading training images", say)
    eval_samples = dataset.decode(setting.scored_split, config, f"reading {setting.scored} images", say)
    dataset_checks.warn_of_labels(classes, say, **{"train": samples, setting.scored: eval_samples})
    model = build.build_model(config, len(classes), setting.precision)
    optimizer, schedule = build.build_optimizer(config, sampler.steps_per_epoch)
    wanted = "device" if setting.steps_per_dispatch > 1 else config.input
    place = agree_on_placement(choose_placement(wanted, devices, samples, eval_samples), exchange, say)
    return Material(
        config=config,
        setting=setting,
        vgg=vgg,
        preprocessing=preprocessing,
        class_weights=class_weights,
        samples=samples,
        eval_samples=eval_samples,
        place=place,
        shard=device_shard(devices, config.batch_size_per_device),
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        shapes=build.state_shapes(model, optimizer, setting.precision, config.ema_decay > 0),
    )
