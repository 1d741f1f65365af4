"""Winograd's 3x3 convolution for CPUs, with a quarter of the multiplications.

F(4x4,3x3) computes each tile of 4x4 outputs from 6x6 inputs with 36 multiplications instead of 144, each a matrix
product over the channels. Small constant matrices transform the inputs, the kernel and the outputs. In float32, the
result differs from the direct sum by about 1e-5 of the largest value.

Source: Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016 (arXiv 1509.09308), section 4.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_INPUT = np.array(  # B transposed in the paper
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_KERNEL = np.array(  # G
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])  # A transposed

_TILE = 4
_STRIP_TILES = 512
"""Tiles per strip of the kernel gradient; their transformed values fit in the cache."""


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve [B,H,W,I] with a kernel [3,3,I,O] and zero padding to [B,H,W,O]."""
    inputs, outputs = kernel.shape[2:]
    frequencies = _transform(_KERNEL, kernel.reshape(9, -1)).reshape(36, inputs, outputs)
    return _by_tiles(x, frequencies, contracted=1)


def image_gradient(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the image gradient [B,H,W,I] for an output gradient [B,H,W,O]."""
    inputs, outputs = kernel.shape[2:]
    reversed_ = _KERNEL[:, ::-1]  # the kernel rotated by 180 degrees; `contracted` swaps its channels
    frequencies = _transform(reversed_, kernel.reshape(9, -1)).reshape(36, inputs, outputs)
    return _by_tiles(gradient, frequencies, contracted=2)


def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Return the kernel gradient [3,3,I,O] for x and an output gradient [B,H,W,O]."""
    batch, height, width, outputs = gradient.shape
    inputs = x.shape[-1]
    high, wide = num_tiles(height), num_tiles(width)
    strips = min(max(round(batch * high * wide / _STRIP_TILES), 1), high)
    rows = _TILE * -(-high // strips)  # pixel rows per strip
    x = _pad(x, strips * rows, wide, margin=1)
    gradient = _pad(gradient, strips * rows, wide, margin=0)

    def add_strip(total, strip):
        inside = lax.dynamic_slice_in_dim(x, strip * rows, rows + 2, axis=1)
        outside = lax.dynamic_slice_in_dim(gradient, strip * rows, rows, axis=1)
        left = _transform(_INPUT, _cells(inside, 6)).reshape(36, -1, inputs)
        right = _transform(_OUTPUT.T, _cells(outside, _TILE)).reshape(36, -1, outputs)
        return total + lax.dot_general(left, right, (((1,), (1,)), ((0,), (0,)))), None

    total = jnp.zeros((36, inputs, outputs), x.dtype)
    total, _ = lax.scan(add_strip, total, jnp.arange(strips)) if strips > 1 else add_strip(total, 0)
    return _transform(_KERNEL.T, total.reshape(36, -1)).reshape(3, 3, inputs, outputs)


def num_tiles(size: int) -> int:
    """Return the number of tiles that cover a height or width."""
    return -(-size // _TILE)


def _by_tiles(x: jax.Array, frequencies: jax.Array, contracted: int) -> jax.Array:
    """Convolve with a transformed kernel [36,I,O], whose axis `contracted` is x's channels."""
    batch, height, width, channels = x.shape
    high, wide = num_tiles(height), num_tiles(width)
    padded = _pad(x, _TILE * high, wide, margin=1)
    tiles = _transform(_INPUT, _cells(padded, 6)).reshape(36, -1, channels)
    products = lax.dot_general(tiles, frequencies, (((2,), (contracted,)), ((0,), (0,))))
    cells = _transform(_OUTPUT, products.reshape(36, -1)).reshape(_TILE, _TILE, batch, high, wide, -1)
    return cells.transpose(2, 3, 0, 4, 1, 5).reshape(batch, _TILE * high, _TILE * wide, -1)[:, :height, :width]


def _transform(matrix: np.ndarray, cells: jax.Array) -> jax.Array:
    """Apply a matrix to the rows and columns of square cells, which are flattened along the first axis."""
    return jnp.asarray(np.kron(matrix, matrix), cells.dtype) @ cells


def _pad(x: jax.Array, rows: int, wide: int, margin: int) -> jax.Array:
    """Pad [B,H,W,C] with zeros by a margin, and at the bottom and right to whole tiles."""
    _, height, width, _ = x.shape
    return jnp.pad(x, ((0, 0), (margin, rows - height + margin), (margin, _TILE * wide - width + margin), (0, 0)))


def _cells(x: jax.Array, size: int) -> jax.Array:
    """Extract cells of size x size pixels with stride 4, flattened to [size * size, N]."""
    down, across = (slice(None, _TILE * ((length - size) // _TILE) + 1, _TILE) for length in x.shape[1:3])
    rows, columns = (length - size + 1 for length in x.shape[1:3])
    slices = [x[:, i : i + rows, j : j + columns][:, down, across] for i in range(size) for j in range(size)]
    return jnp.stack(slices).reshape(size * size, -1)
