"""Build the network, optimizer, step settings and training-state shapes that a config describes.

A field of a network, of `OptimizerSettings` or of `StepSettings` is filled from the config field of the same name, so
a new field needs no change here. The code below this module takes no config.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import AXIS
from segnet_jax.nn.contract import NetworkContract
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.training import optimizer as optimizers
from segnet_jax.training.losses import parse_loss
from segnet_jax.training.optimizer import OptimizerSettings
from segnet_jax.training.own_network import build_own_network, network_of, settings_of
from segnet_jax.training.precision import DTYPES
from segnet_jax.training.settings import StepSettings
from segnet_jax.training.state import TrainState, create_state, variable_shapes


def fields_from_config(config: Config, dataclass: Any) -> dict[str, Any]:
    """Return {name: value} of the config fields that the dataclass has too."""
    names = (item.name for item in dataclasses.fields(dataclass) if item.init)
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def build_model(config: Config, num_classes: int, precision: str) -> NetworkContract:
    """Return the network that a config describes.

    Args:
      config: config of the run.
      num_classes: channels of the logits.
      precision: dtype of activations; not "auto".

    Raises:
      UserError: If it is an own network that this command did not name, or that does not keep the contract.
    """
    names, sync_axis = settings_of(network_of(config.network)), AXIS if config.sync_batch_norm else None
    settings = {name: getattr(config, name) for name in names if hasattr(config, name)}
    settings |= {"num_classes": num_classes, "sync_axis": sync_axis, "dtype": DTYPES[precision]}
    if ":" in config.network:
        settings = {name: value for name, value in settings.items() if name in names}
        return build_own_network(config.network, settings, config.channels)
    return network_of(config.network)(**settings)


def build_optimizer(
    config: Config, model: NetworkContract, steps_per_epoch: int, schedule: optax.Schedule | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the optimizer that a config describes, and its learning rate as a function of the step.

    Args:
      config: config of the run.
      model: the network.
      steps_per_epoch: to convert epochs to steps.
      schedule: used instead of the config's schedule.
    """
    settings = OptimizerSettings(**fields_from_config(config, OptimizerSettings))
    return optimizers.build_optimizer(settings, model, steps_per_epoch, schedule)


def step_settings(
    config: Config,
    model: NetworkContract,
    class_weights: np.ndarray | jax.Array,
    preprocessing: Preprocessing,
    steps_per_epoch: int = 1,
) -> StepSettings:
    """Return the settings of the training step and the evaluation step.

    Args:
      config: config of the run.
      model: the network; may differ from the config's, for example a folded one.
      class_weights: float32 [C], of the loss.
      preprocessing: preprocessing of the network's input.
      steps_per_epoch: for the learning-rate schedule; irrelevant for evaluation.
    """
    optimizer, schedule = build_optimizer(config, model, steps_per_epoch)
    made = {"model": model, "class_weights": jnp.asarray(class_weights), "preprocessing": preprocessing}
    made |= {"optimizer": optimizer, "schedule": schedule, "loss": parse_loss(config.loss)}  # override config fields
    return StepSettings(**fields_from_config(config, StepSettings) | made)


def state_shapes(
    model: NetworkContract, optimizer: optax.GradientTransformation, precision: str, has_ema: bool
) -> TrainState:
    """Return the shapes and dtypes of a training state, for restoring one; nothing is computed."""
    create = partial(create_state, optimizer=optimizer, precision=precision, has_ema=has_ema)
    return jax.eval_shape(create, variable_shapes(model))
