"""BatchNorm and ReLU as one layer, whose backward pass keeps only the layer's input.

Half of all bytes that a training step moves are BatchNorm's and ReLU's. Left to itself, JAX keeps several float32
copies of every map between forward and backward pass; here it keeps the convolution's output as it is, and recomputes
from it what the gradient needs: no convolution, and nothing that does not fuse into the gradient's own two passes.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

_PIXELS = (0, 1, 2)  # the axes of [B,H,W,C] that statistics are taken over


class BatchNormReLU(nn.Module):
    """Normalises each channel of [B,H,W,C], scales and shifts it, and cuts it off below zero unless told not to.

    Parameters are "scale" and "bias", float32 [C]; running statistics "mean" and "var" in the collection `batch_stats`.

    Attributes:
      momentum: share of the old running statistics that a step keeps.
      epsilon: added to the variance.
      axis_name: the mapped axis over which statistics are taken, or None for each device by itself.
      relu: whether what is below zero is cut off.
      first_bias: what the shift begins with.
    """

    momentum: float
    epsilon: float
    axis_name: str | None = None
    relu: bool = True
    first_bias: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns [B,H,W,C] in x's dtype; with `train`, by the batch's statistics, which update the running ones."""
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.constant(self.first_bias), channels)
        if not train:
            rstd = lax.rsqrt(running_var.value + self.epsilon)
            return _normalise(x, scale, bias, running_mean.value, rstd, self.relu)
        y, mean, var = batch_norm_relu(x, scale, bias, self.epsilon, self.axis_name, self.relu)
        if not self.is_initializing():
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        return y


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm_relu(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None = None, relu: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the batch's own statistics, scales, shifts, and cuts off below zero.

    Args:
      x: float [B,H,W,C].
      scale: float32 [C].
      bias: float32 [C].
      epsilon: added to the variance.
      axis_name: the mapped axis that the statistics also run over, or None.
      relu: whether to cut off.

    Returns:
      [B,H,W,C] in x's dtype; mean and biased variance of x, float32 [C], through which no gradient flows.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), with the gradient of its section 3.
    """
    return _forward(x, scale, bias, epsilon, axis_name, relu)[0]


def _forward(x, scale, bias, epsilon, axis_name, relu):
    mean, var = _statistics(x, axis_name)
    rstd = lax.rsqrt(var + epsilon)
    return (_normalise(x, scale, bias, mean, rstd, relu), mean, var), (x, scale, bias, mean, rstd)


def _backward(_epsilon, axis_name, relu, residuals, gradients):
    """Return the gradients by x, scale and bias.

    Two passes over the pixels, each of x, the result's gradient and constants per channel: on a GPU it is cheaper to
    compute twice where ReLU lets pass than to store it.
    """
    x, scale, bias, mean, rstd = residuals
    factor = rstd * scale
    centred = _wide(x) - _row(mean)
    passed = _wide(gradients[0])
    if relu:
        # A factor of 0 or 1. XLA would store the outcome of a comparison, which takes a byte, but not a number.
        passed *= jnp.sign(_shift_and_cut(centred * _row(factor), bias))
    bias_gradient = jnp.sum(passed, _PIXELS)
    scale_gradient = jnp.sum(passed * centred, _PIXELS) * rstd
    # What a pixel changes by way of mean and variance: they belong to all pixels of all devices alike.
    bias_mean, scale_mean = _means_of_sums((bias_gradient, scale_gradient), x, axis_name)
    x_gradient = passed * _row(factor) - centred * _row(factor * rstd * scale_mean) - _row(factor * bias_mean)
    return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


batch_norm_relu.defvjp(_forward, _backward)


def _statistics(x, axis_name):
    """Mean and variance of each channel, in one pass over x and one message between devices."""
    wide = _wide(x)
    mean, mean_of_squares = _means_of_sums((jnp.sum(wide, _PIXELS), jnp.sum(wide * wide, _PIXELS)), x, axis_name)
    return mean, jnp.maximum(mean_of_squares - mean * mean, 0)  # rounding could leave it below zero


def _means_of_sums(sums, x, axis_name):
    """Divides sums over this device's pixels by their number, or sums over all devices by all pixels."""
    means = tuple(each / (x.size // x.shape[-1]) for each in sums)
    return means if axis_name is None else lax.pmean(means, axis_name)


def _normalise(x, scale, bias, mean, rstd, relu):
    scaled = (_wide(x) - _row(mean)) * _row(rstd * scale)
    return (_shift_and_cut(scaled, bias) if relu else scaled + _row(bias)).astype(x.dtype)


def _shift_and_cut(scaled, bias):
    """Return `max(scaled + bias, 0)`, above zero in the backward pass exactly where it is in the forward pass.

    The sum of a product and a bias is rounded once or twice, as the compiler likes: with a fused multiply-add or
    without. Here the maximum stands between the two.
    """
    return jnp.maximum(scaled, _row(-bias)) + _row(bias)


def _wide(x):
    """At least float32, in which statistics and gradients are computed."""
    return x.astype(jnp.float32) if x.dtype.itemsize == 2 else x


def _row(channels):
    return channels[None, None, None]
