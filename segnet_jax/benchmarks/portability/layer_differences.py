"""What each convolution and each pooling of a network gives, and how far that is from a reference."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from segnet_jax.nn.contract import NetworkContract, collect_taps, num_stages

LOGITS = "logits"
_POOLING = "pooling "


def intermediates(model: NetworkContract, variables: dict[str, Any], image: jax.Array) -> dict[str, jax.Array]:
    """What a network computes on its way, by name: a pure function, to be jitted.

    Args:
      model: in any form.
      variables: the model's.
      image: [B,H,W,3] as the network expects it.

    Returns:
      The result of each convolution, the logits, and of each pooling the codes: which pixel of a window it chose.
    """
    logits, taps = collect_taps(model, variables, image, kinds=("convolution",))
    convolutions = {layer.name for layer in model.layers if layer.kind == "convolution"}
    results = {name: array for name, array in taps.items() if name in convolutions}
    codes = {f"{_POOLING}{n}": taps[f"code{n}"] for n in range(1, num_stages(model) + 1) if f"code{n}" in taps}
    return results | {LOGITS: logits} | codes


@dataclass(frozen=True)
class Difference:
    """How far arrays are from a reference; differences of several arrays add up to that of all of them.

    Attributes:
      squares: sum of the squared differences.
      reference_squares: sum of the reference's squares.
      largest: difference.
      reference_largest: absolute value of the reference.
    """

    squares: float = 0.0
    reference_squares: float = 0.0
    largest: float = 0.0
    reference_largest: float = 0.0

    @classmethod
    def of(cls, found: np.ndarray, reference: np.ndarray) -> "Difference":
        """Of two arrays; computed in float64, whatever they are in."""
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
        """As "rms", of the reference's root mean square, and "largest", of its largest absolute value."""
        rms = math.sqrt(self.squares / self.reference_squares) if self.reference_squares else math.nan
        return {"rms": rms, "largest": self.largest / self.reference_largest if self.reference_largest else math.nan}


def differences(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, Difference]:
    """Of each convolution and of the logits, in the order of the first."""
    names = [name for name in found if not name.startswith(_POOLING)]
    return {name: Difference.of(found[name], reference[name]) for name in names}


def other_choices(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of each pooling, int [2]: windows that chose another pixel than those of the reference, and all of them."""
    names = [name for name in found if name.startswith(_POOLING)]
    return {name: np.array([(found[name] != reference[name]).sum(), found[name].size]) for name in names}
