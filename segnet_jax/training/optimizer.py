"""Optimizers with per-parameter learning-rate multipliers and frozen layers, and learning-rate schedules.

To add an optimizer, add a function to `OPTIMIZERS` and its name to the config field `optimizer`. A new setting is a
field of `OptimizerSettings` and a config field of the same name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import optax

from segnet_jax.nn.contract import NetworkContract, encoder_layers, frozen_layers, role_mask

Schedule = Literal["constant", "step", "poly", "cosine"]
Mask = Callable[[Mapping[str, Any]], Any]
"""Parameters -> a tree of booleans."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of the optimizer and its schedule; filled from the config fields of the same names.

    Attributes:
      optimizer: a key of `OPTIMIZERS`.
      learning_rate: the peak learning rate.
      schedule: see `learning_rate_schedule`.
      epochs: number of epochs.
      steps: number of steps; 0: as many as `epochs` gives.
      warmup_epochs: length of the linear warm-up.
      step_epochs: for schedule "step": epochs between drops.
      step_factor: for schedule "step": factor of each drop.
      poly_power: for schedule "poly".
      momentum: momentum of SGD; beta1 of AdamW.
      weight_decay: applied to convolution kernels, never to biases.
      decay_scale: apply weight decay to BatchNorm's scale too, as in SegNet-Tutorial's prototxts.
      decay_shift: apply weight decay to BatchNorm's shift too, as in MATLAB (OffsetL2Factor 1).
      bias_lr_mult: learning-rate multiplier of convolution biases; 2 in SegNet-Tutorial.
      encoder_lr_mult: learning-rate multiplier of the encoder.
    """

    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    schedule: Schedule = "constant"
    epochs: int = 1
    steps: int = 0
    warmup_epochs: float = 0.0
    step_epochs: int = 1
    step_factor: float = 0.1
    poly_power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_scale: bool = False
    decay_shift: bool = False
    bias_lr_mult: float = 1.0
    encoder_lr_mult: float = 1.0


def learning_rate_schedule(
    schedule: Schedule,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    drop_every: int = 1,
    drop_factor: float = 0.1,
    power: float = 0.9,
) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    Args:
      schedule: "constant"; "step": multiply by `drop_factor` every `drop_every` steps; "poly": the remaining fraction
        of the steps to the `power`; "cosine": cosine decay to 0.
      peak: the peak learning rate.
      total_steps: number of steps in the whole training, including the warm-up.
      warmup_steps: steps of linear warm-up; the schedule starts after them.
      drop_every: in steps.
      drop_factor: for "step".
      power: for "poly".
    """
    remaining = max(total_steps - warmup_steps, 1)
    after_warmup = {
        "constant": optax.constant_schedule(peak),
        "step": optax.exponential_decay(peak, drop_every, drop_factor, staircase=True),
        "poly": optax.polynomial_schedule(peak, 0.0, power, remaining),
        "cosine": optax.cosine_decay_schedule(peak, remaining),
    }[schedule]
    if not warmup_steps:
        return after_warmup
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))  # not from 0: a wasted step
    return optax.join_schedules([warmup, after_warmup], [warmup_steps])


def sgd(
    learning_rate: optax.Schedule, settings: OptimizerSettings, decayed: Mask
) -> tuple[optax.GradientTransformation, ...]:
    """Return the transformations of SGD with momentum.

    Args:
      learning_rate: schedule.
      settings: `weight_decay` (L2, added to the gradient) and `momentum`.
      decayed: mask of the parameters with weight decay.
    """
    decay = optax.add_decayed_weights(settings.weight_decay, mask=decayed)
    return decay, optax.sgd(learning_rate, momentum=settings.momentum)


def adamw(
    learning_rate: optax.Schedule, settings: OptimizerSettings, decayed: Mask
) -> tuple[optax.GradientTransformation, ...]:
    """Return AdamW with beta2 0.999 and epsilon 1e-8.

    Args:
      learning_rate: schedule.
      settings: `momentum` is beta1; `weight_decay` is decoupled and multiplied by the learning rate.
      decayed: mask of the parameters with weight decay.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101).
    """
    return (optax.adamw(learning_rate, b1=settings.momentum, weight_decay=settings.weight_decay, mask=decayed),)


OPTIMIZERS: dict[str, Callable[..., tuple[optax.GradientTransformation, ...]]] = {"sgd": sgd, "adamw": adamw}
"""Config value of `optimizer` -> function (learning rate, settings, weight-decay mask) -> transformations to chain."""


def build_optimizer(
    settings: OptimizerSettings, model: NetworkContract, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the optimizer of a network's parameters, and its learning rate as a function of the step.

    Args:
      settings: settings of the optimizer.
      model: the network, for the roles of its parameters and its frozen layers.
      steps_per_epoch: to convert epochs to steps.
    """
    schedule = learning_rate_schedule(
        settings.schedule,
        peak=settings.learning_rate,
        total_steps=settings.steps or settings.epochs * steps_per_epoch,
        warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
        drop_every=settings.step_epochs * steps_per_epoch,
        drop_factor=settings.step_factor,
        power=settings.poly_power,
    )
    roles = ("kernel", *(("scale",) if settings.decay_scale else ()), *(("shift",) if settings.decay_shift else ()))
    steps = OPTIMIZERS[settings.optimizer](schedule, settings, role_mask(model, *roles))
    if settings.bias_lr_mult != 1:
        steps += (optax.masked(optax.scale(settings.bias_lr_mult), role_mask(model, "bias")),)
    optimizer = optax.chain(*steps)
    if settings.encoder_lr_mult != 1:
        optimizer = scale_layers(optimizer, encoder_layers(model), settings.encoder_lr_mult)
    if frozen := frozen_layers(model):
        optimizer = without_layers(optimizer, frozen)
    return optimizer, schedule


def scale_layers(
    optimizer: optax.GradientTransformation, layers: frozenset[str], factor: float
) -> optax.GradientTransformation:
    """Multiply the updates, and so the learning rate, of some layers by a factor."""

    def mask(params: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
        return {layer: dict.fromkeys(parts, layer in layers) for layer, parts in params.items()}

    return optax.chain(optimizer, optax.masked(optax.scale(factor), mask))


def without_layers(optimizer: optax.GradientTransformation, layers: frozenset[str]) -> optax.GradientTransformation:
    """Restrict an optimizer to the trainable layers, so that it keeps no state for frozen ones.

    `init` and `update` take all parameters; gradients and updates contain only the trainable layers.

    Args:
      optimizer: optimizer of the trainable layers.
      layers: the frozen ones.
    """

    def trainable(params):
        return {layer: parts for layer, parts in params.items() if layer not in layers}

    def init(params):
        return optimizer.init(trainable(params))

    def update(grads, state, params):
        return optimizer.update(grads, state, trainable(params))

    return optax.GradientTransformation(init, update)
