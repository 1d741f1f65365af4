"""Build what a config describes: network, optimizer, settings of the steps, and the shapes of the training state.

A field of a network, of `OptimizerSettings` or of `StepSettings` is filled from the config's field of the same name, so
a new one is not spelled here; nothing below these functions knows a config.
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
from segnet_jax.nn import NETWORKS
from segnet_jax.nn.contract import NetworkContract
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.training import optimizer as optimizers
from segnet_jax.training.optimizer import OptimizerSettings
from segnet_jax.training.precision import DTYPES
from segnet_jax.training.settings import StepSettings
from segnet_jax.training.state import TrainState, create_state, variable_shapes


def fields_from_config(config: Config, dataclass: Any) -> dict[str, Any]:
    """Return the values of the fields of a dataclass that the config has too, by name."""
    names = (item.name for item in dataclasses.fields(dataclass) if item.init)
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def build_model(config: Config, num_classes: int, precision: str) -> NetworkContract:
    """Return the network that a config describes.

    Args:
      config: of the run.
      num_classes: channels of the logits.
      precision: of activations, not "auto".
    """
    network = NETWORKS[config.network]
    settings = fields_from_config(config, network)
    sync_axis = AXIS if config.sync_batch_norm else None
    return network(**settings, num_classes=num_classes, sync_axis=sync_axis, dtype=DTYPES[precision])


def build_optimizer(
    config: Config, model: NetworkContract, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the optimizer that a config describes, and its learning rate as a function of the step."""
    settings = OptimizerSettings(**fields_from_config(config, OptimizerSettings))
    return optimizers.build_optimizer(settings, model, steps_per_epoch)


def step_settings(
    config: Config,
    model: NetworkContract,
    class_weights: np.ndarray | jax.Array,
    preprocessing: Preprocessing,
    steps_per_epoch: int = 1,
) -> StepSettings:
    """Return what the training step and the evaluation step of a config hold.

    Args:
      config: of the run.
      model: the network, which may be another than the config's, such as a folded one.
      class_weights: float32 [C], of the loss.
      preprocessing: what the network expects of an image.
      steps_per_epoch: by which the learning rate takes its course; an evaluation has none.
    """
    optimizer, schedule = build_optimizer(config, model, steps_per_epoch)
    made = {"model": model, "class_weights": jnp.asarray(class_weights), "preprocessing": preprocessing}
    made |= {"optimizer": optimizer, "schedule": schedule}  # the config has their names
    return StepSettings(**fields_from_config(config, StepSettings) | made)


def state_shapes(
    model: NetworkContract, optimizer: optax.GradientTransformation, precision: str, has_ema: bool
) -> TrainState:
    """What a training state looks like, for restoring one: shapes and dtypes, nothing computed."""
    create = partial(create_state, optimizer=optimizer, precision=precision, has_ema=has_ema)
    return jax.eval_shape(create, variable_shapes(model))
