"""The network to export, and the metadata of its files."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax.constants import RGB, Pixels
from segnet_jax.exporting.parity import PredictFn
from segnet_jax.nn.label_bits import classes_above_half
from segnet_jax.nn.network_interface import num_stages
from segnet_jax.nn.preprocessing import Preprocessing, normalize
from segnet_jax.nn.segnet import SegNet


@dataclass(frozen=True)
class ExportedNetwork:
    """A trained network, in float32.

    Attributes:
      model: the inference model, with BatchNorm folded into the convolutions.
      variables: variables of `model`.
      trained: "params" and "batch_stats" of the model as trained, before folding.
      preprocessing: image preprocessing.
      about: metadata of the files, JSON-serializable.
      size: height and width of the single image that an ONNX file of fixed size takes; None for any size.
      pixels: format of the images' pixels.
      multi_label: whether a pixel may have several classes; the prediction is then bits, see `nn.label_bits`.
    """

    model: SegNet
    variables: dict[str, Any]
    trained: dict[str, Any]
    preprocessing: Preprocessing
    about: dict[str, Any]
    size: tuple[int, int] | None = None
    pixels: Pixels = RGB
    multi_label: bool = False

    @property
    def smallest(self) -> int:
        """Smallest height and width that an exported network accepts: pooling with "floor" needs two rows."""
        return 2 ** num_stages(self.model) if self.model.pooling == "floor" else 1

    @property
    def shape(self) -> str:
        """Symbolic shape of the images, for `jax.export`."""
        return f"batch, height, width, {self.pixels.channels}"

    @property
    def images(self) -> str:
        """Description of the images, for comments in code."""
        rgb = " RGB" if self.pixels == RGB else ""
        return f"{self.pixels.dtype} [B,H,W,{self.pixels.channels}]{rgb}"

    @property
    def constraints(self) -> tuple[str, ...]:
        """Constraints on `shape`, for `jax.export`."""
        return tuple(f"{name} >= {self.smallest}" for name in ("height", "width"))

    @property
    def metadata(self) -> dict[str, str]:
        """`about` with values as ASCII JSON, because some formats store only text."""
        return {name: each if isinstance(each, str) else json.dumps(each) for name, each in self.about.items()}

    def predict(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Apply the network to export: a pure function with the weights as constants.

        Args:
          images: [B,H,W,C], in the format of `pixels`.

        Returns:
          prediction uint8 [B,H,W] and logits float32 [B,H,W,C].
        """
        return self._apply(self.model, self.variables, images)

    def _apply(self, model: SegNet, variables: dict[str, Any], images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(variables, normalize(images, self.preprocessing), train=False)
        if self.multi_label:
            return classes_above_half(logits), logits
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8), logits

    def jitted(self, model: SegNet, variables: dict[str, Any]) -> PredictFn:
        """Return a model's compiled prediction function on numpy arrays.

        The weights are passed as arguments, because XLA would spend minutes on folding constants.
        """
        call, variables = jax.jit(partial(self._apply, model)), jax.device_put(variables)
        return lambda images: tuple(map(np.asarray, call(variables, images)))


PLATFORMS = ("cpu", "cuda", "tpu")


_FITS = {
    "stretch": "stretched",
    "letterbox": "scaled to fit and centered, with padding of 0",
    "crop": "scaled to cover and cropped at the center",
}


def describe_images(height: int, width: int, fit: str) -> dict[str, Any]:
    """Return the size of training images and how they were resized to it, for an export's metadata."""
    note = (
        f"trained on images of {height}x{width} (height x width), {_FITS[fit]}: the file takes any size, but reaches "
        "the scores of the run only on images that are resized in the same way"
    )
    return {"height": height, "width": width, "fit": fit, "note": note}
