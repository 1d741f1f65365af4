"""Custom networks, losses and optimizers, passed from Python instead of named in the config.

The config stores only their names, in the field `own`, and never imports them by name. To resume a run or restore its
network, pass the objects again.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from segnet_jax.nn.network_interface import NetworkInterface
from segnet_jax.system.errors import UserError
from segnet_jax.training.custom_augmentation import CustomAugmentation
from segnet_jax.training.losses import Loss


@dataclass(frozen=True)
class CustomObjects:
    """Custom objects that replace those named in the config; None where the config applies.

    Attributes:
      model: class of a network that satisfies `nn.network_interface`, or a function that takes its fields.
      loss: a `Loss`; see `as_loss`.
      optimizer: function that takes a learning-rate schedule, such as `optax.adamw`.
      augment: the augmentation named in the config field `augment`.
    """

    model: Callable[..., NetworkInterface] | None = None
    loss: Loss | None = None
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation] | None = None
    augment: CustomAugmentation | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objects, for the config field `own`; the augmentation has a separate field."""
        given = {name: getattr(self, name) for name in ("model", "loss", "optimizer")}
        return tuple(f"{part}={name_of(each)}" for part, each in given.items() if each is not None)


def as_loss(given: Any) -> Loss:
    """Convert a custom loss to a `Loss`.

    Args:
      given: a `Loss`, or a function (logits float32 [B,H,W,C], label uint8 [B,H,W], class weights float32 [C]) ->
        sum of the loss over the labeled pixels. The sum is divided by the number of labeled pixels on all devices.

    Raises:
      UserError: If `given` is neither.
    """
    if isinstance(given, Loss):
        return given
    if callable(given):
        return Loss(given)
    raise UserError(f"loss must be a formula, a Loss or a function of logits, label and class weights, got {given!r}")


def check_loss(own: CustomObjects, num_classes: int) -> None:
    """Check by shape inference that a custom loss returns one float32 number.

    Raises:
      UserError: If the loss fails or returns anything else.
    """
    if own.loss is None:
        return
    shapes = [((1, 8, 8, num_classes), jnp.float32), ((1, 8, 8), jnp.uint8), ((num_classes,), jnp.float32)]
    logits, label, weights = (jax.ShapeDtypeStruct(*each) for each in shapes)
    try:
        sums = jax.eval_shape(own.loss.sums, logits, label, weights)
        mean = jax.eval_shape(own.loss.mean, sums, jax.ShapeDtypeStruct((), jnp.float32), weights)
        found = f"{mean.dtype} of shape {list(mean.shape)}"
    except Exception as error:
        raise UserError(f"the loss {name_of(own.loss)} fails: {_short(error)}") from error
    if mean.shape or mean.dtype != jnp.float32:
        raise UserError(f"the loss {name_of(own.loss)} must return one float32 number, summed over pixels, got {found}")


NO_OBJECTS = CustomObjects()


def custom_objects(
    model: Any = None, loss: Any = None, optimizer: Any = None, augment: CustomAugmentation | None = None
) -> CustomObjects:
    """Collect custom objects after checking their types.

    Raises:
      UserError: If an object has the wrong type.
    """
    if model is not None and (isinstance(model, nn.Module) or not callable(model)):
        raise UserError(f"model must be the class of a network, not an instance, got {_short(model)}")
    if optimizer is not None and not callable(optimizer):
        raise UserError(
            "optimizer must be a function of the learning-rate schedule, such as optax.adamw or "
            f"functools.partial(optax.adamw, weight_decay=1e-4), got {_short(optimizer)}"
        )
    return CustomObjects(model, None if loss is None else as_loss(loss), optimizer, augment)


def name_of(given: Any) -> str:
    """Return the name of a function, a class, a `Loss` or a partial, with a checksum of its source if that is readable.

    The checksum distinguishes an edited function from the original.
    """
    if isinstance(given, Loss):
        return name_of(given.sums)
    if isinstance(given, functools.partial):
        settings = ", ".join([*map(_short, given.args), *(f"{name}={_short(v)}" for name, v in given.keywords.items())])
        return f"{name_of(given.func)}({settings})"
    kind = given if hasattr(given, "__qualname__") else type(given)
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        return f"{name} {hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()[:8]}"
    except (OSError, TypeError):
        return name


def _short(value: Any) -> str:
    """Return a value's repr on one line, shortened, or the value's name if the repr contains a memory address."""
    text = " ".join(repr(value).split())
    return text[:100] if " at 0x" not in text else getattr(value, "__qualname__", type(value).__name__)


def check_given(stored: Sequence[str], given: Sequence[str], where: str) -> None:
    """Check that a run is resumed with the custom objects that it was started with, by their names.

    Raises:
      UserError: If the names differ.
    """
    if tuple(stored) == tuple(given):
        return
    if not stored:
        raise UserError(f"{where} was trained without custom objects, got {', '.join(given)}: start a new run")
    passed = f"got {', '.join(given)}" if given else "which a command cannot import"
    raise UserError(
        f"{where} was trained with custom objects passed from Python ({', '.join(stored)}), {passed}: resume it with "
        "segnet_jax.train(...) and the same objects, or start a new run"
    )


def missing(part: str, stored: Sequence[str]) -> str:
    """Return the stored name of a run's custom object, such as its "model"; "" if there is none."""
    return next((name for name in stored if name.startswith(f"{part}=")), "")
