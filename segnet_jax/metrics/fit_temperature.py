"""Temperature scaling: divide all logits by one scalar that minimizes the labels' negative log-likelihood (NLL).

With b = 1 / temperature, the NLL of softmax(b * logits) is convex in b, so its minimum is where its slope is 0.

Source: Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599), section 4.2.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.constants import VOID

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_ROUNDS, _POINTS = 3, 17  # each round evaluates 17 factors and narrows the range to one of their 16 intervals


def nll_and_slope(logits: jax.Array, label: jax.Array, factors: jax.Array) -> jax.Array:
    """Sum the NLL and its derivative over the labeled pixels of each image, for several factors of the logits.

    Args:
      logits: float32 [B,H,W,C].
      label: uint8 [B,H,W], class ids or VOID, which is not counted.
      factors: inverse temperatures, float32 [K].

    Returns:
      float32 [B,K,2], (NLL, derivative).
    """
    known = label != VOID
    true = jnp.take_along_axis(logits, jnp.where(known, label, 0).astype(jnp.int32)[..., None], axis=-1)
    centered = logits - true  # the NLL is logsumexp(factor * centered)

    def at(factor: jax.Array) -> jax.Array:
        nll = jax.nn.logsumexp(factor * centered, axis=-1)
        slope = (jax.nn.softmax(factor * centered, axis=-1) * centered).sum(axis=-1)
        return jnp.stack([jnp.where(known, each, 0).sum(axis=(1, 2)) for each in (nll, slope)], axis=-1)

    return jnp.moveaxis(lax.map(at, factors), 0, 1)


def fit_temperature(slopes: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the temperature with the lowest NLL, between MIN_TEMPERATURE and MAX_TEMPERATURE.

    Args:
      slopes: function that maps factors, float32 [K], to the slopes of the NLL, summed over the split.
    """
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(_ROUNDS):
        factors = np.geomspace(low, high, _POINTS).astype(np.float32)
        found = np.asarray(slopes(factors), np.float64)
        rising = np.flatnonzero(found > 0)
        if not len(rising):
            return float(1 / factors[-1])
        if rising[0] == 0:
            return float(1 / factors[0])
        around = slice(rising[0] - 1, rising[0] + 1)
        (low, high), ends = factors[around].astype(np.float64), found[around]
    return float(1 / (low - ends[0] * (high - low) / (ends[1] - ends[0])))
