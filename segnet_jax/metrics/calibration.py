"""Whether a network that is 90 % sure is right nine times of ten, and how right it is where it is sure.

Both are derived from counts by bins, int64 on the host, summed over a whole split; each score divides once, at the end.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax.constants import VOID

BINS = 10_000
"""Of equal width, in which pixels are counted, by confidence or uncertainty; each then stands for its bin's middle."""
SHOWN_BINS = 15
"""Of equal width, of the calibration error and its diagram: Guo et al. 2017's number."""
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the pixels that are kept when the most uncertain ones are dropped."""


def count_in_bins(
    label: jax.Array, prediction: jax.Array, value: jax.Array, largest: float, bins: int = BINS
) -> dict[str, jax.Array]:
    """Counts labelled pixels by a value, and how many of them are right.

    Args:
      label: uint8 [...], class ids or VOID, which does not count.
      prediction: uint8 [...].
      value: float32 [...], 0 to `largest`.
      largest: the value that the last bin ends with.
      bins: N.

    Returns:
      "pixels" and "right", int32 [N].
    """
    share = jnp.clip(value.astype(jnp.float32) / largest, 0, 1).ravel()
    known = (label != VOID).ravel()
    place = jnp.where(known, jnp.minimum((share * bins).astype(jnp.int32), bins - 1), bins)
    right = (label == prediction).ravel()  # no prediction is VOID
    return {
        "pixels": jnp.bincount(place, length=bins + 1)[:-1].astype(jnp.int32),
        "right": jnp.bincount(place, weights=right.astype(jnp.int32), length=bins + 1)[:-1].astype(jnp.int32),
    }


@dataclass(frozen=True)
class Calibration:
    """Confidence beside accuracy, in bins of confidence.

    Attributes:
      pixels: int64 [N], labelled pixels in each bin.
      confidence: float64 [N], their mean confidence; NaN in an empty bin.
      accuracy: float64 [N], the share that is right; NaN likewise.
      error: the expected calibration error: the mean of |accuracy - confidence| over bins, weighted by pixels.
    """

    pixels: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(counts: dict[str, np.ndarray], bins: int = SHOWN_BINS) -> Calibration:
    """From the counts by confidence to the calibration error.

    Args:
      counts: of `count_in_bins` by confidence, with `largest` 1, summed over the split; a fine bin goes to the coarse
        one that holds its middle.
      bins: how many to compare in.

    Raises:
      ValueError: no labelled pixel was counted.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599), equation 5.
    """
    counts, fine = _checked(counts), len(counts["pixels"])
    middle = (np.arange(fine) + 0.5) / fine
    place = (middle * bins).astype(int)
    pixels, right, sums = (
        np.bincount(place, weights=weights, minlength=bins)
        for weights in (counts["pixels"], counts["right"], counts["pixels"] * middle)
    )
    with np.errstate(invalid="ignore"):  # 0/0 of an empty bin, which becomes NaN on purpose
        confidence, accuracy = sums / pixels, right / pixels
    error = float(np.abs(right - sums).sum() / pixels.sum())
    return Calibration(pixels.astype(np.int64), confidence, accuracy, error)


def accuracy_over_coverage(
    counts: dict[str, np.ndarray], coverages: tuple[float, ...] = COVERAGES
) -> dict[float, float]:
    """The share of right pixels among those that are kept when the most uncertain are dropped.

    Args:
      counts: of `count_in_bins` by uncertainty, summed over the split. Of the bin in which a coverage ends, a part is
        kept, as right as the whole of it.
      coverages: shares of the labelled pixels that are kept, above 0.

    Returns:
      Coverage -> accuracy.

    Raises:
      ValueError: no labelled pixel was counted.
    """
    counts = _checked(counts)
    pixels, right = (np.concatenate([[0], np.cumsum(counts[name])]) for name in ("pixels", "right"))
    kept = np.asarray(coverages) * pixels[-1]
    inside, first = np.unique(pixels, return_index=True)  # empty bins add nothing
    return dict(zip(coverages, (np.interp(kept, inside, right[first]) / kept).tolist(), strict=True))


def _checked(counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The counts as int64."""
    counts = {name: np.asarray(values, np.int64) for name, values in counts.items()}
    if not counts["pixels"].any():
        raise ValueError("no labelled pixel was evaluated: every label is void")
    return counts
