"""Intermediate results of a network, and their differences from a reference."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from segnet_jax.nn.network_interface import NetworkInterface, collect_taps, num_stages

LOGITS = "logits"
_POOLING = "pooling "


def intermediates(model: NetworkInterface, variables: dict[str, Any], image: jax.Array) -> dict[str, jax.Array]:
    """Return a network's intermediate results by name; a pure function for `jax.jit`.

    Args:
      model: the network, folded or not.
      variables: variables of the model.
      image: normalized images, [B,H,W,3].

    Returns:
      The output of each convolution, the logits, and the code of each pooling (the index of the maximum per window).
    """
    logits, taps = collect_taps(model, variables, image, kinds=("convolution",))
    convolutions = {layer.name for layer in model.layers if layer.kind == "convolution"}
    results = {name: array for name, array in taps.items() if name in convolutions}
    codes = {f"{_POOLING}{n}": taps[f"code{n}"] for n in range(1, num_stages(model) + 1) if f"code{n}" in taps}
    return results | {LOGITS: logits} | codes


@dataclass(frozen=True)
class Difference:
    """Difference of arrays from a reference; adding two instances combines their arrays.

    Attributes:
      squares: sum of the squared differences.
      reference_squares: sum of the squared reference.
      largest: largest absolute difference.
      reference_largest: largest absolute value of the reference.
    """

    squares: float = 0.0
    reference_squares: float = 0.0
    largest: float = 0.0
    reference_largest: float = 0.0

    @classmethod
    def of(cls, found: np.ndarray, reference: np.ndarray) -> "Difference":
        """Return the difference of two arrays of any dtype, computed in float64."""
        found, reference = (np.asarray(array).astype(np.float64).ravel() for array in (found, reference))
        difference = found - reference
        return cls(
            float(difference @ difference),
            float(reference @ reference),
            float(np.abs(difference).max(initial=0)),
            float(np.abs(reference).max(initial=0)),
        )

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(
            self.squares + other.squares,
            self.reference_squares + other.reference_squares,
            max(self.largest, other.largest),
            max(self.reference_largest, other.reference_largest),
        )

    @property
    def relative(self) -> dict[str, float]:
        """The difference's "rms" and "largest" absolute value, relative to those of the reference."""
        rms = math.sqrt(self.squares / self.reference_squares) if self.reference_squares else math.nan
        return {"rms": rms, "largest": self.largest / self.reference_largest if self.reference_largest else math.nan}


def differences(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, Difference]:
    """Return the differences of convolution outputs and logits, in the order of `found`."""
    names = [name for name in found if not name.startswith(_POOLING)]
    return {name: Difference.of(found[name], reference[name]) for name in names}


def count_other_maxima(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Count, for each pooling, the windows whose maximum is at another pixel, and all windows; int [2]."""
    names = [name for name in found if name.startswith(_POOLING)]
    return {name: np.array([(found[name] != reference[name]).sum(), found[name].size]) for name in names}
