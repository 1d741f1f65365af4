"""What is exported: a trained network, and what its files say of it."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax.exporting.parity import Label
from segnet_jax.nn.contract import num_stages
from segnet_jax.nn.preprocessing import Preprocessing, normalize
from segnet_jax.nn.segnet import SegNet


@dataclass(frozen=True)
class Subject:
    """A trained network, in float32.

    Attributes:
      model: for inference, each BatchNorm folded into its convolution.
      variables: the model's.
      trained: the variables as they were trained, "params" and "batch_stats", of the model that is not folded.
      preprocessing: what the network expects of an image.
      about: what the files say of it: names and values that have a JSON form.
    """

    model: SegNet
    variables: dict[str, Any]
    trained: dict[str, Any]
    preprocessing: Preprocessing
    about: dict[str, Any]

    @property
    def smallest(self) -> int:
        """The least height and width that an exported network takes: each pooling with "floor" must find two rows."""
        return 2 ** num_stages(self.model) if self.model.pooling == "floor" else 1

    @property
    def shape(self) -> str:
        """The shape of images of any number and size, in JAX's words."""
        return "batch, height, width, 3"

    @property
    def constraints(self) -> tuple[str, ...]:
        """What is asked of that shape, in JAX's words."""
        return tuple(f"{name} >= {self.smallest}" for name in ("height", "width"))

    @property
    def metadata(self) -> dict[str, str]:
        """`about` as text, which is all that some files take; other letters than English ones are escaped."""
        return {name: each if isinstance(each, str) else json.dumps(each) for name, each in self.about.items()}

    def label(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The network as it is exported, a pure function with the weights inside.

        Args:
          images: uint8 [B,H,W,3] RGB.

        Returns:
          prediction uint8 [B,H,W] and logits float32 [B,H,W,C].
        """
        return self.label_by(self.model, self.variables, images)

    def label_by(self, model: SegNet, variables: dict[str, Any], images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Likewise by a network of another form, folded or not, with weights from outside."""
        logits = model.apply(variables, normalize(images, self.preprocessing), train=False)
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8), logits

    def jitted(self, model: SegNet, variables: dict[str, Any]) -> Label:
        """Likewise, compiled, for images in numpy.

        The weights are arguments: as constants XLA would spend minutes on computing with them beforehand.
        """
        call, variables = jax.jit(partial(self.label_by, model)), jax.device_put(variables)
        return lambda images: tuple(map(np.asarray, call(variables, images)))


PLATFORMS = ("cpu", "cuda", "tpu")
