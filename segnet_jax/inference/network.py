"""A trained network, from its run folder alone: what `segnet_jax.load` gives, and what the commands take from a run."""

import dataclasses
import pathlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.config.files import override
from segnet_jax.data.labels.classes import ClassTable, Color
from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.preprocessing import Preprocessing, normalize
from segnet_jax.nn.segnet import SegNet
from segnet_jax.system.errors import UserError
from segnet_jax.training import checkpoint_folders
from segnet_jax.training.devices import start_devices
from segnet_jax.training.restored import Asked, Restored, restore


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained network, ready to label images of any size.

    Attributes:
      model: the network, each BatchNorm folded into its convolution.
      variables: the model's, float32.
      preprocessing: what it expects of an image; `forward` sees to it.
      classes: names and colours; a class's id is its place.
      config: of its run.
      step: finished steps of the checkpoint.
    """

    model: SegNet
    variables: dict[str, Any]
    preprocessing: Preprocessing
    classes: ClassTable
    config: Config
    step: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their ids."""
        return self.classes.names

    @property
    def colors(self) -> tuple[Color, ...]:
        """RGB 0..255 of each class."""
        return self.classes.colors

    def forward(self, variables: dict[str, Any], images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """The network as a pure function of its variables, to be jitted or exported.

        Args:
          variables: as the attribute.
          images: uint8 or float [B,H,W,3] RGB, 0..255.
          keys: of dropout, one for each image, [B]; without them nothing is dropped.

        Returns:
          Logits, float32 [B,H,W,C].
        """
        seen = normalize(images, self.preprocessing, self.model.dtype)
        return self.model.apply(variables, seen, train=False, keys=keys)

    def logits(self, images: np.ndarray) -> jax.Array:
        """Logits, float32 [B,H,W,C], of images as `predict` takes them; compiled once for each shape."""
        return self._logits(self.variables, _batch_of(images))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Labels every pixel; compiled once for each shape.

        Args:
          images: uint8 [B,H,W,3] RGB, or [H,W,3] for a single one, of any size.

        Returns:
          Class ids, uint8 [B,H,W], or [H,W].

        Raises:
          ValueError: for anything else.
        """
        predictions = np.asarray(self._predict(self.variables, _batch_of(images)))
        return predictions if np.ndim(images) == 4 else predictions[0]

    @cached_property
    def _logits(self) -> Callable:
        return jax.jit(self.forward)

    @cached_property
    def _predict(self) -> Callable:
        return jax.jit(lambda *args: jnp.argmax(self.forward(*args), axis=-1).astype(jnp.uint8))


def load(run: str | pathlib.Path, checkpoint: Asked = "result", precision: str = "auto") -> Network:
    """Loads a run's network for inference.

    Args:
      run: the folder that a training left.
      checkpoint: the best by validation mIoU, the newest, or the one of the two that the run's result is of.
      precision: of activations: float32, bfloat16, float16, or auto: what suits the device.

    Raises:
      UserError: there is no such run, no checkpoint in it, or no such checkpoint or precision.
      NoCheckpoint: none of its checkpoints is whole.
    """
    if checkpoint not in get_args(Asked):
        raise UserError(f"checkpoint must be one of {', '.join(get_args(Asked))}, got {checkpoint!r}")
    here = {"devices": "1", "fake_devices": 0, "precision": precision}
    config = override(files.read_run(run), here, source="segnet_jax.load")
    devices, precision = start_devices(config)
    return folded(restore(str(run), config, checkpoint, devices, precision), config)


def folded(restored: Restored, config: Config) -> Network:
    """The network for inference: each BatchNorm folded into its convolution."""
    model = restored.model.clone(folded=True)
    variables = fold_batch_norm(restored.variables, restored.model)
    preprocessing = checkpoint_folders.preprocessing_of(restored.meta)
    return Network(model, variables, preprocessing, restored.classes, config, restored.meta["step"])


def unfolded(restored: Restored, config: Config) -> Network:
    """The network as `evaluate` applies it: the same arithmetic, so that scores are equal to the last digit."""
    preprocessing = checkpoint_folders.preprocessing_of(restored.meta)
    return Network(restored.model, restored.variables, preprocessing, restored.classes, config, restored.meta["step"])


def _batch_of(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3 or not images.size:
        raise ValueError(f"images must be uint8 [B,H,W,3] or [H,W,3], got {images.dtype} {list(images.shape)}")
    return images if images.ndim == 4 else images[None]
