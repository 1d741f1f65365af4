"""A convolution with the parameters of `nn.Conv` and a fast implementation for each platform.

GPUs and TPUs use XLA's convolution, with padded channels in 16-bit precisions. On CPUs, XLA's forward pass is fast, but
its kernel gradient is two to five times slower than in other libraries, so this module replaces it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from segnet_jax.nn.cpu import winograd

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_BLOCK_PIXELS = 1920
"""Pixels per block of the kernel gradient on CPUs: half a megabyte with 64 channels, which fits in a core's cache."""

msra = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # like Caffe's filler of this name, not truncated


class Convolution(nn.Module):
    """A convolution with zero padding: [B,H,W,I] to [B,H,W,channels] in x's dtype.

    Parameters are "kernel", float32 [size,size,I,channels], and "bias", float32 [channels].

    Attributes:
      channels: number of output channels.
      use_bias: whether to add a bias.
      size: height and width of the kernel, odd.
      by_channel: whether to convolve depthwise: I equals `channels`, and the kernel is [size,size,1,channels].
    """

    channels: int
    use_bias: bool = True
    size: int = 3
    by_channel: bool = False

    @nn.compact
    @jax.named_scope("convolution")
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [B,H,W,channels] in x's dtype."""
        inputs = 1 if self.by_channel else x.shape[-1]
        kernel = self.param("kernel", msra, (self.size, self.size, inputs, self.channels)).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,)) if self.use_bias else None
        if not self.by_channel:
            return convolve_padded(x, kernel, bias)
        y = convolve_channels(x, kernel)
        return y if bias is None else add_bias(y, bias)


def convolve_padded(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Convolve; in 16-bit precisions, pad the channels with zeros to a multiple of eight for tensor cores.

    XLA itself pads only in float16. In SegNet this affects the first layer (3 input channels padded to 8) and the last
    (11 output channels padded to 16); the result does not change.

    Args:
      x: float [B,H,W,I].
      kernel: [k,k,I,O] in x's dtype.
      bias: float32 [O], or None.

    Returns:
      [B,H,W,O] in x's dtype.
    """
    outputs = kernel.shape[3]
    if x.dtype.itemsize == 2:
        x, kernel, bias = pad_channels(x, kernel, bias)
    y = convolve(x, kernel)
    if bias is not None:  # before slicing, so that all gradients read the padded array and no sliced copy is made
        y = add_bias(y, bias)
    return y if y.shape[3] == outputs else y[..., :outputs]


def pad_channels(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Pad the input and output channels of a convolution with zeros to multiples of eight."""
    extra_inputs, extra_outputs = (-channels % 8 for channels in kernel.shape[2:])
    x = jnp.pad(x, [(0, 0)] * 3 + [(0, extra_inputs)])
    kernel = jnp.pad(kernel, [(0, 0)] * 2 + [(0, extra_inputs), (0, extra_outputs)])
    return x, kernel, None if bias is None else jnp.pad(bias, (0, extra_outputs))


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Add a bias, float32 [C] cast to y's dtype, to [B,H,W,C]; its gradient is summed in float32 or wider.

    JAX's automatic gradient would sum in y's dtype: a bfloat16 sum over a million pixels keeps two or three digits.
    """
    return y + bias.astype(y.dtype)[None, None, None]


def _add_bias_forward(y, bias):
    return add_bias(y, bias), bias


def _add_bias_backward(bias, gradient):
    # The barrier keeps XLA from moving the sum to before the padding, which would need the unpadded gradient too.
    gradient = lax.optimization_barrier(gradient)
    return gradient, jnp.sum(gradient, (0, 1, 2), dtype=bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def convolve_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve each channel of [B,H,W,C] with its own kernel [k,k,1,C] and zero padding to [B,H,W,C]."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT, feature_group_count=x.shape[-1]
    )


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve [B,H,W,I] with a kernel [k,k,I,O] and zero padding to [B,H,W,O]."""
    return lax.platform_dependent(x, kernel, cpu=_convolve_on_cpu, default=_convolve)


def _forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _backward(residuals, gradient):
    x, kernel = residuals
    on_cpu, elsewhere = (partial(each, len(kernel)) for each in (_kernel_gradient_on_cpu, _kernel_gradient))
    return (
        lax.platform_dependent(gradient, kernel, cpu=_image_gradient_on_cpu, default=_image_gradient),
        lax.platform_dependent(x, gradient, cpu=on_cpu, default=elsewhere),
    )


convolve.defvjp(_forward, _backward)


# --- XLA's convolutions ---


def _convolve(x, kernel, padding: str | tuple[tuple[int, int], ...] = "SAME"):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_LAYOUT)


