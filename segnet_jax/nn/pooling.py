"""Max-pooling that also returns the position of each maximum, and unpooling to these positions.

SegNet's decoder needs no learned upsampling: it places each value where its maximum came from (Badrinarayanan et al.
2017, section 3). The position is one byte per window, the `code`: the row-major index of the maximum among the
four cells of the 2x2 window. The first cell wins a tie, as in Caffe and PyTorch.

Both functions have a custom gradient. JAX's gradient of `max` is divided among tied cells and needs the whole
input in the backward pass. Here the gradient follows the code, and only the code is stored.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

Pooling = Literal["floor", "ceil"]


@jax.named_scope("pool")
def max_pool_with_code(x: jax.Array, pooling: Pooling = "floor") -> tuple[jax.Array, jax.Array]:
    """Max-pool 2x2 windows with stride 2; return the maxima and the codes of their positions.

    Args:
      x: float [B,H,W,C], height and width at least 1.
      pooling: how to treat an odd last row or column: "floor" drops it (PyTorch, MATLAB), "ceil" pools it alone
        (Caffe). An axis of size 1 is pooled either way.

    Returns:
      The maxima, [B,h,w,C] in x's dtype, and their codes, uint8 [B,h,w,C] in 0..3.

    Raises:
      ValueError: If `pooling` is neither "floor" nor "ceil".
    """
    return _pool(_to_even(x, pooling))


@jax.named_scope("unpool")
def unpool(x: jax.Array, code: jax.Array, height: int, width: int) -> jax.Array:
    """Put each value into the cell given by its code and zeros elsewhere.

    Args:
      x: float [B,h,w,C].
      code: uint8 [B,h,w,C], from `max_pool_with_code`.
      height: height before pooling: 2h-1 ("ceil"), 2h or 2h+1 ("floor").
      width: width before pooling: 2w-1, 2w or 2w+1.

    Returns:
      [B,height,width,C] in x's dtype.
    """
    x = _scatter(x, code)
    missing = height - x.shape[1], width - x.shape[2]  # -1, 0 or 1; lax.pad crops by -1
    # Symbolic sizes of jax.export cannot be compared.
    assert all(abs(more) <= 1 for more in missing if isinstance(more, int)), (x.shape, height, width)
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((0, more, 0) for more in missing), (0, 0, 0)])
    # XLA would merge a pad into the next convolution, whose kernel gradient would then, on a GPU, be a convolution of
    # transposed copies with a kernel as large as the feature map.
    return lax.optimization_barrier(x) if any(more == 1 for more in missing if isinstance(more, int)) else x


def _to_even(x: jax.Array, pooling: Pooling) -> jax.Array:
    """Pad or crop [B,H,W,C] at the bottom and right to an even height and width."""
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {get_args(Pooling)}, got {pooling!r}")
    even_sizes = [(size + 1) // 2 * 2 if pooling == "ceil" or size == 1 else size // 2 * 2 for size in x.shape[1:3]]
    missing = [(0, even - size, 0) for even, size in zip(even_sizes, x.shape[1:3], strict=True)]
    return lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), *missing, (0, 0, 0)])


@jax.custom_vjp
def _pool(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the maxima and codes of x, [B,2h,2w,C]."""
    top, right_of_top = _larger(x[:, ::2, ::2], x[:, ::2, 1::2])
    bottom, right_of_bottom = _larger(x[:, 1::2, ::2], x[:, 1::2, 1::2])
    maximum, is_bottom = _larger(top, bottom)
    code = jnp.where(is_bottom, 2 + right_of_bottom.astype(jnp.uint8), right_of_top.astype(jnp.uint8))
    return maximum, code


def _larger(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the elementwise maximum and whether it is the second element; the first wins a tie, and NaN wins."""
    is_second = (second > first) | jnp.isnan(second)
    return jnp.where(is_second, second, first), is_second


@jax.custom_vjp
def _scatter(x: jax.Array, code: jax.Array) -> jax.Array:
    """Spread [B,h,w,C] to [B,2h,2w,C] by compare and select, without a scatter operation."""
    batch, height, width, channels = x.shape
    cell = jnp.array([[0, 1], [2, 3]], jnp.uint8)[None, None, :, None, :, None]  # row-major in the window
    x, code = (array[:, :, None, :, None, :] for array in (x, code))
    spread = jnp.where(code == cell, x, jnp.zeros((), x.dtype))
    return spread.reshape(batch, 2 * height, 2 * width, channels)


def _gather(x: jax.Array, code: jax.Array) -> jax.Array:
    """Pick the cell given by each code from [B,2h,2w,C]; the transpose of `_scatter`."""
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
