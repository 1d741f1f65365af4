"""Calibration error, and accuracy over coverage (selective prediction).

Both are computed on the host from int64 histograms of a whole split.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax.constants import VOID

BINS = 10_000
"""Number of equal-width bins of confidence or uncertainty; a pixel takes the value of its bin's center."""
SHOWN_BINS = 15
"""Number of equal-width bins of the calibration error and the reliability diagram, as in Guo et al. 2017."""
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Fractions of the pixels that remain after the most uncertain ones are dropped."""


def count_in_bins(
    label: jax.Array, prediction: jax.Array, value: jax.Array, largest: float, bins: int = BINS
) -> dict[str, jax.Array]:
    """Count all labeled pixels and the correctly predicted ones in bins of a value.

    Args:
      label: uint8 [...], class ids or VOID, which is not counted.
      prediction: uint8 [...].
      value: float32 [...], from 0 to `largest`.
      largest: upper end of the last bin.
      bins: number of bins N.

    Returns:
      "pixels" and "right", int32 [N].
    """
    fraction = jnp.clip(value.astype(jnp.float32) / largest, 0, 1).ravel()
    known = (label != VOID).ravel()
    place = jnp.where(known, jnp.minimum((fraction * bins).astype(jnp.int32), bins - 1), bins)
    right = (label == prediction).ravel()  # no prediction is VOID
    return {
        "pixels": jnp.bincount(place, length=bins + 1)[:-1].astype(jnp.int32),
        "right": jnp.bincount(place, weights=right.astype(jnp.int32), length=bins + 1)[:-1].astype(jnp.int32),
    }


@dataclass(frozen=True)
class Calibration:
    """A reliability diagram and its error.

    Attributes:
      pixels: int64 [N], labeled pixels in each confidence bin.
      confidence: float64 [N], their mean confidence; NaN in an empty bin.
      accuracy: float64 [N], the fraction predicted correctly; NaN in an empty bin.
      error: expected calibration error, the mean of |accuracy - confidence| over bins, weighted by pixels.
    """

    pixels: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(counts: dict[str, np.ndarray], bins: int = SHOWN_BINS) -> Calibration:
    """Compute the calibration error from counts by confidence.

    Args:
      counts: `count_in_bins` by confidence with `largest` 1, summed over the split. Each fine bin is merged into the
        coarse bin that contains its center.
      bins: N, the number of coarse bins.

    Raises:
      ValueError: If no labeled pixel was counted.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599), equation 5.
    """
    counts, fine = _checked(counts), len(counts["pixels"])
    middle = (np.arange(fine) + 0.5) / fine
    place = (middle * bins).astype(int)
    pixels, right, sums = (
        np.bincount(place, weights=weights, minlength=bins)
        for weights in (counts["pixels"], counts["right"], counts["pixels"] * middle)
    )
    with np.errstate(invalid="ignore"):  # empty bins become NaN on purpose
        confidence, accuracy = sums / pixels, right / pixels
    error = float(np.abs(right - sums).sum() / pixels.sum())
    return Calibration(pixels.astype(np.int64), confidence, accuracy, error)


def accuracy_over_coverage(
    counts: dict[str, np.ndarray], coverages: tuple[float, ...] = COVERAGES
) -> dict[float, float]:
    """Compute the accuracy of the pixels that remain after the most uncertain ones are dropped.

    Args:
      counts: `count_in_bins` by uncertainty, summed over the split. A bin that is only partly covered contributes the
        corresponding fraction of its counts.
      coverages: fractions of the labeled pixels to keep; above 0.

    Returns:
      Coverage -> accuracy.

    Raises:
      ValueError: If no labeled pixel was counted.
    """
    counts = _checked(counts)
    pixels, right = (np.concatenate([[0], np.cumsum(counts[name])]) for name in ("pixels", "right"))
    kept = np.asarray(coverages) * pixels[-1]
    inside, first = np.unique(pixels, return_index=True)  # empty bins add nothing
    return dict(zip(coverages, (np.interp(kept, inside, right[first]) / kept).tolist(), strict=True))


def _checked(counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the counts as int64; raise ValueError if all are zero."""
    counts = {name: np.asarray(values, np.int64) for name, values in counts.items()}
    if not counts["pixels"].any():
        raise ValueError("no labeled pixel was evaluated: every label is void")
    return counts
