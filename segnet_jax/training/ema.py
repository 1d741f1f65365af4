"""A running mean of the parameters over the steps, which scores better than the last step's and is steadier.

Source: Polyak & Juditsky 1992; as an exponential mean with TensorFlow's warm-up, `tf.train.ExponentialMovingAverage`
given `num_updates`.
"""

from typing import Any

import jax
import jax.numpy as jnp


def init_ema(variables: dict[str, Any]) -> dict[str, Any]:
    """The average before the first step: a copy of the network's variables."""
    return jax.tree.map(jnp.copy, variables)  # no shared memory: the step takes over that of both


def update_ema(old: dict[str, Any], variables: dict[str, Any], share: float, num_steps: jax.Array) -> dict[str, Any]:
    """The average after one more step.

    BatchNorm's running statistics are averaged with the parameters, by the same weights: they are those of the networks
    that the average is made of. Those of the averaged network itself are found by recomputing them.

    Args:
      old: the average before the step.
      variables: the network's after it, "params" and "batch_stats", float32.
      share: of the old average that is kept in the long run, below 1.
      num_steps: int32, the steps taken before. Early on less is kept, (1 + n) / (10 + n), so that the first parameters
        are soon forgotten.
    """
    taken = num_steps.astype(jnp.float32)
    kept = jnp.minimum(jnp.float32(share), (1 + taken) / (10 + taken))
    return jax.tree.map(lambda mean, new: kept * mean + (1 - kept) * new, old, variables)
