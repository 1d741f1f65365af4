"""Upsampling without pooling codes, for the question whether they help: bilinear interpolation, fixed or learnt.

Source: SegNet's paper (arXiv 1511.00561, Table 1) compares unpooling with fixed bilinear interpolation and
with FCN's learnt one: a transposed convolution 4x4 of stride 2 that begins as bilinear interpolation (arXiv 1411.4038).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

Upsampling = Literal["indices", "bilinear", "learnt"]

_TAPS = (0.25, 0.75, 0.75, 0.25)  # of bilinear interpolation to twice the size, between the middles of pixels


class LearntUpsampling(nn.Module):
    """Doubles [B,h,w,C] by a transposed convolution of each channel, which begins as bilinear interpolation.

    The parameter is "kernel", float32 [4,4,1,C].
    """

    @nn.compact
    def __call__(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """Returns [B,height,width,C], as `upsample` does."""
        kernel = self.param("kernel", lambda _: bilinear_kernel(x.shape[-1]))
        return upsample(x, kernel.astype(x.dtype), height, width)


def bilinear_kernel(channels: int) -> jax.Array:
    """The kernel of `upsample` that interpolates bilinearly, float32 [4,4,1,channels]."""
    taps = jnp.array(_TAPS, jnp.float32)
    return jnp.broadcast_to(jnp.outer(taps, taps)[:, :, None, None], (4, 4, 1, channels))


def upsample(x: jax.Array, kernel: jax.Array, height: int, width: int) -> jax.Array:
    """Transposed convolution of each channel with stride 2, the image going on beyond its edge as it ends there.

    Args:
      x: float [B,h,w,C].
      kernel: x's dtype [4,4,1,C].
      height: rows of the result, 2h-1 to 2h+1: those of what was pooled.
      width: columns of the result, likewise.

    Returns:
      [B,height,width,C] in x's dtype.
    """
    batch, rows, columns, channels = x.shape
    x = _with_edge(_with_edge(x, 1), 2)

    def cell(bottom: int, right: int) -> jax.Array:
        """The pixels in one place of the 2x2 that become of each pixel: each a sum over its 2x2 nearest."""
        total = jnp.zeros((), x.dtype)
        for i in range(2):
            for j in range(2):
                down, across = bottom + i, right + j
                near = x[:, down : down + rows, across : across + columns]
                total += near * kernel[3 - bottom - 2 * i, 3 - right - 2 * j][None, None]
        return total

    cells = jnp.stack([jnp.stack([cell(i, j) for j in range(2)], axis=3) for i in range(2)], axis=2)
    doubled = cells.reshape(batch, 2 * rows, 2 * columns, channels)
    for axis, size in ((1, height), (2, width)):
        # Where jax.export has left the size open, whether a row is missing is not known: one is added, and cut off.
        if not isinstance(size, int) or doubled.shape[axis] < size:
            doubled = _with_edge(doubled, axis, before=False)
        doubled = doubled[(slice(None),) * axis + (slice(size),)]
    return doubled


def _with_edge(x: jax.Array, axis: int, before: bool = True) -> jax.Array:
    """Repeats the last row or column of an axis, and the first."""
    first, last = x[(slice(None),) * axis + (slice(1),)], x[(slice(None),) * axis + (slice(-1, None),)]
    return jnp.concatenate([first, x, last] if before else [x, last], axis=axis)
