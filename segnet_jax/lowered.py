"""A config's steps for training, evaluation and inference, lowered for each platform, and what is told of them."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from segnet_jax import assembly
from segnet_jax.config import Config
from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.preprocessing import TORCH, normalise
from segnet_jax.nn.segnet import SegNet
from segnet_jax.pipeline import device
from segnet_jax.pipeline.plan import Plan
from segnet_jax.portable.lowering import by_name, lower, lower_mapped, with_named_state
from segnet_jax.portable.operations import count_operations
from segnet_jax.training.state import variable_shapes
from segnet_jax.training.steps import as_sent, eval_step, train_steps

STEPS = ("train", "evaluate", "infer")
_NUM_RECORDS = 16  # of a split that lies on the device; the program but for this size is the same for any


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
    num_classes: int,
    *,
    precisions: Sequence[str],
    platforms: Sequence[str],
    steps: Sequence[str] = STEPS,
    num_devices: int = 1,
) -> Iterator[Lowered]:
    """Lowers a config's steps one after another; nothing is computed and no device but a CPU is needed.

    Args:
      config: whose network, batch and input are taken; with input "host" a batch comes whole, else the step makes it.
      num_classes: of the network.
      precisions: of activations.
      platforms: to lower for.
      steps: which ones.
      num_devices: that training and evaluation are mapped over.
    """
    for precision in precisions:
        model = assembly.build_model(config, num_classes, precision)
        functions = {
            "train": partial(_train, config, model, precision, num_devices),
            "evaluate": partial(_evaluate, config, model, num_devices),
            "infer": partial(_infer, config, model),
        }
        for step in steps:
            for platform in platforms:
                yield Lowered(step, platform, precision, functions[step](platform))


def _train(config: Config, model: SegNet, precision: str, num_devices: int, platform: str) -> export.Exported:
    optimizer, schedule = assembly.build_optimizer(config, steps_per_epoch=1)
    state = assembly.state_shapes(model, optimizer, precision, config.average > 0)
    make_batch, inputs, store = _input(
        config, (num_devices, 1, config.accumulate), partial(device.training_batch, most=config.shift)
    )
    step = partial(
        train_steps,
        make_batch=make_batch,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        class_weights=jnp.ones(model.num_classes),
        preprocessing=TORCH,
        half_gradients=config.half_gradients,
        seed=config.seed,
        average=config.average,
    )
    return lower_mapped(
        with_named_state(step, state),
        (by_name(state), inputs, store),
        split=(False, True, False),
        outputs_split=(False, False),
        platform=platform,
        num_devices=num_devices,
    )


def _evaluate(config: Config, model: SegNet, num_devices: int, platform: str) -> export.Exported:
    make_batch, inputs, store = _input(config, (num_devices,), device.evaluation_batch)
    step = partial(
        eval_step,
        make_batch=make_batch,
        model=model,
        class_weights=jnp.ones(model.num_classes),
        preprocessing=TORCH,
    )
    return lower_mapped(
        step,
        (variable_shapes(model), inputs, store),
        split=(False, True, False),
        outputs_split=(False, True),
        platform=platform,
        num_devices=num_devices,
    )


def _infer(config: Config, model: SegNet, platform: str) -> export.Exported:
    """From uint8 images to uint8 predictions, BatchNorm folded, on one device."""
    folded = model.clone(folded=True)
    variables = jax.eval_shape(partial(fold_batch_norm, epsilon=model.batch_norm_epsilon), variable_shapes(model))

    def predict(variables, images):
        logits = folded.apply(variables, normalise(images, TORCH, folded.dtype), train=False)
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    images = jax.ShapeDtypeStruct((config.batch_size_per_device, *config.image_size, 3), jnp.uint8)
    return lower(predict, (variables, images), platform)


def _input(config: Config, leading: tuple[int, ...], make_batch: Callable) -> tuple[Callable, dict, Any]:
    """How a step comes to its batch: (make_batch, inputs, store), the arrays as shapes."""
    shape, size = (*leading, config.batch_size_per_device), config.image_size
    if config.input == "host":
        inputs = {"image": (*shape, *size, 3), "label": (*shape, *size)}
        return as_sent, {name: jax.ShapeDtypeStruct(each, jnp.uint8) for name, each in inputs.items()}, ()
    if make_batch is device.evaluation_batch:
        draws = {"index": shape}
    else:
        plan = Plan(1, 1, config.seed, config.flip, config.shift, config.scale, config.color)
        draws = {name: (*shape, *array.shape[1:]) for name, array in plan.batch(0).drawn().items()}
    store = {"images": (_NUM_RECORDS, *size, 3), "labels": (_NUM_RECORDS, *size)}
    return (
        make_batch,
        {name: jax.ShapeDtypeStruct(each, jnp.int32) for name, each in draws.items()},
        {name: jax.ShapeDtypeStruct(each, jnp.uint8) for name, each in store.items()},
    )
