"""Resolve a config on this machine: devices, dataset, sampler, model, optimizer and steps."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax

from segnet_jax.config.fields import Config
from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.distributed.data_parallel import AheadOfTime, Devices, replicate
from segnet_jax.nn.network_interface import NetworkInterface
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.reporting.loggers import check_installed
from segnet_jax.runs import dataset_checks
from segnet_jax.runs import load_dataset as run_dataset
from segnet_jax.runs.config_checks import (
    batch_warning,
    check_averaged_steps,
    check_loss_and_output,
    check_network,
    check_selection,
)
from segnet_jax.runs.out_of_memory import check_memory
from segnet_jax.system.command_name import as_called
from segnet_jax.system.errors import UserError, UserErrors
from segnet_jax.training import build_model, build_steps, initial_weights
from segnet_jax.training.choose_devices import device_shard, start_devices, steps_per_dispatch
from segnet_jax.training.custom_augmentation import check_custom_augmentation
from segnet_jax.training.custom_objects import NO_OBJECTS, CustomObjects, check_loss
from segnet_jax.training.evaluation import Evaluation
from segnet_jax.training.initial_weights import TrainedSegNet
from segnet_jax.training.state import TrainState, create_state
from segnet_jax.training.step_inputs import (
    Input,
    Placement,
    agree_on_placement,
    choose_placement,
    evaluation_input,
    split_into_dispatches,
    training_input,
)
from segnet_jax.training.step_settings import StepSettings
from segnet_jax.weights.vgg import VGG

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Steps:
    """The computations of a training run, each compiled on its first call.

    Attributes:
      source: the training batches.
      train: function (state, inputs of one dispatch) -> (new state, metrics of each step).
      evaluate: function (variables, should_stop) -> evaluation of the evaluation split, or None if stopped.
    """

    source: Input
    train: AheadOfTime
    evaluate: Callable[..., Evaluation | None]


@dataclass(frozen=True)
class Setup:
    """A config resolved on this machine, with its data.

    `resolve` creates a setup; `load_data` adds the attributes that depend on the initial weights or the checkpoint.

    Attributes:
      config: config of the run.
      devices: devices to train on.
      precision: dtype of activations, never "auto".
      dataset: opened dataset, not yet read.
      eval_name: the split that is evaluated during training.
      sampler: order and augmentation of the training samples.
      total_steps: optimizer steps in the whole run.
      steps_per_dispatch: optimizer steps in one call of the compiled training step; 1 with batches from the host.
      preprocessing: preprocessing of pixels.
      class_weights: class weights of the loss, float32 [C].
      train_samples: decoded training samples.
      eval_samples: decoded evaluation samples.
      placement: where the samples reside during training.
      own: custom network, loss, optimizer and augmentation, if any.
    """

    config: Config
    devices: Devices
    precision: str
    dataset: Dataset
    eval_name: str
    sampler: Sampler
    total_steps: int
    steps_per_dispatch: int
    preprocessing: Preprocessing | None = None
    class_weights: np.ndarray | None = None
    train_samples: CachedSplit | None = None
    eval_samples: CachedSplit | None = None
    placement: Placement | None = None
    own: CustomObjects = NO_OBJECTS

    @property
    def train_split(self) -> Split:
        """The training split."""
        return self.dataset.splits["train"]

    @property
    def eval_split(self) -> Split:
        """The split that is evaluated during training."""
        return self.dataset.splits[self.eval_name]

    @property
    def identity(self) -> dict[str, Any]:
        """Values that must match those of a checkpoint to resume from it, as JSON."""
        return {
            "classes": list(self.dataset.classes.names),
            "data": {name: split.fingerprint for name, split in self.dataset.splits.items()},
            "global_batch_size": self.sampler.global_batch_size,
            "precision": self.precision,
        }

    @property
    def about(self) -> dict[str, Any]:
        """Data and batch size for the report, as JSON."""
        return {
            "dataset": self.dataset.name,
            "split": self.eval_name,
            "num_images": {name: len(split) for name, split in self.dataset.splits.items()},
            "fingerprints": self.identity["data"],
            "global_batch_size": self.sampler.global_batch_size,
        }

    @property
    def num_bytes(self) -> int:
        """Size of all decoded images and labels in bytes."""
        return self.train_samples.num_bytes + self.eval_samples.num_bytes

    @cached_property
    def shard(self) -> tf_data.BatchShard:
        """The part of each global batch that this process handles."""
        return device_shard(self.devices, self.config.batch_size_per_device)

    @cached_property
    def model(self) -> NetworkInterface:
        """Network to train."""
        return build_model.build_model(self.config, len(self.dataset.classes), self.precision, self.own)

    @cached_property
    def step_settings(self) -> StepSettings:
        """Settings of the training and evaluation steps, including the optimizer."""
        return build_model.step_settings(
            self.config, self.model, self.class_weights, self.preprocessing, self.sampler.steps_per_epoch, self.own
        )

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Optimizer of the trainable parameters."""
        return build_model.build_optimizer(self.config, self.model, self.sampler.steps_per_epoch, own=self.own)[0]

    @cached_property
    def state_shapes(self) -> TrainState:
        """Shapes and dtypes of the training state."""
        return build_model.state_shapes(self.model, self.optimizer, self.precision, self.config.has_average)

    def batch(self, step: int) -> tf_data.Batch:
        """Return this process's shard of the augmented batch of a step, counted from 0."""
        grad_accum_steps = self.config.grad_accum_steps
        batch = tf_data.training_batch(self.train_samples, self.sampler, self.shard, grad_accum_steps, step)
        if self.own.augment is None:
            return batch
        key = self.sampler.batch(step).keys(self.shard.places(grad_accum_steps))
        return jax.device_get(self.own.augment(**batch, key=key))

    def dispatches(self, steps: range) -> list[range]:
        """Split steps into dispatches that do not cross an epoch boundary."""
        return split_into_dispatches(steps, self.steps_per_dispatch, self.sampler.steps_per_epoch)

    def initial_state(self, initial: VGG | TrainedSegNet | None) -> TrainState:
        """Return the state before the first step, on the devices, with random weights if `initial` is None."""
        variables = initial_weights.first_variables(
            self.config,
            self.model,
            initial,
            self.preprocessing,
            self.batch,
            self.devices,
            self.dataset.classes.names,
        )
        state = create_state(variables, self.optimizer, self.precision, self.config.has_average)
        return replicate(state, self.devices)

    def training_source(self) -> Input:
        """Return the source of the training batches."""
        samples, grad_accum_steps = self.train_samples, self.config.grad_accum_steps
        return training_input(
            self.placement, samples, self.sampler, self.shard, grad_accum_steps, self.devices, self.own.augment
        )

    def build_steps(self) -> Steps:
        """Build the training step and the evaluation."""
        devices, settings = self.devices, self.step_settings
        source = self.training_source()
        train = build_steps.build_train_step(source, devices, settings)
        eval_source = evaluation_input(self.placement, self.eval_samples, self.shard, devices)
        evaluate = build_steps.build_evaluator(eval_source, len(self.eval_samples), self.shard, devices, settings)
        return Steps(source, train, evaluate)


