"""Exponential moving average (EMA) of the network's variables, which scores better and varies less than the last step.

Source: Polyak & Juditsky 1992; warm-up as in `tf.train.ExponentialMovingAverage` with `num_updates`.
"""

from typing import Any

import jax
import jax.numpy as jnp


def init_ema(variables: dict[str, Any]) -> dict[str, Any]:
    """Return the initial EMA: a copy of the network's variables."""
    return jax.tree.map(jnp.copy, variables)  # a copy, because the step donates both


def update_ema(old: dict[str, Any], variables: dict[str, Any], decay: float, num_steps: jax.Array) -> dict[str, Any]:
    """Return the EMA after one more step.

    BatchNorm's running statistics are averaged like the parameters. They are not the statistics of the averaged
    network; precise batch-norm statistics are.

    Args:
      old: the EMA before the step.
      variables: "params" and "batch_stats" after the step, float32.
      decay: limit of the decay, below 1.
      num_steps: int32, the number of earlier steps n. The decay is at most (1 + n) / (10 + n), so that the EMA does not
        start with a large weight on the initial parameters.
    """
    taken = num_steps.astype(jnp.float32)
    decay = jnp.minimum(jnp.float32(decay), (1 + taken) / (10 + taken))
    return jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, old, variables)
