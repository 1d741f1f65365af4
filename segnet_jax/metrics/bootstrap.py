"""Percentile bootstrap intervals: the uncertainty of a score due to the choice of images.

Each draw resamples all images with replacement and scores the sum of their confusion matrices. The intervals assume
independent images. Video frames are not: CamVid's validation clip lasts 6.7 seconds at 15 images a second, so its
intervals are far too narrow for other roads. They also exclude the variation between training seeds.

Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

import math
from collections.abc import Sequence

import numpy as np

from segnet_jax.metrics.table import primary_metrics

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
LEVEL_TEXT = f"{100 * LEVEL:.0f} %"
_MOST_CELLS = 2**22  # maximum number of elements in one chunk of resampled matrices

Interval = tuple[float, float]


def intervals(
    confusions: Sequence[np.ndarray], *, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL
) -> dict[str, Interval]:
    """Compute the interval of each primary metric of a network, or of the mean over several networks.

    A class without ground truth in a draw is left out of that draw's means.

    Args:
      confusions: for each network, integers [N,C,C], one matrix per image, with the images in the same order.
      resamples: number of draws of N images; every network gets the same draws.
      seed: seed of the draws.
      level: fraction of the draws within the interval.

    Returns:
      Metric key -> (low, high) as fractions; empty with fewer than two images, or without labeled pixels.

    Raises:
      ValueError: If the networks have different numbers of images or classes.
    """
    matrices = np.stack([np.asarray(each) for each in confusions])  # raises if the shapes differ
    num_networks, num_images, *shape = matrices.shape
    size = math.prod(shape)
    if num_images < 2 or not matrices.any():
        return {}
    flat = matrices.reshape(num_networks, num_images, size).astype(np.float64)  # exact up to 2^53
    metrics = primary_metrics()
    rng, chunks = np.random.default_rng(seed), []
    chunk_size = max(1, _MOST_CELLS // max(num_networks * size, num_images))
    for start in range(0, resamples, chunk_size):
        count = min(chunk_size, resamples - start)
        times = rng.multinomial(num_images, np.full(num_images, 1 / num_images), count).astype(np.float64)
        summed = (times @ flat).reshape(num_networks, count, *shape)
        scored = np.stack([metric.function(summed) for metric in metrics.values()])
        chunks.append(np.mean(scored, axis=1))  # over the networks
    drawn = np.concatenate(chunks, axis=1)  # [metrics, resamples]
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail], axis=1)
    return {key: (float(low[i]), float(high[i])) for i, key in enumerate(metrics)}
