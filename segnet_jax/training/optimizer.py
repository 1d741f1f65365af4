"""Optimizers with gradient clipping, learning-rate multipliers by role, and frozen layers.

To add an optimizer, add a function to `OPTIMIZERS` and its name to the config field `optimizer`. A new setting needs a
field of `OptimizerSettings` and a config field of the same name.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optax

from segnet_jax.nn.network_interface import SECTIONS, NetworkInterface, frozen_layers, role_mask, section_mask
from segnet_jax.training.plateau import reduce_on_plateau
from segnet_jax.training.schedules import Schedule, constant_from, learning_rate_schedule

Mask = Callable[[Mapping[str, Any]], Any]
"""Parameters -> tree of booleans."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of the optimizer and its schedule; set from the config fields of the same names.

    Attributes:
      optimizer: a key of `OPTIMIZERS`.
      learning_rate: the peak learning rate.
      schedule: see `learning_rate_schedule`.
      epochs: number of epochs.
      steps: number of steps; 0 to compute it from `epochs`.
      swa_epochs: number of final epochs with a constant learning rate.
      swa_learning_rate: learning rate of the final epochs; 0 for the schedule's rate at their start.
      warmup_epochs: length of the linear warm-up, in epochs.
      step_epochs: epochs between drops, for schedule "step".
      step_factor: factor of each drop, for schedules "step" and "plateau".
      plateau_patience: epochs without improvement before a drop, for schedule "plateau".
      poly_power: exponent, for schedule "poly".
      momentum: momentum of SGD; beta1 of AdamW and Lion; unused by Adafactor.
      nesterov: whether SGD uses Nesterov momentum.
      clip_gradients: maximum global norm of the gradients; 0 for no clipping.
      weight_decay: weight decay of convolution kernels, never applied to biases.
      decay_scale: whether to also apply weight decay to BatchNorm's scale, as in SegNet-Tutorial's prototxts.
      decay_shift: whether to also apply weight decay to BatchNorm's shift, as in MATLAB (OffsetL2Factor 1).
      bias_lr_mult: learning-rate multiplier of convolution biases; 2 in SegNet-Tutorial.
      encoder_lr_mult: learning-rate multiplier of the encoder.
      lr_mult: learning-rate multipliers as NAME=FACTOR, with a section or a role of `nn.network_interface` as name.
    """

    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    schedule: Schedule = "constant"
    epochs: int = 1
    steps: int = 0
    swa_epochs: int = 0
    swa_learning_rate: float = 0.0
    warmup_epochs: float = 0.0
    step_epochs: int = 1
    step_factor: float = 0.1
    plateau_patience: int = 5
    poly_power: float = 0.9
    momentum: float = 0.9
    nesterov: bool = False
    clip_gradients: float = 0.0
    weight_decay: float = 5e-4
    decay_scale: bool = False
    decay_shift: bool = False
    bias_lr_mult: float = 1.0
    encoder_lr_mult: float = 1.0
    lr_mult: tuple[str, ...] = ()


def sgd(
    learning_rate: optax.Schedule, settings: OptimizerSettings, decayed: Mask
) -> tuple[optax.GradientTransformation, ...]:
    """Return SGD with momentum; weight decay is L2, added to the gradient."""
    decay = optax.add_decayed_weights(settings.weight_decay, mask=decayed)
    return decay, optax.sgd(learning_rate, momentum=settings.momentum, nesterov=settings.nesterov)


def adamw(
    learning_rate: optax.Schedule, settings: OptimizerSettings, decayed: Mask
) -> tuple[optax.GradientTransformation, ...]:
    """Return AdamW with beta1 `momentum`, beta2 0.999 and epsilon 1e-8.

    Weight decay is decoupled and multiplied by the learning rate.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101).
    """
    return (optax.adamw(learning_rate, b1=settings.momentum, weight_decay=settings.weight_decay, mask=decayed),)


def lion(
    learning_rate: optax.Schedule, settings: OptimizerSettings, decayed: Mask
) -> tuple[optax.GradientTransformation, ...]:
    """Return Lion, whose updates are the sign of an averaged gradient, with beta1 `momentum` and beta2 0.99.

    Weight decay is decoupled and multiplied by the learning rate, which should be a third to a tenth of AdamW's.

    Source: Chen et al. 2023 (arXiv 2302.06675).
    """
    return (optax.lion(learning_rate, b1=settings.momentum, weight_decay=settings.weight_decay, mask=decayed),)


def adafactor(
    learning_rate: optax.Schedule, settings: OptimizerSettings, decayed: Mask
) -> tuple[optax.GradientTransformation, ...]:
    """Return Adafactor, which factors the second moments of large kernels and stores no first moments.

    The learning rate is relative to the root mean square of each parameter array. Weight decay is decoupled and
    multiplied by the learning rate, unlike in `optax.adafactor`.

    Source: Shazeer & Stern 2018 (arXiv 1804.04235).
    """
    return (
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        optax.add_decayed_weights(settings.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(learning_rate),
    )


OPTIMIZERS: dict[str, Callable[..., tuple[optax.GradientTransformation, ...]]] = {
    "sgd": sgd,
    "adamw": adamw,
    "lion": lion,
    "adafactor": adafactor,
}
"""Config value of `optimizer` -> function (learning rate, settings, weight-decay mask) -> transformations to chain."""


def build_optimizer(
    settings: OptimizerSettings,
    model: NetworkInterface,
    steps_per_epoch: int,
    schedule: optax.Schedule | None = None,
    own: Callable[[optax.Schedule], optax.GradientTransformation] | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the optimizer of a network's parameters, and its learning-rate schedule.

    Args:
      settings: settings of the optimizer.
      model: the network, for the roles of its parameters and its frozen layers.
      steps_per_epoch: number of steps per epoch.
      schedule: replaces the settings' schedule, if given.
      own: custom function of the schedule that returns an optimizer; replaces the settings' optimizer and weight decay.
    """
    reduces = schedule is None and settings.schedule == "plateau"
    schedule = schedule or _schedule_of(settings, steps_per_epoch)
    roles = ("kernel", *(("scale",) if settings.decay_scale else ()), *(("shift",) if settings.decay_shift else ()))
    steps = (optax.clip_by_global_norm(settings.clip_gradients),) if settings.clip_gradients else ()
    steps += (own(schedule),) if own else OPTIMIZERS[settings.optimizer](schedule, settings, role_mask(model, *roles))
    if settings.bias_lr_mult != 1:
        steps += (optax.masked(optax.scale(settings.bias_lr_mult), role_mask(model, "bias")),)
    steps += tuple(optax.masked(optax.scale(factor), mask) for factor, mask in _multipliers(settings, model))
    if reduces:
        steps += (reduce_on_plateau(settings.step_factor, settings.plateau_patience, steps_per_epoch),)
    optimizer = optax.chain(*steps)
    if settings.encoder_lr_mult != 1:
        scale = optax.masked(optax.scale(settings.encoder_lr_mult), section_mask(model, "encoder"))
        optimizer = optax.chain(optimizer, scale)
    if frozen := frozen_layers(model):
        optimizer = without_layers(optimizer, frozen)
    return optimizer, schedule


