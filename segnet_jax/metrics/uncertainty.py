"""Per-pixel uncertainty from Monte Carlo dropout samples.

Source: Bayesian SegNet (arXiv 1511.02680) and `test_bayesian_segnet.py` for mean and variance; Gal, Uncertainty in Deep
Learning (2016), section 3.3, for entropy and mutual information.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Uncertainty:
    """Statistics of T samples.

    Attributes:
      mean: float32 [...,C], mean probabilities.
      variance: float32 [...], variance over samples, averaged over classes, as in the tutorial's script.
      entropy: float32 [...], entropy of the mean, in nats: the total uncertainty.
      information: float32 [...], mutual information (BALD), the entropy of the mean minus the mean of the entropies, in
        nats: the disagreement of the samples, which more training images could reduce.
    """

    mean: jax.Array
    variance: jax.Array
    entropy: jax.Array
    information: jax.Array


jax.tree_util.register_dataclass(Uncertainty)


def uncertainty(probabilities: jax.Array) -> Uncertainty:
    """Compute the uncertainty from T samples of probabilities, float32 [T,...,C], which sum to 1 over the classes."""
    mean = probabilities.mean(axis=0)
    total = entropy(mean)
    return Uncertainty(
        mean=mean,
        variance=probabilities.var(axis=0).mean(axis=-1),
        entropy=total,
        information=jnp.maximum(total - entropy(probabilities).mean(axis=0), 0),  # rounding could make it negative
    )


def entropy(probabilities: jax.Array) -> jax.Array:
    """Return the entropy of probabilities [...,C] over the classes, in nats from 0 to log(C)."""
    return jax.scipy.special.entr(probabilities).sum(axis=-1)
