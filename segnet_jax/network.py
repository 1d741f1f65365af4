"""A trained network, from its run folder alone: what `segnet_jax.load` gives, and what the commands take from a run."""

import dataclasses
import pathlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax import assembly, runs
from segnet_jax.config import Config
from segnet_jax.config_files import override
from segnet_jax.datasets.labels import ClassTable, Color
from segnet_jax.errors import UserError
from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.preprocessing import Preprocessing, normalise
from segnet_jax.nn.segnet import SegNet
from segnet_jax.reporting.saying import say
from segnet_jax.setting import start_devices
from segnet_jax.training import statistics
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.parallel import Devices, replicate
from segnet_jax.training.shelf import Which

Asked = Literal["result", Which]
"""A checkpoint as it is asked for; "result": the one that the run's own result is of."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds of a network.

    Attributes:
      model: as it was trained, BatchNorm apart.
      variables: its "params" and "batch_stats", replicated over the devices.
      meta: the checkpoint's JSON.
      recomputed: "batch_stats" that were taken afresh after the training, on the host; None where there are none.
      which: of the run's checkpoints it is.
    """

    model: SegNet
    variables: dict[str, Any]
    meta: dict[str, Any]
    recomputed: dict[str, Any] | None = None
    which: Which = "newest"

    @property
    def classes(self) -> ClassTable:
        """That it was trained on."""
        return ClassTable(tuple(self.meta["classes"]), tuple(map(tuple, self.meta["colors"])))


def restore(
    run: str,
    config: Config,
    asked: Asked,
    devices: Devices,
    precision: str,
    say: Callable[[str], None],
    averaged: bool = True,
) -> Restored:
    """Restores the network of a run's checkpoint, with the statistics that `--batch-norm` of the run names.

    Args:
      run: the folder.
      config: the run's; with `batch_norm` "recompute", statistics that were taken afresh replace the running ones.
      asked: the best or the newest checkpoint, or the one of the two that the run's result is of.
      devices: where its variables are to lie.
      precision: of activations, not "auto".
      say: told of damaged checkpoints.
      averaged: take the average of the parameters where the run has one, not those of the step itself.

    Raises:
      UserError: there is no checkpoint yet, or it holds another network than the config tells.
      NoCheckpoint: there were some, and none is whole.
    """
    which = asked
    if asked == "result":  # a best one was chosen by its score, which not every protocol allows
        which = "best" if config.result_checkpoint == "best" else "newest"
    folder = pathlib.Path(run) / "checkpoints"
    with Checkpoints(folder, devices, say=say) as checkpoints:
        step = checkpoints.latest(which)
        if step is None:
            raise UserError(f"no {which} checkpoint in {run}: it stopped before its first one")
        meta = checkpoints.read_meta(which, step)
        model = assembly.build_model(config, len(meta["classes"]), precision)
        optimizer, _ = assembly.build_optimizer(config, steps_per_epoch=1)  # for its state's shape alone
        shapes = assembly.state_shapes(model, optimizer, meta["precision"], config.average > 0)
        try:
            state = checkpoints.restore(which, step, shapes)
        except ValueError as error:  # the files are whole: Orbax tells of shapes or names that differ
            why = " ".join(str(error).split())[:200]
            raise UserError(f"the network of {run}/config.toml is not that of its checkpoint: {why}") from None
        variables = state.variables if averaged else state.replace(average=None).variables
        recomputed = statistics.kept(folder, checkpoints.sum_of_state(which, step), variables["batch_stats"])
    if state.average is not None and not averaged:  # they belong to the average
        recomputed = None
    if config.batch_norm == "recompute" and recomputed is None:
        say(f"the {which} checkpoint of {run} has no recomputed BatchNorm statistics: the running ones are used")
    elif config.batch_norm == "recompute":
        variables = variables | {"batch_stats": replicate(recomputed, devices)}
    return Restored(model, variables, meta, recomputed, which)


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
        seen = normalise(images, self.preprocessing, self.model.dtype)
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
    config = override(runs.read_run(run), here, source="segnet_jax.load")
    devices, precision = start_devices(config, say)
    return folded(restore(str(run), config, checkpoint, devices, precision, say), config)


def folded(restored: Restored, config: Config) -> Network:
    """The network for inference: each BatchNorm folded into its convolution."""
    model = restored.model.clone(folded=True)
    variables = fold_batch_norm(restored.variables, model.batch_norm_epsilon)
    preprocessing = runs.preprocessing_of(restored.meta)
    return Network(model, variables, preprocessing, restored.classes, config, restored.meta["step"])


def unfolded(restored: Restored, config: Config) -> Network:
    """The network as `evaluate` applies it: the same arithmetic, so that scores are equal to the last digit."""
    preprocessing = runs.preprocessing_of(restored.meta)
    return Network(restored.model, restored.variables, preprocessing, restored.classes, config, restored.meta["step"])


def _batch_of(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3 or not images.size:
        raise ValueError(f"images must be uint8 [B,H,W,3] or [H,W,3], got {images.dtype} {list(images.shape)}")
    return images if images.ndim == 4 else images[None]
