"""From a config to network, optimizer, and the shapes of the state.

Each function unpacks the config; nothing below it knows one.
"""

from functools import partial

import jax
import optax

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import AXIS
from segnet_jax.nn.segnet import SegNet
from segnet_jax.nn.segnet_basic import SegNetBasic
from segnet_jax.training.optimizer import learning_rate_schedule, sgd
from segnet_jax.training.precision import DTYPES
from segnet_jax.training.state import TrainState, create_state, variable_shapes


def build_model(config: Config, num_classes: int, precision: str) -> SegNet:
    """The network that a config describes."""
    settings = {
        "num_classes": num_classes,
        "depth": config.depth,
        "width": config.width,
        "pooling": config.pooling,
        "upsampling": config.upsampling,
        "encoder_addition": config.encoder_addition,
        "dropout": config.dropout,
        "conv_bias": config.conv_bias,
        "batch_norm_momentum": config.batch_norm_momentum,
        "batch_norm_epsilon": config.batch_norm_epsilon,
        "batch_norm_bias": config.batch_norm_bias,
        "sync_axis": AXIS if config.sync_batch_norm else None,
        "dtype": DTYPES[precision],
    }
    if config.network == "segnet-basic":
        return SegNetBasic(decoder=config.decoder, **settings)
    return SegNet(encoder=config.encoder, final_batch_norm=config.final_batch_norm, **settings)


def build_optimizer(config: Config, steps_per_epoch: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and the course of its learning rate."""
    schedule = learning_rate_schedule(
        config.schedule,
        peak=config.learning_rate,
        total_steps=config.epochs * steps_per_epoch,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        drop_every=config.step_epochs * steps_per_epoch,
        drop_factor=config.step_factor,
        power=config.poly_power,
    )
    factors = {"decay_scale": config.decay_scale, "bias_lr_mult": config.bias_lr_mult}
    return sgd(schedule, config.momentum, config.weight_decay, **factors), schedule


def state_shapes(model: SegNet, optimizer: optax.GradientTransformation, precision: str, has_ema: bool) -> TrainState:
    """What a training state looks like, for restoring one: shapes and dtypes, nothing computed."""
    create = partial(create_state, optimizer=optimizer, precision=precision, has_ema=has_ema)
    return jax.eval_shape(create, variable_shapes(model))
