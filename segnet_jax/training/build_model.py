"""Build the network, optimizer, step settings and training-state shapes that a config describes.

Each field of a network, `OptimizerSettings` or `StepSettings` is set from the config field of the same name, so a new
field needs no change here. Networks, optimizers and steps themselves take no config.
"""

import dataclasses
import logging
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import AXIS
from segnet_jax.nn.network_interface import NetworkInterface
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.system.errors import UserError
from segnet_jax.training import optimizer as optimizers
from segnet_jax.training.custom_network import build_custom_network, network_of
from segnet_jax.training.custom_objects import NO_OBJECTS, CustomObjects, missing
from segnet_jax.training.losses import parse_loss
from segnet_jax.training.optimizer import OptimizerSettings
from segnet_jax.training.precision import DTYPES
from segnet_jax.training.state import TrainState, create_state, variable_shapes
from segnet_jax.training.step_settings import StepSettings

logger = logging.getLogger(__name__)


def fields_from_config(config: Config, dataclass: Any) -> dict[str, Any]:
    """Return {name: value} for the config fields that a dataclass also has."""
    names = (item.name for item in dataclasses.fields(dataclass) if item.init)
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def build_model(config: Config, num_classes: int, precision: str, own: CustomObjects = NO_OBJECTS) -> NetworkInterface:
    """Return the network that a config describes, or the custom one; `precision` must not be "auto".

    Raises:
      UserError: If a custom network was neither passed nor named, or does not implement the interface.
    """
    if name := missing("model", config.own) if own.model is None else "":
        raise UserError(
            f"the custom network of this run ({name}) was passed from Python, and a command cannot import it; use "
            "segnet_jax.load(RUN, model=...), or segnet_jax.evaluate(RUN, model=...)"
        )
    settings = vars(config) | {"frozen_stages": config.frozen_stages, "num_classes": num_classes}
    settings |= {"sync_axis": AXIS if config.sync_batch_norm else None, "dtype": DTYPES[precision]}
    if own.model is not None:
        return build_custom_network(own.model, settings)
    network = network_of(config.network)
    if ":" in config.network:
        return build_custom_network(network, settings, f"--network {config.network}")
    return network(**{item.name: settings[item.name] for item in dataclasses.fields(network) if item.name in settings})


def build_optimizer(
    config: Config,
    model: NetworkInterface,
    steps_per_epoch: int,
    schedule: optax.Schedule | None = None,
    own: CustomObjects = NO_OBJECTS,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the optimizer that a config describes, or the custom one, and its learning-rate schedule.

    `schedule` replaces the config's schedule.
    """
    settings = OptimizerSettings(**fields_from_config(config, OptimizerSettings))
    return optimizers.build_optimizer(settings, model, steps_per_epoch, schedule, own.optimizer)


def step_settings(
    config: Config,
    model: NetworkInterface,
    class_weights: np.ndarray | jax.Array,
    preprocessing: Preprocessing,
    steps_per_epoch: int = 1,
    own: CustomObjects = NO_OBJECTS,
) -> StepSettings:
    """Return the settings of the training step and the evaluation step.

    The network may differ from the config's, for example if folded. Evaluation does not need `steps_per_epoch`.
    """
    optimizer, schedule = build_optimizer(config, model, steps_per_epoch, own=own)
    made = {"model": model, "class_weights": jnp.asarray(class_weights), "preprocessing": preprocessing}
    made |= {"optimizer": optimizer, "schedule": schedule}
    if own.loss is None and (name := missing("loss", config.own)):
        logger.info(f"note: this run's custom loss ({name}) was not passed: the loss shown is --loss {config.loss}")
    loss = parse_loss(config.loss, config.multi_label) if own.loss is None else own.loss
    made |= {"loss": loss}  # overrides the config's formula
    if config.swa_epochs:
        first_step = config.total_steps(steps_per_epoch) - config.swa_epochs * steps_per_epoch
        made |= {"swa": (first_step, steps_per_epoch)}
    return StepSettings(**fields_from_config(config, StepSettings) | made)


def state_shapes(
    model: NetworkInterface, optimizer: optax.GradientTransformation, precision: str, has_ema: bool
) -> TrainState:
    """Return the shapes and dtypes of a training state, without computing anything."""
    create = partial(create_state, optimizer=optimizer, precision=precision, has_ema=has_ema)
    return jax.eval_shape(create, variable_shapes(model))
