"""The problem on which JAX and PyTorch are compared: initial variables and a batch of rendered scenes, from a seed."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from machine import Machine

from segnet_jax.config.fields import Config
from segnet_jax.data.synthetic.street_scenes import street_scenes
from segnet_jax.nn.segnet import SegNet
from segnet_jax.training import build_model
from segnet_jax.training.state import variable_shapes

NUM_CLASSES = 11
LOSS_SCALE = 1024.0
"""Initial float16 loss scale of both sides, small enough that no step is skipped."""

Parameters = dict[tuple[str, ...], np.ndarray]
"""(module, name) in Flax's naming -> array."""


@dataclass(frozen=True)
class Problem:
    """The problem on which JAX and PyTorch are compared.

    Attributes:
      config: sizes, learning rate, momentum, weight decay.
      variables: the network's initial variables, in Flax's form.
      image: uint8 [B,H,W,3].
      label: uint8 [B,H,W], with some VOID.
      class_weights: float32 [C], all different.
    """

    config: Config
    variables: dict[str, Any]
    image: np.ndarray
    label: np.ndarray
    class_weights: np.ndarray

    def model(self, machine: Machine) -> SegNet:
        """Return our network, for training."""
        return build_model.build_model(self.config, NUM_CLASSES, machine.precision)


def draw_problem(batch_size: int, image_size: tuple[int, int], width: float) -> Problem:
    """Draw a problem; the optimizer's settings are the defaults of `segnet_jax.train`."""
    config = Config(devices="1", batch_size_per_device=batch_size, image_size=image_size, width=width, init="none")
    scenes = street_scenes(batch_size, 1, *image_size, seed=0).splits["train"]
    image, label = (np.stack(arrays) for arrays in zip(*map(scenes.read, range(batch_size)), strict=True))
    label[:, : image_size[0] // 8] = 255  # VOID
    model = build_model.build_model(config, NUM_CLASSES, "float32")
    class_weights = np.linspace(0.5, 2, NUM_CLASSES, dtype=np.float32)
    return Problem(config, _draw_variables(model), image, label, class_weights)


def _draw_variables(model: SegNet) -> dict[str, Any]:
    """Draw all variables, including scales and statistics, whose usual 1 and 0 would hide mistakes.

    BatchNorm's bias is drawn around 1, so that most values pass the ReLU. Otherwise rounding, which moves some values
    across zero, would grow from layer to layer until the gradients of two equal networks differ by a quarter.
    """
    rng = np.random.default_rng(0)

    def draw(path, array):
        module, name = (key.key for key in path[-2:])
        match name:
            case "kernel":
                values = rng.normal(0, np.sqrt(2 / np.prod(array.shape[:-1])), array.shape)
            case "bias" | "mean":
                values = rng.normal(1.0 if name == "bias" and module.endswith("_bn") else 0.0, 0.1, array.shape)
            case "scale" | "var":
                values = rng.uniform(0.5, 1.5, array.shape)
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(model))
