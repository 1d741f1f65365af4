"""What a training is made of, read and checked, and what is built of it: its first state and its steps."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax

from segnet_jax import assembly
from segnet_jax.config import Config
from segnet_jax.inputs import Input, Place, agree_on_place, choose_place, evaluation_input, training_input
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.nn.segnet import SegNet
from segnet_jax.pipeline import host
from segnet_jax.pipeline.decoded import Records
from segnet_jax.setting import Setting
from segnet_jax.training.evaluation import Evaluation
from segnet_jax.training.initial_weights import TrainedSegNet
from segnet_jax.training.parallel import AheadOfTime, replicate
from segnet_jax.training.state import TrainState, create_state
from segnet_jax.weights.vgg import VGG


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
      initial: the encoder or the whole network to start from; None where there is none, or it is not needed any more.
      preprocessing: of pixels.
      class_weights: float32 [C].
      records: to train on.
      records_scored: to score.
      place: where both lie.
      share: this process's part of each global batch.
      model: the network.
      optimizer: with its schedule.
      schedule: the course of the learning rate.
      shapes: of the state.
    """

    config: Config
    setting: Setting
    initial: VGG | TrainedSegNet | None
    preprocessing: Preprocessing
    class_weights: np.ndarray
    records: Records
    records_scored: Records
    place: Place
    share: host.Share
    model: SegNet
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    shapes: TrainState

    @property
    def num_bytes(self) -> int:
        """Of all images and labels."""
        return self.records.num_bytes + self.records_scored.num_bytes

    def batch_of(self, step: int) -> host.Batch:
        """This process's part of the batch of a step, counted from 0."""
        return host.training_batch(self.records, self.setting.plan, self.share, self.config.accumulate, step)

    def first_state(self) -> TrainState:
        """That before the first step, on the devices."""
        devices, precision = self.setting.devices, self.setting.precision
        first = (
            self.model,
            self.initial,
            self.preprocessing,
            self.batch_of,
            devices,
            self.setting.data_set.classes.names,
        )
        variables = assembly.first_variables(self.config, *first)
        return replicate(create_state(variables, self.optimizer, precision, self.config.average > 0), devices)

    def build_steps(self, say: Callable[[str], None]) -> Steps:
        """The steps of training and evaluation, which tell when they are compiled: when they are first taken."""
        config, devices, records_scored = self.config, self.setting.devices, self.records_scored
        settings = {
            "model": self.model,
            "class_weights": jnp.asarray(self.class_weights),
            "preprocessing": self.preprocessing,
        }
        source = training_input(self.place, self.records, self.setting.plan, self.share, config.accumulate, devices)
        take = assembly.build_train_step(
            source,
            devices,
            say,
            optimizer=self.optimizer,
            schedule=self.schedule,
            half_gradients=config.half_gradients,
            seed=config.seed,
            average=config.average,
            **settings,
        )
        source_scored = evaluation_input(self.place, records_scored, self.share, devices)
        evaluate = assembly.build_evaluator(source_scored, len(records_scored), self.share, devices, say, **settings)
        return Steps(source, take, evaluate)


def read_material(
    config: Config,
    setting: Setting,
    initial: VGG | TrainedSegNet | None,
    preprocessing: Preprocessing,
    class_weights: np.ndarray,
    say: Callable[[str], None],
    exchange: Callable[[str], list[str]] = lambda text: [text],
) -> Material:
    """Decodes every record, looks at every label, and chooses where all of it lies; nothing is compiled.

    Args:
      config: of the training.
      setting: what it comes to here.
      initial: the encoder or the whole network to start from, if there is one.
      preprocessing: of pixels.
      class_weights: float32 [C].
      say: prints a line.
      exchange: (this process's text) -> that of each process, for what they must agree on.

    Raises:
      UserError: if the labels teach nothing, or the records do not fit where they are wanted.
    """
    devices, plan, classes = setting.devices, setting.plan, setting.data_set.classes
    records = assembly.decode(setting.train_split, config, "reading training images", say)
    records_scored = assembly.decode(setting.scored_split, config, f"reading {setting.scored} images", say)
    assembly.warn_of_labels(classes, say, **{"train": records, setting.scored: records_scored})
    model = assembly.build_model(config, len(classes), setting.precision)
    optimizer, schedule = assembly.build_optimizer(config, plan.steps_per_epoch)
    wanted = "device" if setting.steps_per_call > 1 else config.input
    place = agree_on_place(choose_place(wanted, devices, records, records_scored), exchange, say)
    return Material(
        config=config,
        setting=setting,
        initial=initial,
        preprocessing=preprocessing,
        class_weights=class_weights,
        records=records,
        records_scored=records_scored,
        place=place,
        share=assembly.device_share(devices, config.batch_size_per_device),
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        shapes=assembly.state_shapes(model, optimizer, setting.precision, config.average > 0),
    )