def resolve(config: Config, own: CustomObjects = NO_OBJECTS) -> Setup:
    """Choose the devices, open the dataset and check the config; no image is read and nothing is compiled.

    Args:
      config: config of the run.
      own: custom objects, including the augmentation that `config.augment` names.

    Raises:
      UserError: If the config is inconsistent, or does not fit the devices or the dataset.
    """
    check_network(config)
    check_selection(config)
    check_installed(config.logger)
    devices, precision = start_devices(config)
    logger.info(f"devices  {devices}, {precision}")
    check_custom_augmentation(config, own.augment)  # after the devices, because tracing starts JAX
    check_memory(config, devices)
    dataset = run_dataset.open_data(config)
    if dataset.doubts:
        raise UserErrors(config.data, dataset.doubts)
    check_loss_and_output(config, dataset)
    check_loss(own, len(dataset.classes))
    for note in dataset.notes:
        logger.info(as_called(note))
    for warn in (run_dataset.size_warning, run_dataset.crop_warning):
        if warning := warn(config, dataset):
            logger.warning(warning)
    eval_name = run_dataset.validation_split(dataset)
    if config.split_rule == "trainval" and eval_name == "test":
        logger.info("note: --split-rule trainval has no validation images: the test images are scored once, at the end")
    sizes = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    fingerprint = dataset.splits["train"].fingerprint[:12]
    logger.info(f"data     {dataset.name}: {sizes}; {len(dataset.classes)} classes; {fingerprint}")
    sampler = run_dataset.build_sampler(config, devices, len(dataset.splits["train"]))
    total_steps = config.total_steps(sampler.steps_per_epoch)
    length = f"{config.epochs} epochs of {sampler.steps_per_epoch}" if not config.steps else f"{total_steps:,}"
    logger.info(f"plan     {length} steps of {sampler.global_batch_size} images")
    check_averaged_steps(config, sampler.steps_per_epoch)
    if config.init == "none" and config.learning_rate <= 1e-3 and config.optimizer == "sgd" and not own.optimizer:
        logger.warning(
            f"--learning-rate {config.learning_rate:g} suits pretrained weights, but is too low for SGD from random "
            "weights: use a higher one, such as 0.1 in --protocol scratch"
        )
    if config.freeze != "none" and config.init == "none":
        logger.warning(f"--freeze {config.freeze} with --init none freezes random weights: use another --init")
    if warning := batch_warning(config, devices, sampler):
        logger.warning(warning)
    return Setup(
        config=config,
        devices=devices,
        precision=precision,
        dataset=dataset,
        eval_name=eval_name,
        sampler=sampler,
        total_steps=total_steps,
        steps_per_dispatch=steps_per_dispatch(config, devices, sampler.steps_per_epoch, total_steps, config.max_steps),
        own=own,
    )


