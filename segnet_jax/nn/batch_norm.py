"""BatchNorm and ReLU as one layer whose backward pass stores only the layer's input.

BatchNorm and ReLU account for half of a training step's memory traffic. JAX's automatic gradient would store several
float32 copies of every feature map; this custom VJP stores the convolution's output and recomputes the rest. No
convolution is recomputed, and the recomputation fuses into the two passes that the gradient makes anyway.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

_PIXELS = (0, 1, 2)  # reduction axes of [B,H,W,C]


class BatchNormReLU(nn.Module):
    """Batch normalization of [B,H,W,C] followed by an optional ReLU.

    Parameters are "scale" and "bias", float32 [C]; running statistics "mean" and "var" in the collection `batch_stats`.

    Attributes:
      momentum: decay rate of the running statistics.
      epsilon: added to the variance.
      axis_name: mapped axis over which statistics are synchronized; None for per-device statistics.
      relu: whether to apply a ReLU.
      first_bias: initial value of "bias".
    """

    momentum: float
    epsilon: float
    axis_name: str | None = None
    relu: bool = True
    first_bias: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalize x, [B,H,W,C]; with `train`, use batch statistics and update the running statistics."""
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.constant(self.first_bias), channels)
        if not train:
            rstd = lax.rsqrt(running_var.value + self.epsilon)
            return _normalize(x, scale, bias, running_mean.value, rstd, self.relu)
        # pyright does not see the result's type through partial(jax.custom_vjp, ...).
        y, mean, var = batch_norm_relu(  # pyright: ignore[reportGeneralTypeIssues]
            x, scale, bias, self.epsilon, self.axis_name, self.relu
        )
        if not self.is_initializing():
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        return y


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm_relu(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None = None, relu: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalize by the batch statistics, scale, shift, and apply ReLU.

    Args:
      x: float [B,H,W,C].
      scale: float32 [C].
      bias: float32 [C].
      epsilon: added to the variance.
      axis_name: mapped axis over which statistics are synchronized, or None.
      relu: whether to apply ReLU.

    Returns:
      The output, [B,H,W,C] in x's dtype, and the mean and biased variance of x, float32 [C], without gradients.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167); gradient from section 3.
    """
    return _forward(x, scale, bias, epsilon, axis_name, relu)[0]


def _forward(x, scale, bias, epsilon, axis_name, relu):
    mean, var = _statistics(x, axis_name)
    rstd = lax.rsqrt(var + epsilon)
    return (_normalize(x, scale, bias, mean, rstd, relu), mean, var), (x, scale, bias, mean, rstd)


@jax.named_scope("batch_norm_apply")
def _backward(_epsilon, axis_name, relu, residuals, gradients):
    """Return the gradients with respect to x, scale and bias.

    Both passes over the pixels read x and the output gradient: on a GPU, computing the ReLU mask twice is cheaper than
    storing it.
    """
    x, scale, bias, mean, rstd = residuals
    factor = rstd * scale
    centered = _float32(x) - _per_channel(mean)
    gradient = _float32(gradients[0])
    if relu:
        # A float mask, because XLA would store a boolean one between the passes.
        gradient *= jnp.sign(_shift_and_relu(centered * _per_channel(factor), bias))
    with jax.named_scope("batch_norm_sums"):
        bias_gradient, scale_gradient = _pixel_sums(gradient, gradient * centered)
        scale_gradient *= rstd
        # Terms through mean and variance, which all pixels of all devices share.
        bias_mean, scale_mean = _pixel_means((bias_gradient, scale_gradient), x, axis_name)
    x_gradient = (
        gradient * _per_channel(factor)
        - centered * _per_channel(factor * rstd * scale_mean)
        - _per_channel(factor * bias_mean)
    )
    return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


batch_norm_relu.defvjp(_forward, _backward)


@jax.named_scope("batch_norm_sums")
def _statistics(x, axis_name):
    """Return the mean and variance of each channel, with one pass over x and one collective."""
    wide = _float32(x)
    mean, mean_of_squares = _pixel_means(_pixel_sums(wide, wide * wide), x, axis_name)
    return mean, jnp.maximum(mean_of_squares - mean * mean, 0)  # rounding can make it negative


def _pixel_sums(one, other):
    """Sum two arrays [B,H,W,C] over the pixels, each to [C]."""
    return lax.platform_dependent(one, other, cpu=_two_sums, default=_joint_sums)


def _two_sums(one, other):
    return jnp.sum(one, _PIXELS), jnp.sum(other, _PIXELS)


def _joint_sums(one, other):
    """Sum both arrays in one reduction; on a GPU, separate ones would each run a second stage."""
    zero = jnp.zeros((), one.dtype)
    return lax.reduce((one, other), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), _PIXELS)


def _pixel_means(sums, x, axis_name):
    """Divide this device's sums by its number of pixels, and average over the devices of `axis_name`."""
    means = tuple(each / (x.size // x.shape[-1]) for each in sums)
    if axis_name is None:
        return means
    joined = lax.pmean(jnp.stack(means), axis_name)  # stacked: XLA combines collectives only after fusing kernels
    return joined[0], joined[1]


@jax.named_scope("batch_norm_apply")
def _normalize(x, scale, bias, mean, rstd, relu):
    scaled = (_float32(x) - _per_channel(mean)) * _per_channel(rstd * scale)
    return (_shift_and_relu(scaled, bias) if relu else scaled + _per_channel(bias)).astype(x.dtype)


def _shift_and_relu(scaled, bias):
    """Return `max(scaled + bias, 0)`, positive at the same pixels in the forward and backward pass.

    A compiler may compute `product + bias` with one rounding or two. Taking the maximum before the sum makes the ReLU
    mask independent of that choice.
    """
    return jnp.maximum(scaled, _per_channel(-bias)) + _per_channel(bias)


def _float32(x):
    """Convert 16-bit floats to float32; keep float32 and float64."""
    return x.astype(jnp.float32) if x.dtype.itemsize == 2 else x


def _per_channel(values):
    """Reshape [C] to broadcast against [B,H,W,C]; the tests disable implicit rank promotion."""
    return values[None, None, None]
