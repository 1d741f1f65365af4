"""A network, a loss and an optimizer given from Python instead of by their names in the config.

The run's config stores only what they are called, in its field `own`, and nothing is ever imported by such a name: to
resume the run, or to restore its network, the objects have to be given again.
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

from segnet_jax.nn.contract import NetworkContract
from segnet_jax.system.errors import UserError
from segnet_jax.training.losses import Loss
from segnet_jax.training.own_augmentation import OwnAugmentation


@dataclass(frozen=True)
class OwnObjects:
    """Objects that replace what the config names; None where it applies.

    Attributes:
      model: class of a network that keeps `nn.contract`, or a function of its fields that returns one.
      loss: a `Loss`; see `as_loss`.
      optimizer: function of the learning-rate schedule, such as `optax.adamw`.
      augment: augmentation that the config field `augment` names.
    """

    model: Callable[..., NetworkContract] | None = None
    loss: Loss | None = None
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation] | None = None
    augment: OwnAugmentation | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the objects are called, for the config field `own`; the augmentation has a field of its own."""
        given = {name: getattr(self, name) for name in ("model", "loss", "optimizer")}
        return tuple(f"{part}={name_of(each)}" for part, each in given.items() if each is not None)


def as_loss(given: Any) -> Loss:
    """Return an own loss as a `Loss`.

    Args:
      given: a `Loss`, or a function (logits float32 [B,H,W,C], label uint8 [B,H,W], class weights float32 [C]) -> the
        sum of the loss over the labeled pixels, which is divided by their number over all devices.

    Raises:
      UserError: If it is neither.
    """
    if isinstance(given, Loss):
        return given
    if callable(given):
        return Loss(given)
    raise UserError(f"loss must be a formula, a Loss or a function of logits, label and class weights, got {given!r}")


def check_loss(own: OwnObjects, num_classes: int) -> None:
    """Check an own loss on shapes only: it must give one number.

    Raises:
      UserError: If it fails, or gives anything else.
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
        raise UserError(f"the loss {name_of(own.loss)} must give one float32 number, the sum over pixels, got {found}")


NO_OBJECTS = OwnObjects()


def own_objects(
    model: Any = None, loss: Any = None, optimizer: Any = None, augment: OwnAugmentation | None = None
) -> OwnObjects:
    """Return the objects after a check of their kinds.

    Raises:
      UserError: If one is of another kind; the message says what to give.
    """
    if model is not None and (isinstance(model, nn.Module) or not callable(model)):
        raise UserError(f"model must be the class of a network, not an instance, got {_short(model)}")
    if optimizer is not None and not callable(optimizer):
        raise UserError(
            "optimizer must be a function of the learning-rate schedule, such as optax.adamw or "
            f"functools.partial(optax.adamw, weight_decay=1e-4), got {_short(optimizer)}"
        )
    return OwnObjects(model, None if loss is None else as_loss(loss), optimizer, augment)


def name_of(given: Any) -> str:
    """Return what a function, a class, a `Loss` or a partial of one is called, with a sum of its source.

    An edited function of the same name is another one, as far as its source can be read.
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
    """Return a value on one line, shortened; what it is called if its text would name an address in memory."""
    text = " ".join(repr(value).split())
    return text[:100] if " at 0x" not in text else getattr(value, "__qualname__", type(value).__name__)


def check_given(stored: Sequence[str], given: Sequence[str], where: str) -> None:
    """Check that a run is resumed with the objects that it was started with.

    Args:
      stored: the names in the run's config.
      given: the names of the objects at hand.
      where: the run, for the message.

    Raises:
      UserError: If they differ.
    """
    if tuple(stored) == tuple(given):
        return
    if not stored:
        raise UserError(f"{where} was trained without objects of Python, got {', '.join(given)}: start a new run")
    at_hand = f"got {', '.join(given)}" if given else "which a command cannot import"
    raise UserError(
        f"{where} was trained with objects given from Python ({', '.join(stored)}), {at_hand}: resume it with "
        "segnet_jax.train(...) and the same objects, or start a new run"
    )


def missing(part: str, stored: Sequence[str]) -> str:
    """Return the stored name of an object that a run was trained with, such as its model; "" if it had none."""
    return next((name for name in stored if name.startswith(f"{part}=")), "")
