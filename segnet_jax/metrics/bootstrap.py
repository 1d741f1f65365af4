"""How far a score may be off by the choice of images: percentile bootstrap intervals.

Images are drawn anew, with replacement, as many as there are; their confusion matrices are added up and scored. Between
the percentiles of many such draws lies the interval. It takes images as independent of each other. Frames of a video
are not: CamVid's validation clip is 6.7 seconds at 15 images a second, so its interval is far too narrow for what a
network does on other roads. Nor does it hold the spread between trainings of several seeds.

Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
SCORES = ("miou", "mean_accuracy", "global_accuracy")
_MOST_CELLS = 2**22  # of the resampled matrices that are scored at once

Interval = tuple[float, float]


def intervals(
    confusions: Sequence[np.ndarray], *, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL
) -> dict[str, Interval]:
    """The interval of each score of a network, or of the mean of several networks on the same images.

    Args:
      confusions: of each network, integers [N,C,C], a matrix for each image, the images in the same order.
      resamples: draws of N images; each is taken for all networks alike.
      seed: of the draws.
      level: share of the draws that the interval holds.

    Returns:
      Score -> (low, high), as fractions; nothing where there are fewer than two images, or no labelled pixel.

    Raises:
      ValueError: the networks saw different numbers of images or classes.
    """
    matrices = np.stack([np.asarray(each) for each in confusions])  # raises where the shapes differ
    num_networks, num_images, size, _ = matrices.shape
    if num_images < 2 or not matrices.any():
        return {}
    flat = matrices.reshape(num_networks, num_images, size * size).astype(np.float64)  # exact up to 2^53
    draws, found = np.random.default_rng(seed), []
    at_once = max(1, _MOST_CELLS // max(num_networks * size * size, num_images))
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        times = draws.multinomial(num_images, np.full(num_images, 1 / num_images), count).astype(np.float64)
        summed = (times @ flat).reshape(num_networks, count, size, size)
        found.append(np.mean(_scores(summed), axis=1))  # over the networks
    drawn = np.concatenate(found, axis=1)  # [scores, resamples]
    ends = 100 * (1 - level) / 2
    low, high = np.nanpercentile(drawn, [ends, 100 - ends], axis=1)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(SCORES)}


def _scores(confusions: np.ndarray) -> np.ndarray:
    """What `confusion.scores` says of each matrix, [len(SCORES), ...]; NaN of one without a labelled pixel.

    A class without ground truth in a draw is left out of its means, as it is elsewhere.
    """
    right = np.diagonal(confusions, axis1=-2, axis2=-1)
    known, predicted = confusions.sum(axis=-1), confusions.sum(axis=-2)
    present = known > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = right / (known + predicted - right), right / known
        means = [np.where(present, each, 0).sum(axis=-1) / present.sum(axis=-1) for each in (iou, accuracy)]
        return np.stack([*means, right.sum(axis=-1) / known.sum(axis=-1)])
