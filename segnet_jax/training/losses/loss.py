"""The interface of losses: sums over pixels, images or classes, and a mean computed from the sums over all devices.

Because only sums are computed per device, the loss and its gradient do not depend on how images and void pixels are
distributed over devices, and an evaluation does not depend on how a split is divided into batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from segnet_jax.constants import VOID
from segnet_jax.distributed.data_parallel import AXIS

Sums = Callable[[jax.Array, jax.Array, jax.Array], Any]
"""(logits float32 [B,H,W,C], label uint8 [B,H,W], class weights float32 [C]) -> a tree of float32 arrays."""

Mean = Callable[[Any, Any, jax.Array], Any]
"""(sums over all devices, number of labeled pixels, at least 1, class weights) -> the loss, a float32 scalar."""


def _mean_over_pixels(sums: Any, num_pixels: Any, class_weights: jax.Array) -> Any:
    return sums / num_pixels


@dataclass(frozen=True)
class Loss:
    """A loss that is computed from sums.

    Attributes:
      sums: function that returns this device's sums. VOID pixels contribute neither to the sums nor to their gradient.
      mean: function of the sums over all devices that returns the loss; by default, it divides a scalar sum by the
        number of labeled pixels.
    """

    sums: Sums
    mean: Mean = _mean_over_pixels

    def __call__(self, logits: jax.Array, label: jax.Array, class_weights: jax.Array) -> jax.Array:
        """Return this device's part of the loss times the number of labeled pixels. Call this in a mapped step.

        The step sums these parts and their gradients over the devices and divides by the number of labeled pixels.
        """
        sums = self.sums(logits, label, class_weights)
        if self.mean is _mean_over_pixels:
            return sums
        num_pixels = lax.psum(num_valid(label), AXIS).astype(jnp.float32)
        loss = self.mean(_sum_over_devices(sums), jnp.maximum(num_pixels, 1), class_weights)
        return loss * num_pixels / lax.axis_size(AXIS)


@jax.custom_vjp
def _sum_over_devices(sums: Any) -> Any:
    """Sum over the devices, each of which then computes the same loss.

    The gradient of the sum of all devices' losses is therefore this device's gradient times the number of devices.
    """
    return lax.psum(sums, AXIS)


def _sum_over_devices_forward(sums):
    return _sum_over_devices(sums), None


def _sum_over_devices_backward(_, gradients):
    return (jax.tree.map(lambda gradient: gradient * lax.axis_size(AXIS), gradients),)


_sum_over_devices.defvjp(_sum_over_devices_forward, _sum_over_devices_backward)


def weighted_sum(terms: Sequence[tuple[float, Loss]]) -> Loss:
    """Return the weighted sum of losses; a single loss of weight 1 is returned unchanged."""
    factors, losses = zip(*terms, strict=True)
    if factors == (1.0,):
        return losses[0]

    def sums(logits, label, class_weights):
        return tuple(loss.sums(logits, label, class_weights) for loss in losses)

    def mean(sums, num_pixels, class_weights):
        means = (loss.mean(each, num_pixels, class_weights) for loss, each in zip(losses, sums, strict=True))
        return sum(factor * each for factor, each in zip(factors, means, strict=True))

    return Loss(sums, mean)


def ratio(sums: tuple[jax.Array, jax.Array], num_pixels: Any, class_weights: jax.Array) -> jax.Array:
    """Divide the first of two sums by the second, a count; used as the `mean` of some losses."""
    total, count = sums
    return total / jnp.maximum(count, 1)


def weighted_class_mean(values: jax.Array, is_present: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Return the weighted mean of values [...,C] over the present classes, or 0 if their weights are 0."""
    weights = jnp.where(is_present, jnp.broadcast_to(class_weights, is_present.shape), 0.0)
    return jnp.sum(weights * values, axis=-1) / jnp.maximum(jnp.sum(weights, axis=-1), jnp.finfo(jnp.float32).tiny)


def one_hot(label: jax.Array, num_classes: int) -> jax.Array:
    """Return bool [B,H,W,C], True where a pixel of `label`, uint8 [B,H,W], has the class; VOID has none."""
    return label[..., None] == jnp.arange(num_classes, dtype=label.dtype)[None, None, None]


def in_range(name: str, value: float, low: float, high: float) -> float:
    """Return the value of a loss parameter after checking it.

    Raises:
      ValueError: If the value is out of range.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value:g}")
    return value


def num_valid(label: jax.Array) -> jax.Array:
    """Return the number of labeled pixels, int32."""
    return jnp.sum(label != VOID, dtype=jnp.int32)


def num_right(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Return the number of labeled pixels with a correct prediction, int32."""
    prediction = jnp.argmax(logits, axis=-1).astype(label.dtype)
    return jnp.sum(prediction == label, dtype=jnp.int32)  # no prediction is VOID