def _image_gradient(gradient, kernel):
    x = jax.ShapeDtypeStruct((*gradient.shape[:3], kernel.shape[2]), gradient.dtype)
    return jax.linear_transpose(lambda x: _convolve(x, kernel), x)(gradient)[0]


def _kernel_gradient(size, x, gradient):
    kernel = jax.ShapeDtypeStruct((size, size, x.shape[-1], gradient.shape[-1]), x.dtype)
    result = jax.linear_transpose(lambda kernel: _convolve(x, kernel), kernel)(gradient)[0]
    # On a GPU, the result's layout differs from the parameters'. XLA would transpose parameters and momentum to it,
    # and back after the update; flattening the gradient makes XLA transpose the gradient instead.
    return lax.optimization_barrier(result.ravel()).reshape(result.shape)


# --- on the CPU ---


def _convolve_on_cpu(x, kernel):
    return winograd.convolve(x, kernel) if _winograd_pays(x, kernel) else _convolve(x, kernel)


def _image_gradient_on_cpu(gradient, kernel):
    if _winograd_pays(gradient, kernel):
        return winograd.image_gradient(gradient, kernel)
    return _image_gradient(gradient, kernel)


def _kernel_gradient_on_cpu(size, x, gradient):
    channels = x.shape[-1], gradient.shape[-1]
    if size == 3 and x.dtype == jnp.float32 and min(channels) >= 64:
        return winograd.kernel_gradient(x, gradient)
    if channels[1] < channels[0]:  # the same sum with the operands swapped, which negates every offset
        return _correlate(size, gradient, x)[::-1, ::-1].swapaxes(2, 3)
    return _correlate(size, x, gradient)


def _winograd_pays(x, kernel):
    """Return whether Winograd's convolution is faster, by thresholds found in measurements.

    It is used only in float32: 16-bit floats lose too much precision, and float64 is for reference results. The batch
    size is ignored, so that the prediction for an image does not depend on its batch.
    """
    height, width = x.shape[1:3]
    if len(kernel) != 3 or x.dtype != jnp.float32 or min(kernel.shape[2:]) < 256:
        return False
    if not (isinstance(height, int) and isinstance(width, int)):
        return False  # a symbolic size of jax.export
    return winograd.num_tiles(height) * winograd.num_tiles(width) >= 128


def _correlate(size, x, y):
    """Sum x[b,h+i-r,w+j-r,c] * y[b,h,w,d] over the pixels, with r = size // 2: [size,size,C,D].

    This sums over blocks of rows that fit in the cache. XLA instead convolves with a kernel as large as the image, and
    reads it from main memory again for every few outputs.
    """
    batch, height, width, _ = y.shape
    radius = size // 2
    num_blocks = min(max(round(batch * height * width / _BLOCK_PIXELS), 1), height)
    rows = -(-height // num_blocks)
    missing = num_blocks * rows - height
    x = jnp.pad(x, ((0, 0), (radius, radius + missing), (0, 0), (0, 0)))
    y = jnp.pad(y, ((0, 0), (0, missing), (0, 0), (0, 0)))

    def add_block(total, block):
        start = block * rows
        lhs = lax.dynamic_slice_in_dim(x, start, rows + 2 * radius, axis=1)
        lhs = lhs.transpose(3, 1, 2, 0)  # the channels as the batch axis
        rhs = lax.dynamic_slice_in_dim(y, start, rows, axis=1).transpose(1, 2, 0, 3)
        return total + _convolve(lhs, rhs, padding=((0, 0), (radius, radius))), None

    total = jnp.zeros((x.shape[-1], size, size, y.shape[-1]), x.dtype)
    if num_blocks == 1:
        total, _ = add_block(total, 0)
    else:  # a loop, because unrolled blocks would give a full-size network hundreds of convolutions
        total, _ = lax.scan(add_block, total, jnp.arange(num_blocks))
    return total.transpose(1, 2, 0, 3)
