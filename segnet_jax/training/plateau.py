"""The learning-rate schedule "plateau": reduce the rate when the training loss of an epoch stops improving.

Its state is part of the optimizer state: checkpoints store it, so a resumed run reduces the rate at the same step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

THRESHOLD = 1e-4  # relative improvement below which an epoch counts as not improved, as in PyTorch


class PlateauState(NamedTuple):
    """State of `reduce_on_plateau`.

    Attributes:
      scale: float32, factor of the learning rate.
      best: float32, lowest mean loss of an epoch.
      total: float32, sum of this epoch's losses.
      num_steps: int32, steps of this epoch.
      num_bad: int32, epochs since the last improvement or reduction.
    """

    scale: jax.Array
    best: jax.Array
    total: jax.Array
    num_steps: jax.Array
    num_bad: jax.Array


def reduce_on_plateau(factor: float, patience: int, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that multiplies updates, and thus the learning rate, by the scale in its state.

    `update` takes the step's loss as `value`. After more than `patience` epochs without an improvement of the mean
    loss, the scale is multiplied by `factor`.

    Source: the rule of `torch.optim.lr_scheduler.ReduceLROnPlateau`, on training losses.
    """

    def init(params: Any) -> PlateauState:
        largest = jnp.float32(jnp.finfo(jnp.float32).max)  # not infinite: checkpoints must be finite
        return PlateauState(jnp.float32(1), largest, jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def update(updates, state, params=None, *, value, **_):
        updates = jax.tree.map(lambda each: each * state.scale.astype(each.dtype), updates)
        state = state._replace(total=state.total + value, num_steps=state.num_steps + 1)
        after_epoch = _finish_epoch(state, factor, patience)
        is_last = state.num_steps >= steps_per_epoch
        return updates, jax.tree.map(lambda new, old: jnp.where(is_last, new, old), after_epoch, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _finish_epoch(state: PlateauState, factor: float, patience: int) -> PlateauState:
    mean = state.total / state.num_steps.astype(jnp.float32)
    is_better = mean < state.best * jnp.float32(1 - THRESHOLD)
    num_bad = jnp.where(is_better, 0, state.num_bad + 1)
    is_reduced = num_bad > patience
    return PlateauState(
        scale=jnp.where(is_reduced, state.scale * jnp.float32(factor), state.scale),
        best=jnp.where(is_better, mean, state.best),
        total=jnp.float32(0),
        num_steps=jnp.int32(0),
        num_bad=jnp.where(is_reduced, 0, num_bad),
    )


def find_plateau(opt_state: optax.OptState) -> PlateauState | None:
    """Return the plateau state inside an optimizer state, or None for other schedules."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda each: isinstance(each, PlateauState))
    return next((each for each in leaves if isinstance(each, PlateauState)), None)
