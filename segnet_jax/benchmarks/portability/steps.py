"""A config's steps for training, evaluation and inference, lowered for each platform, and what is told of them."""

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from segnet_jax.benchmarks.portability.lowering import by_name, lower, lower_mapped, with_named_state
from segnet_jax.benchmarks.portability.operation_counts import count_operations
from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline import device_resident
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.preprocessing import TORCH, Preprocessing, normalize
from segnet_jax.nn.segnet import SegNet
from segnet_jax.runs import run_folder
from segnet_jax.system.errors import UserError
from segnet_jax.training import build, checkpoint_folders
from segnet_jax.training.checkpoint_folders import CheckpointFolders
from segnet_jax.training.inputs import as_sent
from segnet_jax.training.state import variable_shapes
from segnet_jax.training.steps import eval_step, train_steps

logger = logging.getLogger(__name__)

STEPS = ("train", "evaluate", "infer")
_NUM_RECORDS = 16  # of a split that lies on the device; the program but for this size is the same for any


@dataclass(frozen=True, eq=False)
class Given:
    """What the steps hold besides the config; where operations are but counted, the number of classes is enough.

    Attributes:
      num_classes: of the network.
      preprocessing: what the network expects of an image.
      class_weights: float32 [C], of the loss; None: 1 for each.
      steps_per_epoch: by which the learning rate takes its course.
    """

    num_classes: int
    preprocessing: Preprocessing = TORCH
    class_weights: np.ndarray | None = None
    steps_per_epoch: int = 1

    @classmethod
    def of_run(cls, run: str, config: Config, num_devices: int) -> "Given":
        """As the newest checkpoint of a run says.

        Args:
          run: the folder.
          config: the run's, or one near it.
          num_devices: to train on.

        Raises:
          UserError: there is no checkpoint yet.
          NoCheckpoint: there were some, and none is whole.
        """
        shelf = CheckpointFolders(pathlib.Path(run) / "checkpoints", config.keep_checkpoints)
        step = shelf.find("newest")
        if step is None:
            raise UserError(f"no newest checkpoint in {run}: it stopped before its first one")
        meta, num_images = shelf.meta("newest", step), run_folder.num_training_images(run)
        if num_images is None and (config.schedule != "constant" or config.warmup_epochs):
            logger.info(
                f"note: {run} does not say how many images an epoch has: the learning rate takes one step for one"
            )
        at_once = num_devices * config.batch_size_per_device * config.grad_accum_steps
        return cls(
            len(meta["classes"]),
            checkpoint_folders.preprocessing_of(meta),
            checkpoint_folders.class_weights_of(meta),
            max(1, (num_images or 0) // at_once),
        )

    @property
    def weights(self) -> jax.Array:
        """The class weights, float32 [C]."""
        return jnp.ones(self.num_classes) if self.class_weights is None else jnp.asarray(self.class_weights)

    @property
    def about(self) -> dict[str, Any]:
        """What is told of it, as JSON."""
        return {
            "num_classes": self.num_classes,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "class_weights": self.weights.tolist(),
            "steps_per_epoch": self.steps_per_epoch,
        }


@dataclass(frozen=True)
class Lowered:
    """One step for one platform.

    Attributes:
      step: of STEPS.
      platform: such as "cuda".
      precision: of activations.
      exported: the program.
    """

    step: str
    platform: str
    precision: str
    exported: export.Exported

    @property
    def operations(self) -> dict[str, int]:
        """Kind -> number."""
        return count_operations(self.exported.mlir_module())

    @property
    def file(self) -> str:
        """What the serialised program is called."""
        return f"{self.step}-{self.platform}-{self.precision}.stablehlo"

    def about(self, serialised: bytes) -> dict[str, Any]:
        """What is told of it, as JSON."""
        operations = self.operations
        return {
            "step": self.step,
            "platform": self.platform,
            "precision": self.precision,
            "file": self.file,
            "bytes": len(serialised),
            "sha256": hashlib.sha256(serialised).hexdigest(),
            "num_operations": sum(operations.values()),
            "operations": operations,
        }


def lower_steps(
    config: Config,
    given: Given,
    *,
    precisions: Sequence[str],
    platforms: Sequence[str],
    steps: Sequence[str] = STEPS,
    num_devices: int = 1,
) -> Iterator[Lowered]:
    """Lowers a config's steps one after another; nothing is computed and no device but a CPU is needed.

    Args:
      config: whose network, batch and input are taken; with input "host" a batch comes whole, else the step makes it.
      given: what they hold besides.
      precisions: of activations.
      platforms: to lower for.
      steps: which ones.
      num_devices: that training and evaluation are mapped over.
    """
    for precision in precisions:
        model = build.build_model(config, given.num_classes, precision)
        functions = {
            "train": partial(_train, config, given, model, precision, num_devices),
            "evaluate": partial(_evaluate, config, given, model, num_devices),
            "infer": partial(_infer, config, given, model),
        }
        for step in steps:
            for platform in platforms:
                yield Lowered(step, platform, precision, functions[step](platform))


def _train(
    config: Config, given: Given, model: SegNet, precision: str, num_devices: int, platform: str
) -> export.Exported:
    settings = build.step_settings(config, model, given.weights, given.preprocessing, given.steps_per_epoch)
    state = build.state_shapes(model, settings.optimizer, precision, config.ema_decay > 0)
    make_batch, inputs, store = _input(
        config, (num_devices, 1, config.grad_accum_steps), partial(device_resident.training_batch, most=config.shift)
    )
    step = partial(train_steps, make_batch=make_batch, settings=settings)
    return lower_mapped(
        with_named_state(step, state),
        (by_name(state), inputs, store),
        split=(False, True, False),
        outputs_split=(False, False),
        platform=platform,
        num_devices=num_devices,
    )


def _evaluate(config: Config, given: Given, model: SegNet, num_devices: int, platform: str) -> export.Exported:
    make_batch, inputs, store = _input(config, (num_devices,), device_resident.evaluation_batch)
    settings = build.step_settings(config, model, given.weights, given.preprocessing)
    step = partial(eval_step, make_batch=make_batch, settings=settings)
    return lower_mapped(
        step,
        (variable_shapes(model), inputs, store),
        split=(False, True, False),
        outputs_split=(False, True),
        platform=platform,
        num_devices=num_devices,
    )


def _infer(config: Config, given: Given, model: SegNet, platform: str) -> export.Exported:
    """From uint8 images to uint8 predictions, BatchNorm folded, on one device."""
    folded = model.clone(folded=True)
    variables = jax.eval_shape(partial(fold_batch_norm, model=model), variable_shapes(model))

    def predict(variables, images):
        logits = folded.apply(variables, normalize(images, given.preprocessing, folded.dtype), train=False)
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    images = jax.ShapeDtypeStruct((config.batch_size_per_device, *config.image_size, 3), jnp.uint8)
    return lower(predict, (variables, images), platform)


def _input(config: Config, leading: tuple[int, ...], make_batch: Callable) -> tuple[Callable, dict, Any]:
    """How a step comes to its batch: (make_batch, inputs, store), the arrays as shapes."""
    shape, size = (*leading, config.batch_size_per_device), config.image_size
    if config.input == "host":
        inputs = {"image": (*shape, *size, 3), "label": (*shape, *size)}
        return as_sent, {name: jax.ShapeDtypeStruct(each, jnp.uint8) for name, each in inputs.items()}, ()
    if make_batch is device_resident.evaluation_batch:
        draws = {"index": shape}
    else:
        sampler = Sampler.from_config(config, 1, 1)
        draws = {name: (*shape, *array.shape[1:]) for name, array in sampler.batch(0).drawn().items()}
    store = {"images": (_NUM_RECORDS, *size, 3), "labels": (_NUM_RECORDS, *size)}
    return (
        make_batch,
        {name: jax.ShapeDtypeStruct(each, jnp.int32) for name, each in draws.items()},
        {name: jax.ShapeDtypeStruct(each, jnp.uint8) for name, each in store.items()},
    )
