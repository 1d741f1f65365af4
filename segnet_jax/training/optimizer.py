"""SGD with momentum, L2, factors by kind of parameter, and the learning rate's course."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import optax

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
) -> optax.GradientTransformation:
    """SGD with momentum; L2 pulls on convolution kernels, never on biases nor on BatchNorm's shift.

    Args:
      learning_rate: by the step.
      momentum: share of the last update that goes on.
      weight_decay: times the parameter is added to its gradient.
      decay_scale: L2 pulls on BatchNorm's scale too, as in SegNet-Tutorial's prototxts.
      bias_lr_mult: factor on the learning rate of the convolutions' biases; there 2.
    """
    decayed = {"kernel", "scale"} if decay_scale else {"kernel"}
    steps = [
        optax.add_decayed_weights(weight_decay, mask=partial(_where, lambda path: path[-1] in decayed)),
        optax.sgd(learning_rate, momentum=momentum),
    ]
    if bias_lr_mult != 1:
        biases = partial(_where, lambda path: path[-1] == "bias" and not path[-2].endswith("_bn"))
        steps.append(optax.masked(optax.scale(bias_lr_mult), biases))
    return optax.chain(*steps)


def _where(condition: Callable[[list[str]], bool], params) -> Any:
    """A tree that tells of each parameter whether its path, such as ["conv1_1_bn", "scale"], fulfils a condition."""
    return jax.tree_util.tree_map_with_path(lambda path, _: condition([part.key for part in path]), params)
