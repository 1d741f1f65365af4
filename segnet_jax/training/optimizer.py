"""SGD with momentum or AdamW, factors by kind of parameter, frozen stages, and the learning rate's course.

To add an optimizer, add a function to `OPTIMIZERS` and its name to the config's field `optimizer`. A setting of its own
is a field of `OptimizerSettings` and one of the config, of one name.
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
    """What an optimizer and its learning rate are built from; each field is the config's field of the same name.

    Attributes:
      optimizer: a key of `OPTIMIZERS`.
      learning_rate: the highest.
      schedule: of the learning rate, as `learning_rate_schedule` has them.
      epochs: of the training.
      steps: of the training, instead of its epochs; 0: as the epochs make.
      warmup_epochs: of a linear rise at the start.
      step_epochs: of schedule "step", between two drops.
      step_factor: of schedule "step", of each drop.
      poly_power: of schedule "poly".
      momentum: of SGD; beta1 of AdamW.
      weight_decay: L2 on the kernels of convolutions, never on their biases.
      decay_scale: L2 on BatchNorm's scale too, as in SegNet-Tutorial's prototxts.
      decay_shift: L2 on BatchNorm's shift too, as in MATLAB (OffsetL2Factor 1).
      bias_lr_mult: learning-rate multiplier of the convolutions' biases; SegNet-Tutorial's is 2.
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
    """Builds the learning rate as a function of the step.

    Args:
      schedule: "constant"; "step", `drop_factor` each `drop_every` steps; "poly", the remaining share of the steps to
        the `power`; "cosine", half a wave down to 0.
      peak: the highest learning rate.
      total_steps: of the whole training, the warm-up included.
      warmup_steps: steps of a linear rise at the start; the course begins at its end.
      drop_every: steps.
      drop_factor: of each drop.
      power: of the poly course.
    """
    remaining = max(total_steps - warmup_steps, 1)
    course = {
        "constant": optax.constant_schedule(peak),
        "step": optax.exponential_decay(peak, drop_every, drop_factor, staircase=True),
        "poly": optax.polynomial_schedule(peak, 0.0, power, remaining),
        "cosine": optax.cosine_decay_schedule(peak, remaining),
    }[schedule]
    if not warmup_steps:
        return course
    rise = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))  # not from 0: that step is lost
    return optax.join_schedules([rise, course], [warmup_steps])


def sgd(
    learning_rate: optax.Schedule, settings: OptimizerSettings, decayed: Mask
) -> tuple[optax.GradientTransformation, ...]:
    """Return the transformations of SGD with momentum.

    Args:
      learning_rate: by the step.
      settings: `weight_decay` times the parameter is added to its gradient; `momentum` is the fraction of the last
        update that is kept.
      decayed: of the parameters that weight decay applies to.
    """
    decay = optax.add_decayed_weights(settings.weight_decay, mask=decayed)
    return decay, optax.sgd(learning_rate, momentum=settings.momentum)


def adamw(
    learning_rate: optax.Schedule, settings: OptimizerSettings, decayed: Mask
) -> tuple[optax.GradientTransformation, ...]:
    """Return AdamW; beta2 is 0.999 and epsilon 1e-8.

    Args:
      learning_rate: by the step.
      settings: `momentum` is beta1; `weight_decay` times the parameter and the learning rate is subtracted, whatever
        the gradient.
      decayed: of the parameters that weight decay applies to.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101).
    """
    return (optax.adamw(learning_rate, b1=settings.momentum, weight_decay=settings.weight_decay, mask=decayed),)


OPTIMIZERS: dict[str, Callable[..., tuple[optax.GradientTransformation, ...]]] = {"sgd": sgd, "adamw": adamw}
"""The config's name of each optimizer -> (learning rate, settings, weight-decay mask) -> transformations to chain."""


def build_optimizer(
    settings: OptimizerSettings, model: NetworkContract, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the optimizer of a network's parameters, and its learning rate as a function of the step.

    Args:
      settings: of the optimizer.
      model: the network, asked for the roles of its parameters and the frozen layers.
      steps_per_epoch: by which epochs are turned into steps.
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
    """Multiply the updates of some layers by a factor, which is a factor on their learning rate."""

    def chosen(params: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
        return {layer: dict.fromkeys(parts, layer in layers) for layer, parts in params.items()}

    return optax.chain(optimizer, optax.masked(optax.scale(factor), chosen))


def without_layers(optimizer: optax.GradientTransformation, layers: frozenset[str]) -> optax.GradientTransformation:
    """Restrict an optimizer to the layers that are not frozen: it keeps no state for those that are.

    Its `init` and `update` take all parameters as before; gradients and updates are of the trainable layers alone.

    Args:
      optimizer: of the trainable layers.
      layers: the frozen ones.
    """

    def trainable(params):
        return {layer: parts for layer, parts in params.items() if layer not in layers}

    def init(params):
        return optimizer.init(trainable(params))

    def update(grads, state, params):
        return optimizer.update(grads, state, trainable(params))

    return optax.GradientTransformation(init, update)
