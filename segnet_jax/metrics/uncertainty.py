"""How unsure a network is of each pixel, from what it says of one image under different dropout.

Source: Bayesian SegNet (arXiv 1511.02680) and `test_bayesian_segnet.py` for mean and variance; Gal, Uncertainty in Deep
Learning (2016), section 3.3, for entropy and mutual information.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Uncertainty:
    """What T samples say of each pixel.

    Attributes:
      mean: float32 [...,C], the mean of the samples' probabilities.
      variance: float32 [...], over samples, the mean of the classes' variances, as the tutorial's script draws it.
      entropy: float32 [...], of the mean, in nats: how unsure the prediction is, for whatever reason.
      information: float32 [...], the entropy of the mean less the mean of the entropies, in nats: how much the samples
        disagree, which more training images could mend. Also called mutual information or BALD.
    """

    mean: jax.Array
    variance: jax.Array
    entropy: jax.Array
    information: jax.Array


jax.tree_util.register_dataclass(Uncertainty)


def uncertainty(probabilities: jax.Array) -> Uncertainty:
    """Sums samples up.

    Args:
      probabilities: float32 [T,...,C], each sample's, summing to 1 over classes.
    """
    mean = probabilities.mean(axis=0)
    total = entropy(mean)
    return Uncertainty(
        mean=mean,
        variance=probabilities.var(axis=0).mean(axis=-1),
        entropy=total,
        information=jnp.maximum(total - entropy(probabilities).mean(axis=0), 0),  # rounding could leave it below zero
    )


def entropy(probabilities: jax.Array) -> jax.Array:
    """Entropy of [...,C] over classes, in nats: 0 to log(C); a class of probability 0 adds nothing."""
    return jax.scipy.special.entr(probabilities).sum(axis=-1)
