"""The network that `segnet_jax.load` returns."""

import pathlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from segnet_jax.config.files import override
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.inference.averaging import TTA, Views, average
from segnet_jax.inference.image_inputs import ImageLike, as_array, is_single, split_images
from segnet_jax.inference.network import Network, folded
from segnet_jax.inference.predictor import Predictor, Sizing
from segnet_jax.nn.label_bits import unpack
from segnet_jax.system.errors import UserError
from segnet_jax.training.choose_devices import start_devices
from segnet_jax.training.custom_objects import custom_objects
from segnet_jax.training.network_source import local_folder, read_network_config
from segnet_jax.training.restore_network import CheckpointChoice, restore


class TrainedNetwork(Network):
    """A trained network that predicts images of any kind; see `Network` for its attributes."""

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        size: Literal["trained", "native"] | tuple[int, int] = "trained",
        tta: TTA = "none",
        tta_scales: Sequence[float] = (1.0,),
    ) -> np.ndarray | list[np.ndarray]:
        """Return the class of every pixel at the images' original sizes, as the command `predict` does.

        Args:
          images: a path, a Pillow image, an array [H,W,3] RGB or [H,W] gray, uint8 0..255 or float 0..1; or several: an
            array [B,H,W,3], or a list whose images may differ in size. A network that is not for RGB takes
            images in the format of `pixels`.
          size: network input size: "trained" resizes as in training, "native" does not resize; or a height and width.
            The network is compiled once per size.
          tta: test-time augmentation: "flip" averages the probabilities over the image and its mirror image.
          tta_scales: factors of the network's input size to average over, such as (0.75, 1, 1.25).

        Returns:
          Class ids, uint8: [H,W] for a single image, [B,H,W] for an array of several, a list of [H,W] for a list.
          If a pixel may have several classes, bool [H,W,C] instead of [H,W].

        Raises:
          ValueError: If an image has another dtype, shape or range.
          UserError: If a file cannot be read, or the size, `tta` or a scale is out of range.
        """
        reading = self.config.exif, self.config.image_range, self.pixels
        arrays = [as_array(image, *reading) for image in split_images(images)]
        predictor = self._predictor(size, Views.of(tta, tta_scales))
        predictions = [predictor.predict([predictor.prepare(array)])[0].class_ids for array in arrays]
        if self.classes.multi_label:
            predictions = [unpack(each, len(self.classes)) for each in predictions]
        if is_single(images):
            return predictions[0]
        return predictions if isinstance(images, list | tuple) else np.stack(predictions)

    def __repr__(self) -> str:
        name, (height, width) = type(self.model).__name__, self.config.image_size
        return f"Network({name}, {len(self.classes)} classes, trained at {height}x{width}, step {self.step})"

    def _predictor(self, size, views: Views) -> Predictor:
        """Return the cached predictor for a size and views, with its compiled programs."""
        key = size, views
        if key not in self._predictors:
            sizing = Sizing.of(self.config, size, (0, 0), 0)
            self._predictors[key] = Predictor(average([self], views), choose_devices("1"), 1, sizing)
        return self._predictors[key]

    @cached_property
    def _predictors(self) -> dict:
        return {}


def load(
    run: str | pathlib.Path,
    checkpoint: CheckpointChoice = "result",
    precision: str = "auto",
    model: Callable[..., Any] | None = None,
    network: str = "",
) -> TrainedNetwork:
    """Load a trained network for inference.

    Args:
      run: a run folder, an exported folder (with `network.safetensors`), or a repository on the Hugging Face Hub that
        contains one, hf://OWNER/NAME.
      checkpoint: "best", "newest", or "result", whichever of these the run's result.json scores.
      precision: dtype of activations: "float32", "bfloat16", "float16", or "auto", the best one for the device.
      model: class of the network, if the run was trained with `segnet_jax.train(model=...)`.
      network: custom network that the run was trained with, such as "mine:build"; it is imported only if named here.

    Raises:
      UserError: If the network does not exist, cannot be downloaded or has no checkpoint, or an argument has an unknown
        value.
      NoCheckpoint: If no checkpoint of the run is intact.
    """
    if checkpoint not in get_args(CheckpointChoice):
        raise UserError(f"checkpoint must be one of {', '.join(get_args(CheckpointChoice))}, got {checkpoint!r}")
    run = local_folder(run)
    here = {"devices": "1", "fake_devices": 0, "precision": precision}
    config = override(read_network_config(run, network), here, source="segnet_jax.load")
    devices, precision = start_devices(config)
    trained = folded(restore(run, config, checkpoint, devices, precision, own=custom_objects(model)), config)
    return TrainedNetwork(**vars(trained))
