"""The convolution in the forms that the machines compute fast; parameters are those of `nn.Conv`.

GPUs and TPUs are given XLA's own, with channels filled up in 16 bits. XLA's CPU backend is fast in the forward
direction and two to five times slower than others in the kernel's gradient; there, ours take its place.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from segnet_jax.nn.cpu import winograd

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_BLOCK_PIXELS = 1920
"""Pixels that a block of the CPU's kernel gradient takes: 64 channels of them are half a megabyte, which stays in a
core's cache."""

msra = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # Caffe's filler of that name, not truncated


class Convolution(nn.Module):
    """A convolution with zero padding: [B,H,W,I] to [B,H,W,channels] in x's dtype.

    Parameters are "kernel", float32 [size,size,I,channels], and "bias", float32 [channels].

    Attributes:
      channels: of the result.
      use_bias: whether there is a bias.
      size: rows and columns of the kernel, odd.
      by_channel: each channel is convolved by itself, I being `channels`; the kernel is [size,size,1,channels].
    """

    channels: int
    use_bias: bool = True
    size: int = 3
    by_channel: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the convolution's result."""
        inputs = 1 if self.by_channel else x.shape[-1]
        kernel = self.param("kernel", msra, (self.size, self.size, inputs, self.channels)).astype(x.dtype)
        y = convolve_channels(x, kernel) if self.by_channel else convolve_padded(x, kernel)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.channels,)).astype(x.dtype)[None, None, None]
        return y


def convolve_padded(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves; in 16 bits with channels filled up with zeros to a multiple of eight, as tensor cores want them.

    XLA itself does so for float16 alone. Of SegNet's layers it concerns the first (3 to 8 in) and the last (11 to 16
    out); the zeros change no number.

    Args:
      x: float [B,H,W,I].
      kernel: x's dtype [k,k,I,O].

    Returns:
      [B,H,W,O] in x's dtype.
    """
    if x.dtype.itemsize != 2:
        return convolve(x, kernel)
    inputs, outputs = kernel.shape[2:]
    more_inputs, more_outputs = -inputs % 8, -outputs % 8
    x = jnp.pad(x, [(0, 0)] * 3 + [(0, more_inputs)])
    kernel = jnp.pad(kernel, [(0, 0)] * 2 + [(0, more_inputs), (0, more_outputs)])
    return convolve(x, kernel)[..., :outputs]


def convolve_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel of [B,H,W,C] with its own kernel, [k,k,1,C], under zero padding: [B,H,W,C]."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT, feature_group_count=x.shape[-1]
    )


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves [B,H,W,I] with a kernel [k,k,I,O] under zero padding: [B,H,W,O]."""
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


# --- as XLA has them ---


def _convolve(x, kernel, padding="SAME"):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_LAYOUT)


def _image_gradient(gradient, kernel):
    x = jax.ShapeDtypeStruct((*gradient.shape[:3], kernel.shape[2]), gradient.dtype)
    return jax.linear_transpose(lambda x: _convolve(x, kernel), x)(gradient)[0]


def _kernel_gradient(size, x, gradient):
    kernel = jax.ShapeDtypeStruct((size, size, x.shape[-1], gradient.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _convolve(x, kernel), kernel)(gradient)[0]


# --- on the CPU ---


def _convolve_on_cpu(x, kernel):
    return winograd.convolve(x, kernel) if _multiplies_much(x, kernel) else _convolve(x, kernel)


def _image_gradient_on_cpu(gradient, kernel):
    if _multiplies_much(gradient, kernel):
        return winograd.image_gradient(gradient, kernel)
    return _image_gradient(gradient, kernel)


def _kernel_gradient_on_cpu(size, x, gradient):
    channels = x.shape[-1], gradient.shape[-1]
    if size == 3 and x.dtype == jnp.float32 and min(channels) >= 64:
        return winograd.kernel_gradient(x, gradient)
    if channels[1] < channels[0]:  # the same sum with the two exchanged: every offset changes its sign
        return _correlate(size, gradient, x)[::-1, ::-1].swapaxes(2, 3)
    return _correlate(size, x, gradient)


def _multiplies_much(x, kernel):
    """Whether the products saved outweigh the way to Winograd's tiles and back, as measured.

    Not in other precisions: 16 bits would not bear the rounding, and float64 is for references. How many images there
    are plays no part, so that what the network says of an image does not depend on its batch.
    """
    height, width = x.shape[1:3]
    if len(kernel) != 3 or x.dtype != jnp.float32 or min(kernel.shape[2:]) < 256:
        return False
    if not (isinstance(height, int) and isinstance(width, int)):
        return False  # jax.export has left the size open
    return winograd.num_tiles(height) * winograd.num_tiles(width) >= 128


def _correlate(size, x, y):
    """Sums x[b,h+i-r,w+j-r,c] * y[b,h,w,d] over pixels, with r = size // 2: [size,size,C,D].

    It goes by blocks of rows that fit in the cache.
    XLA's own form has a kernel as large as the image, which it reads anew from main memory for every few outputs.
    """
    batch, height, width, _ = y.shape
    reach = size // 2
    num_blocks = min(max(round(batch * height * width / _BLOCK_PIXELS), 1), height)
    rows = -(-height // num_blocks)
    missing = num_blocks * rows - height
    x = jnp.pad(x, ((0, 0), (reach, reach + missing), (0, 0), (0, 0)))
    y = jnp.pad(y, ((0, 0), (0, missing), (0, 0), (0, 0)))

    def add_block(total, block):
        start = block * rows
        lhs = lax.dynamic_slice_in_dim(x, start, rows + 2 * reach, axis=1).transpose(
            3, 1, 2, 0
        )  # its channels as a batch
        rhs = lax.dynamic_slice_in_dim(y, start, rows, axis=1).transpose(1, 2, 0, 3)
        return total + _convolve(lhs, rhs, padding=((0, 0), (reach, reach))), None

    total = jnp.zeros((x.shape[-1], size, size, y.shape[-1]), x.dtype)
    if num_blocks == 1:
        total, _ = add_block(total, 0)
    else:  # a loop: written out, the program of a full-size network would hold hundreds of convolutions
        total, _ = lax.scan(add_block, total, jnp.arange(num_blocks))
    return total.transpose(1, 2, 0, 3)
