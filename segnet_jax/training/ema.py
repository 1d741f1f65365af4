"""Averages of the network's variables, which score better and vary less than the variables of the last step.

EMA: Polyak & Juditsky 1992; warm-up as in `tf.train.ExponentialMovingAverage` with `num_updates`.
SWA (stochastic weight averaging): Izmailov et al. 2018 (arXiv 1803.05407).
"""

from typing import Any

import jax
import jax.numpy as jnp


def init_ema(variables: dict[str, Any]) -> dict[str, Any]:
    """Return the initial average: a copy of the network's variables."""
    return jax.tree.map(jnp.copy, variables)  # a copy, because the step donates both


def update_ema(old: dict[str, Any], variables: dict[str, Any], decay: jax.Array) -> dict[str, Any]:
    """Return the average after one more step: decay * old + (1 - decay) * new.

    BatchNorm's running statistics are averaged like the parameters. They are not the statistics of the averaged
    network; precise batch-norm statistics are.
    """
    return jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, old, variables)


def ema_decay_at(num_steps: jax.Array, limit: float) -> jax.Array:
    """Return the decay of an exponential moving average after `num_steps` steps.

    It is the minimum of `limit` and (1 + num_steps) / (10 + num_steps), so that the average does not start with a large
    weight on the initial parameters.
    """
    taken = num_steps.astype(jnp.float32)
    return jnp.minimum(jnp.float32(limit), (1 + taken) / (10 + taken))


def swa_decay_at(step: jax.Array, first_step: int, steps_per_epoch: int) -> jax.Array:
    """Return the decay that makes the average the mean over all epoch ends since `first_step`.

    It is (k - 1) / k at the k-th epoch end, 1 between epoch ends, and 0 before the first one, so that the average is
    then the network itself.

    Args:
      step: int32, steps finished before this one.
      first_step: steps finished before the first of these epochs.
      steps_per_epoch: steps of an epoch.
    """
    taken = step + 1 - first_step
    count = jnp.maximum(taken // steps_per_epoch, 0).astype(jnp.float32)
    at_end = (count - 1) / jnp.maximum(count, 1)
    between = jnp.where(count > 0, jnp.float32(1), jnp.float32(0))
    return jnp.where((taken % steps_per_epoch == 0) & (count > 0), at_end, between)
