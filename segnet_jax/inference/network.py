"""The trained network that `segnet_jax.load` and the commands use."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.constants import Pixels
from segnet_jax.data.labels.classes import ClassTable, Color
from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.preprocessing import Preprocessing, normalize
from segnet_jax.nn.segnet import SegNet
from segnet_jax.training import checkpoint_folders
from segnet_jax.training.restore_network import Restored


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained network that segments images of any size.

    Attributes:
      model: the network, with each BatchNorm folded into its convolution.
      variables: variables of the model, float32.
      preprocessing: input normalization, applied by `forward`.
      classes: class names and colors, in the order of the class ids.
      config: config of the run.
      step: training step of the checkpoint.
      data: split -> fingerprint of the training dataset; {} if unknown.
    """

    model: SegNet
    variables: dict[str, Any]
    preprocessing: Preprocessing
    classes: ClassTable
    config: Config
    step: int
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, in the order of the class ids."""
        return self.classes.names

    @property
    def colors(self) -> tuple[Color, ...]:
        """Class colors, RGB 0..255, in the order of the class ids."""
        return self.classes.colors

    def forward(self, variables: dict[str, Any], images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Compute logits as a pure function of the variables, to be jitted or exported.

        Args:
          variables: variables of the model.
          images: uint8 or float [B,H,W,3] RGB, 0..255, or in the format of `pixels`.
          keys: dropout keys, one per image, [B]; None disables dropout.

        Returns:
          Logits, float32 [B,H,W,C].
        """
        normalized = normalize(images, self.preprocessing, self.model.dtype)
        return self.model.apply(variables, normalized, train=False, keys=keys)

    def logits(self, images: np.ndarray) -> jax.Array:
        """Return logits, float32 [B,H,W,C], of images uint8 [B,H,W,3] or [H,W,3]; compiled once per shape.

        Images that are not RGB have the format of `pixels`.
        """
        return self._logits(self.variables, _as_batch(images, self.pixels))

    @property
    def pixels(self) -> Pixels:
        """Pixel format of the network's images."""
        return Pixels(self.config.channels, int(self.config.image_bits))

    @cached_property
    def _logits(self) -> Callable:
        return jax.jit(self.forward)


def folded(restored: Restored, config: Config) -> Network:
    """Return the network for inference, with each BatchNorm folded into its convolution."""
    model = restored.model.clone(folded=True)
    variables = fold_batch_norm(restored.variables, restored.model)
    preprocessing = checkpoint_folders.preprocessing_of(restored.meta)
    about = restored.classes, config, restored.meta["step"], restored.meta.get("data", {})
    return Network(model, variables, preprocessing, *about)


def unfolded(restored: Restored, config: Config) -> Network:
    """Return the network as `evaluate` applies it, without folding, so that scores are bit-identical."""
    preprocessing = checkpoint_folders.preprocessing_of(restored.meta)
    about = restored.classes, config, restored.meta["step"], restored.meta.get("data", {})
    return Network(restored.model, restored.variables, preprocessing, *about)


def _as_batch(images: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Return images [B,H,W,C] or [H,W,C] as [B,H,W,C].

    Raises:
      ValueError: If they are anything else.
    """
    images = np.asarray(images)
    dtype, channels = pixels.dtype, pixels.channels
    if images.dtype != dtype or images.ndim not in (3, 4) or images.shape[-1] != channels or not images.size:
        expected = f"{dtype} [B,H,W,{channels}] or [H,W,{channels}]"
        raise ValueError(f"images must be {expected}, got {images.dtype} {list(images.shape)}")
    return images if images.ndim == 4 else images[None]