def load_data(
    setup: Setup,
    preprocessing: Preprocessing,
    class_weights: np.ndarray,
    all_gather: Callable[[str], list[str]] = lambda text: [text],
) -> Setup:
    """Decode all samples, check every label, and choose where the samples reside; nothing is compiled.

    All processes use `all_gather`, a function from one's text to the texts of all, to agree on the placement.

    Raises:
      UserError: If a split has no labeled pixel, or the samples do not fit on the devices as requested.
    """
    config, devices, eval_name = setup.config, setup.devices, setup.eval_name
    if len(preprocessing.mean) != config.channels:  # the checkpoint is damaged
        raise UserError(f"the preprocessing is for {len(preprocessing.mean)} channels, not for {config.channels}")
    train_samples = run_dataset.decode(setup.train_split, config, "reading training images")
    eval_samples = run_dataset.decode(setup.eval_split, config, f"reading {eval_name} images")
    dataset_checks.check_labels(setup.dataset.classes, **{"train": train_samples, eval_name: eval_samples})
    requested = "device" if config.steps_per_dispatch > 1 and setup.steps_per_dispatch > 1 else config.input
    placement = choose_placement(requested, devices, train_samples, eval_samples)
    placement = agree_on_placement(placement, all_gather)
    return dataclasses.replace(
        setup,
        sampler=dataclasses.replace(setup.sampler, fill=run_dataset.outside(setup.train_split, preprocessing)),
        preprocessing=preprocessing,
        class_weights=class_weights,
        train_samples=train_samples,
        eval_samples=eval_samples,
        placement=placement,
        steps_per_dispatch=1 if placement == "host" else setup.steps_per_dispatch,
    )
