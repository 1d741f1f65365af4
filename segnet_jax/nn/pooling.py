"""Max-pooling that remembers where the maximum was, and the unpooling that puts values back there.

SegNet's decoder needs no learnt upsampling: it places each value where its maximum came from (Badrinarayanan et al.
2017, section 3). One byte a window is kept, the `code`: which of the four cells of the 2x2 window held the maximum, in
row-major order, the first one winning a tie as in Caffe and PyTorch.

Both functions carry their own gradient. JAX's `max` would split the gradient of tied maxima over the tied cells, and
would keep the whole input for the backward pass; here the gradient follows the code, and only the code is kept.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

Pooling = Literal["floor", "ceil"]


def max_pool_with_code(x: jax.Array, pooling: Pooling = "floor") -> tuple[jax.Array, jax.Array]:
    """Takes the maximum of each 2x2 window, stride 2, and says which cell held it.

    Args:
      x: float [B,H,W,C], any height and width from 1 up.
      pooling: what becomes of an odd last row or column: "floor" drops it (PyTorch, MATLAB), "ceil" pools it alone
        (Caffe). The only row or column of an axis is never dropped.

    Returns:
      The maxima, [B,h,w,C] in x's dtype, and their codes, uint8 [B,h,w,C] in 0..3.

    Raises:
      ValueError: for another word than "floor" or "ceil".
    """
    return _pool(_to_even(x, pooling))


def unpool(x: jax.Array, code: jax.Array, height: int, width: int) -> jax.Array:
    """Puts each value back into the cell that its code names; all other cells are zero.

    Args:
      x: float [B,h,w,C].
      code: uint8 [B,h,w,C], from `max_pool_with_code`.
      height: rows of the result, those of what was pooled: 2h-1 ("ceil"), 2h or 2h+1 ("floor").
      width: columns of the result, likewise.

    Returns:
      [B,height,width,C] in x's dtype.
    """
    x = _scatter(x, code)
    missing = height - x.shape[1], width - x.shape[2]  # -1, 0 or 1: a negative one crops
    # Where jax.export has left the size open, it is an expression, of which it is not known.
    assert all(abs(more) <= 1 for more in missing if isinstance(more, int)), (x.shape, height, width)
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((0, more, 0) for more in missing), (0, 0, 0)])
    # XLA would fold a pad into the convolution behind it, whose kernel gradient then becomes, on a GPU, a convolution
    # with a kernel as large as the map, in transposed copies.
    return lax.optimization_barrier(x) if any(more == 1 for more in missing if isinstance(more, int)) else x


def _to_even(x: jax.Array, pooling: Pooling) -> jax.Array:
    """Pads or crops [B,H,W,C] at the bottom and right to even height and width."""
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {get_args(Pooling)}, got {pooling!r}")
    rounded_up = [(size + 1) // 2 * 2 if pooling == "ceil" or size == 1 else size // 2 * 2 for size in x.shape[1:3]]
    missing = [(0, wanted - size, 0) for wanted, size in zip(rounded_up, x.shape[1:3], strict=True)]
    return lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), *missing, (0, 0, 0)])


@jax.custom_vjp
def _pool(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maxima and codes of [B,2h,2w,C]."""
    top, right_of_top = _larger(x[:, ::2, ::2], x[:, ::2, 1::2])
    bottom, right_of_bottom = _larger(x[:, 1::2, ::2], x[:, 1::2, 1::2])
    maximum, is_bottom = _larger(top, bottom)
    code = jnp.where(is_bottom, 2 + right_of_bottom.astype(jnp.uint8), right_of_top.astype(jnp.uint8))
    return maximum, code


def _larger(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The larger of two arrays and whether it is the second; a tie goes to the first, a NaN always passes."""
    is_second = (second > first) | jnp.isnan(second)
    return jnp.where(is_second, second, first), is_second


@jax.custom_vjp
def _scatter(x: jax.Array, code: jax.Array) -> jax.Array:
    """Spreads [B,h,w,C] to [B,2h,2w,C] by comparing and selecting; no index, no scatter operation."""
    batch, height, width, channels = x.shape
    cell = jnp.array([[0, 1], [2, 3]], jnp.uint8)[None, None, :, None, :, None]  # row-major in the window
    x, code = (array[:, :, None, :, None, :] for array in (x, code))
    spread = jnp.where(code == cell, x, jnp.zeros((), x.dtype))
    return spread.reshape(batch, 2 * height, 2 * width, channels)


def _gather(x: jax.Array, code: jax.Array) -> jax.Array:
    """Picks from [B,2h,2w,C] the cell that each code names: what `_scatter` has put there."""
    top = jnp.where(code == 0, x[:, ::2, ::2], x[:, ::2, 1::2])
    bottom = jnp.where(code == 2, x[:, 1::2, ::2], x[:, 1::2, 1::2])
    return jnp.where(code < 2, top, bottom)


def _pool_forward(x):
    maximum, code = _pool(x)
    return (maximum, code), code


def _pool_backward(code, gradients):
    return (_scatter(gradients[0], code),)


def _scatter_forward(x, code):
    return _scatter(x, code), code


def _scatter_backward(code, gradient):
    return _gather(gradient, code), None


_pool.defvjp(_pool_forward, _pool_backward)
_scatter.defvjp(_scatter_forward, _scatter_backward)
