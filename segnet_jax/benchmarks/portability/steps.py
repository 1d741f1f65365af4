"""Training, evaluation and inference steps of a config, lowered for each platform."""

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

from segnet_jax.benchmarks.portability.lowering import lower, lower_mapped, with_named_state
from segnet_jax.benchmarks.portability.operation_counts import count_operations
from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_run
from segnet_jax.data.input_pipeline import device_resident
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.network_interface import NetworkInterface
from segnet_jax.nn.preprocessing import TORCH, Preprocessing, normalize
from segnet_jax.runs import run_folder
from segnet_jax.system.errors import UserError
from segnet_jax.training import build_model, checkpoint_folders
from segnet_jax.training.checkpoint_content import check_meta
from segnet_jax.training.checkpoint_folders import CheckpointFolders
from segnet_jax.training.experiment_check import check_experiment
from segnet_jax.training.state import named_leaves, variable_shapes
from segnet_jax.training.step_inputs import as_sent
from segnet_jax.training.steps import eval_step, train_steps

logger = logging.getLogger(__name__)

STEPS = ("train", "evaluate", "infer")
_NUM_SAMPLES = 16  # of the device-resident split; the rest of the program does not depend on it


@dataclass(frozen=True, eq=False)
class StepConstants:
    """Constants of the steps that the config does not contain; the defaults suffice for counting operations.

    Attributes:
      num_classes: number of classes.
      preprocessing: preprocessing that the network expects.
      class_weights: class weights of the loss, float32 [C]; None for all ones.
      steps_per_epoch: steps per epoch of the learning-rate schedule.
    """

    num_classes: int
    preprocessing: Preprocessing = TORCH
    class_weights: np.ndarray | None = None
    steps_per_epoch: int = 1

    @classmethod
    def from_run(cls, run: str, config: Config, num_devices: int) -> "StepConstants":
        """Read the constants from the newest checkpoint of a run, for training on `num_devices`.

        Raises:
          UserError: If the run has no checkpoint yet, or its settings do not match the run's config.
          NoCheckpoint: If no checkpoint is intact, or the content of one is invalid.
        """
        folders = CheckpointFolders(pathlib.Path(run) / "checkpoints", config.keep_checkpoints)
        step = folders.find_latest("newest")
        if step is None:
            raise UserError(f"{run} has no checkpoint: it stopped before its first one was saved")
        meta = check_meta(folders.meta("newest", step), f"the newest checkpoint of {run}")
        check_experiment(pathlib.Path(run), meta, read_run(run))
        num_images = run_folder.num_training_images(run)
        if num_images is None and (config.schedule != "constant" or config.warmup_epochs):
            logger.info(
                f"note: {run} does not store its number of training images; the learning-rate schedule is lowered with "
                "one step per epoch"
            )
        global_batch_size = num_devices * config.batch_size_per_device * config.grad_accum_steps
        return cls(
            len(meta["classes"]),
            checkpoint_folders.preprocessing_of(meta),
            checkpoint_folders.class_weights_of(meta),
            max(1, (num_images or 0) // global_batch_size),
        )

    @property
    def weights(self) -> jax.Array:
        """Class weights, float32 [C]."""
        return jnp.ones(self.num_classes) if self.class_weights is None else jnp.asarray(self.class_weights)

    def as_json(self) -> dict[str, Any]:
        """Return the constants, JSON-serializable."""
        return {
            "num_classes": self.num_classes,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "class_weights": self.weights.tolist(),
            "steps_per_epoch": self.steps_per_epoch,
        }


@dataclass(frozen=True, eq=False)
class Program:
    """A step of a config, to be lowered or compiled.

    Attributes:
      function: the step of one device.
      arguments: trees of shapes; the leading axis of split arguments is the device axis.
      split: for each argument, whether it is split over the devices or replicated; None if the step is not mapped.
      outputs_split: the same for the outputs.
      donated: indices of the donated arguments, for compilation.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    split: tuple[bool, ...] | None = None
    outputs_split: tuple[bool, ...] = ()
    donated: tuple[int, ...] = ()

    def lower(self, platform: str, num_devices: int = 1) -> export.Exported:
        """Lower for one of PLATFORMS, which may be absent."""
        if self.split is None:
            return lower(self.function, self.arguments, platform)
        return lower_mapped(
            self.function,
            self.arguments,
            split=self.split,
            outputs_split=self.outputs_split,
            platform=platform,
            num_devices=num_devices,
        )


@dataclass(frozen=True)
class Lowered:
    """One step lowered for one platform.

    Attributes:
      step: one of STEPS.
      platform: one of PLATFORMS, such as "cuda".
      precision: dtype of activations.
      exported: the program.
    """

    step: str
    platform: str
    precision: str
    exported: export.Exported

    @property
    def operations(self) -> dict[str, int]:
        """Operation counts by kind."""
        return count_operations(self.exported.mlir_module())

    @property
    def file(self) -> str:
        """File name of the serialized program."""
        return f"{self.step}-{self.platform}-{self.precision}.stablehlo"

    def about(self, serialized: bytes) -> dict[str, Any]:
        """Return the program's entry in lowered.json."""
        operations = self.operations
        return {
            "step": self.step,
            "platform": self.platform,
            "precision": self.precision,
            "file": self.file,
            "bytes": len(serialized),
            "sha256": hashlib.sha256(serialized).hexdigest(),
            "num_operations": sum(operations.values()),
            "operations": operations,
        }


def lower_steps(
    config: Config,
    constants: StepConstants,
    *,
    precisions: Sequence[str],
    platforms: Sequence[str],
    steps: Sequence[str] = STEPS,
    num_devices: int = 1,
) -> Iterator[Lowered]:
    """Lower the steps of a config one by one for each precision and platform, without running them.

    With input "host" the training and evaluation steps take batches; otherwise they make batches from a device-resident
    dataset. They are mapped over `num_devices`.
    """
    for precision in precisions:
        for step in steps:
            for platform in platforms:
                program = build_program(step, config, constants, precision, platform, num_devices)
                yield Lowered(step, platform, precision, program.lower(platform, num_devices))


def build_program(
    step: str,
    config: Config,
    constants: StepConstants,
    precision: str,
    platform: str,
    num_devices: int = 1,
    steps_per_dispatch: int = 1,
) -> Program:
    """Build one of STEPS for a config; see `lower_steps` for the arguments."""
    model = build_model.build_model(config, constants.num_classes, precision)
    if len(constants.preprocessing.mean) != config.channels:  # the default is for RGB images
        unit = Preprocessing((0.0,) * config.channels, (1.0,) * config.channels)
        constants = dataclasses.replace(constants, preprocessing=unit)
    if step == "infer":
        return _infer(config, constants, model)
    if step == "evaluate":
        return _evaluate(config, constants, model, num_devices)
    return _train(config, constants, model, precision, platform, (num_devices, steps_per_dispatch))


def _train(
    config: Config,
    constants: StepConstants,
    model: NetworkInterface,
    precision: str,
    platform: str,
    leading: tuple[int, int],
) -> Program:
    if config.augment:  # custom code, which only a training command imports
        logger.warning(f"the training step is built without the custom augmentation {config.augment}")
        config = dataclasses.replace(config, augment="")
    settings = build_model.step_settings(
        config, model, constants.weights, constants.preprocessing, constants.steps_per_epoch
    )
    settings = dataclasses.replace(settings, loop=platform != "cpu")  # as on the device itself
    state = build_model.state_shapes(model, settings.optimizer, precision, config.has_average)
    make_batch = partial(device_resident.training_batch, most=config.shift, crop=config.crop)
    make_batch, inputs, store = _input(config, (*leading, config.grad_accum_steps), make_batch)
    step = partial(train_steps, make_batch=make_batch, settings=settings)
    return Program(
        with_named_state(step, state),
        (named_leaves(state), inputs, store),
        split=(False, True, False),
        outputs_split=(False, False),
        donated=(0,),
    )


def _evaluate(config: Config, constants: StepConstants, model: NetworkInterface, num_devices: int) -> Program:
    make_batch, inputs, store = _input(config, (num_devices,), device_resident.evaluation_batch)
    settings = build_model.step_settings(config, model, constants.weights, constants.preprocessing)
    return Program(
        partial(eval_step, make_batch=make_batch, settings=settings),
        (variable_shapes(model), inputs, store),
        split=(False, True, False),
        outputs_split=(False, True),
    )


def _infer(config: Config, constants: StepConstants, model: NetworkInterface) -> Program:
    """Return the inference step of one device, images to uint8 predictions, with BatchNorm folded."""
    folded = model.clone(folded=True)
    variables = jax.eval_shape(partial(fold_batch_norm, model=model), variable_shapes(model))

    def predict(variables, images):
        logits = folded.apply(variables, normalize(images, constants.preprocessing, folded.dtype), train=False)
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    return Program(predict, (variables, _images(config, (config.batch_size_per_device,), config.image_size)))


def _images(config: Config, leading: tuple[int, ...], size: tuple[int, int]) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of images."""
    return jax.ShapeDtypeStruct((*leading, *size, config.channels), f"uint{config.image_bits}")


def _input(config: Config, leading: tuple[int, ...], make_batch: Callable) -> tuple[Callable, dict, Any]:
    """Return (make_batch, inputs, store) of a step, which together define its batches; arrays are given as shapes."""
    shape, size = (*leading, config.batch_size_per_device), config.image_size
    if config.input == "host":
        size = size if make_batch is device_resident.evaluation_batch else config.train_size
        label = jax.ShapeDtypeStruct((*shape, *size), jnp.uint8)
        return as_sent, {"image": _images(config, shape, size), "label": label}, ()
    if make_batch is device_resident.evaluation_batch:
        parameters = {"index": shape}
    else:
        sampler = Sampler.from_config(config, 1, 1)
        parameters = {name: (*shape, *array.shape[1:]) for name, array in sampler.batch(0).drawn().items()}
    labels = jax.ShapeDtypeStruct((_NUM_SAMPLES, *size), jnp.uint8)
    return (
        make_batch,
        {name: jax.ShapeDtypeStruct(each, jnp.int32) for name, each in parameters.items()},
        {"images": _images(config, (_NUM_SAMPLES,), config.image_size), "labels": labels},
    )
