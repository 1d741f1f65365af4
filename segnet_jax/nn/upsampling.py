"""Bilinear upsampling, fixed or learned: the alternatives to unpooling in SegNet's paper.

Source: SegNet (arXiv 1511.00561, Table 1). The learned upsampling is FCN's (arXiv 1411.4038): a transposed 4x4
convolution with stride 2, initialized as bilinear interpolation.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

Upsampling = Literal["indices", "bilinear", "learnt"]

_TAPS = (0.25, 0.75, 0.75, 0.25)  # bilinear interpolation to twice the size, pixel centers at half-integers


class LearntUpsampling(nn.Module):
    """Upsampling by two with a depthwise transposed convolution, initialized as bilinear interpolation.

    The parameter is "kernel", float32 [4,4,1,C].
    """

    @nn.compact
    def __call__(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """Return [B,height,width,C]; see `upsample`."""
        kernel = self.param("kernel", lambda _: bilinear_kernel(x.shape[-1]))
        return upsample(x, kernel.astype(x.dtype), height, width)


def bilinear_kernel(channels: int) -> jax.Array:
    """Return the kernel of bilinear interpolation for `upsample`, float32 [4,4,1,channels]."""
    taps = jnp.array(_TAPS, jnp.float32)
    return jnp.broadcast_to(jnp.outer(taps, taps)[:, :, None, None], (4, 4, 1, channels))


def upsample(x: jax.Array, kernel: jax.Array, height: int, width: int) -> jax.Array:
    """Apply a depthwise transposed convolution with stride 2 and edge padding.

    Args:
      x: float [B,h,w,C].
      kernel: [4,4,1,C] in x's dtype.
      height: height before pooling, 2h-1 to 2h+1.
      width: width before pooling, 2w-1 to 2w+1.

    Returns:
      [B,height,width,C] in x's dtype.
    """
    batch, rows, columns, channels = x.shape
    x = _with_edge(_with_edge(x, 1), 2)

    def cell(bottom: int, right: int) -> jax.Array:
        """Return one of the four output pixels of each input pixel: a weighted sum of the 2x2 nearest inputs."""
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
        # Symbolic sizes of jax.export cannot be compared: pad by one row, which the slice below may remove.
        if not isinstance(size, int) or doubled.shape[axis] < size:
            doubled = _with_edge(doubled, axis, before=False)
        doubled = doubled[(slice(None),) * axis + (slice(size),)]
    return doubled


def _with_edge(x: jax.Array, axis: int, before: bool = True) -> jax.Array:
    """Pad an axis with its edge element at the end and, with `before`, at the start."""
    first, last = x[(slice(None),) * axis + (slice(1),)], x[(slice(None),) * axis + (slice(-1, None),)]
    return jnp.concatenate([first, x, last] if before else [x, last], axis=axis)