def _schedule_of(settings: OptimizerSettings, steps_per_epoch: int) -> optax.Schedule:
    total_steps = settings.steps or settings.epochs * steps_per_epoch
    schedule = learning_rate_schedule(
        settings.schedule,
        peak=settings.learning_rate,
        total_steps=total_steps,
        warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
        drop_every=settings.step_epochs * steps_per_epoch,
        drop_factor=settings.step_factor,
        power=settings.poly_power,
    )
    if not settings.swa_epochs:
        return schedule
    return constant_from(schedule, total_steps - settings.swa_epochs * steps_per_epoch, settings.swa_learning_rate)


def _multipliers(settings: OptimizerSettings, model: NetworkInterface) -> Iterator[tuple[float, Mask]]:
    for each in settings.lr_mult:
        name, factor = each.split("=")
        yield float(factor), (section_mask if name in SECTIONS else role_mask)(model, name)


def without_layers(optimizer: optax.GradientTransformation, layers: frozenset[str]) -> optax.GradientTransformation:
    """Restrict an optimizer to the layers not in `layers`, so that it keeps no state for frozen layers.

    `init` and `update` take all parameters; gradients and updates contain only the trainable layers.
    """

    def trainable(params):
        return {layer: parts for layer, parts in params.items() if layer not in layers}

    def init(params):
        return optimizer.init(trainable(params))

    def update(grads, state, params, **extra):
        return optimizer.update(grads, state, trainable(params), **extra)

    return optax.GradientTransformationExtraArgs(init, update)
