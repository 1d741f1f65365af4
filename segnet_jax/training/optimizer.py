"""SGD with momentum or AdamW, factors by kind of parameter, frozen stages, and the learning rate's course."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import optax

from segnet_jax.nn.segnet import encoder_stage

Schedule = Literal["constant", "step", "poly", "cosine"]


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
    learning_rate: optax.Schedule,
    momentum: float,
    weight_decay: float,
    decay_scale: bool = False,
    bias_lr_mult: float = 1.0,
    decay_shift: bool = False,
) -> optax.GradientTransformation:
    """SGD with momentum; L2 pulls on convolution kernels, never on their biases; on BatchNorm as told.

    Args:
      learning_rate: by the step.
      momentum: share of the last update that goes on.
      weight_decay: times the parameter is added to its gradient.
      decay_scale: L2 pulls on BatchNorm's scale too, as in SegNet-Tutorial's prototxts.
      bias_lr_mult: factor on the learning rate of the convolutions' biases; there 2.
      decay_shift: L2 pulls on BatchNorm's shift too, as in MATLAB (OffsetL2Factor 1).
    """
    decay = optax.add_decayed_weights(weight_decay, mask=_decayed(decay_scale, decay_shift))
    return _with_bias_rate(bias_lr_mult, decay, optax.sgd(learning_rate, momentum=momentum))


def adamw(
    learning_rate: optax.Schedule,
    momentum: float,
    weight_decay: float,
    decay_scale: bool = False,
    bias_lr_mult: float = 1.0,
    decay_shift: bool = False,
) -> optax.GradientTransformation:
    """Build AdamW with the weight-decay mask of `sgd`; beta2 is 0.999 and epsilon 1e-8.

    Args:
      learning_rate: by the step.
      momentum: beta1.
      weight_decay: times the parameter and the learning rate is subtracted, whatever the gradient.
      decay_scale: as `sgd`.
      bias_lr_mult: as `sgd`.
      decay_shift: as `sgd`.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101).
    """
    adam = optax.adamw(learning_rate, b1=momentum, weight_decay=weight_decay, mask=_decayed(decay_scale, decay_shift))
    return _with_bias_rate(bias_lr_mult, adam)


OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def scale_encoder(optimizer: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
    """Multiply the encoder's updates by a factor, which is a factor on its learning rate."""
    encoder = partial(_where, lambda path: encoder_stage(path[0]) is not None)
    return optax.chain(optimizer, optax.masked(optax.scale(factor), encoder))


def of_trainable(optimizer: optax.GradientTransformation, frozen_stages: int) -> optax.GradientTransformation:
    """Restrict an optimizer to the layers that are not frozen: it keeps no state for those that are.

    Its `init` and `update` take all parameters as before; gradients and updates are of the trainable layers alone.
    """

    def trainable(params):
        stages = {layer: encoder_stage(layer) for layer in params}
        return {layer: params[layer] for layer, stage in stages.items() if stage is None or stage > frozen_stages}

    def init(params):
        return optimizer.init(trainable(params))

    def update(grads, state, params):
        return optimizer.update(grads, state, trainable(params))

    return optax.GradientTransformation(init, update)


def _decayed(decay_scale: bool, decay_shift: bool) -> Callable:
    """The mask of the parameters that weight decay applies to."""

    def is_decayed(path: list[str]) -> bool:
        is_shift = path[-1] == "bias" and path[-2].endswith("_bn")
        return path[-1] == "kernel" or (decay_scale and path[-1] == "scale") or (decay_shift and is_shift)

    return partial(_where, is_decayed)


def _with_bias_rate(bias_lr_mult: float, *steps: optax.GradientTransformation) -> optax.GradientTransformation:
    if bias_lr_mult == 1:
        return optax.chain(*steps)
    biases = partial(_where, lambda path: path[-1] == "bias" and not path[-2].endswith("_bn"))
    return optax.chain(*steps, optax.masked(optax.scale(bias_lr_mult), biases))


def _where(condition: Callable[[list[str]], bool], params) -> Any:
    """A tree that tells of each parameter whether its path, such as ["conv1_1_bn", "scale"], fulfils a condition."""
    return jax.tree_util.tree_map_with_path(lambda path, _: condition([part.key for part in path]), params)
