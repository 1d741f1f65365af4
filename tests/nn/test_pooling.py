"""Compare pooling and unpooling with loops over every window, written in plain numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segnet_jax.nn import max_pool_with_code, unpool

CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))  # row and column in the window, in the order of the codes


def pool_by_loop(x, pooling):
    """Return maxima and codes; NaN wins, and the first of equal values."""
    batch, height, width, channels = x.shape
    h, w = (-(-size // 2) if pooling == "ceil" else max(1, size // 2) for size in (height, width))
    maxima, codes = np.empty((batch, h, w, channels), x.dtype), np.empty((batch, h, w, channels), np.uint8)
    for b, i, j, c in np.ndindex(maxima.shape):
        best = None
        for code, (row, column) in enumerate(CELLS):
            if 2 * i + row < height and 2 * j + column < width:
                value = x[b, 2 * i + row, 2 * j + column, c]
                if best is None or value > best or np.isnan(value):
                    best, maxima[b, i, j, c], codes[b, i, j, c] = value, value, code
    return maxima, codes


def put_by_loop(values, codes, height, width):
    """Return zeros with each value in the cell of its code."""
    result = np.zeros((values.shape[0], height, width, values.shape[3]), values.dtype)
    for b, i, j, c in np.ndindex(values.shape):
        row, column = CELLS[codes[b, i, j, c]]
        result[b, 2 * i + row, 2 * j + column, c] = values[b, i, j, c]
    return result


def pick_by_loop(array, codes):
    """Return the value in the cell of each code."""
    result = np.empty(codes.shape, array.dtype)
    for b, i, j, c in np.ndindex(codes.shape):
        row, column = CELLS[codes[b, i, j, c]]
        result[b, i, j, c] = array[b, 2 * i + row, 2 * j + column, c]
    return result


@partial(jax.jit, static_argnames="pooling")
def pool_and_unpool(x, factor, cotangent_of_maxima, cotangent_of_unpooled, pooling):
    """Return maxima, codes, the unpooled maxima times a factor, and the gradients with respect to x and factor."""

    def pool(x):
        return max_pool_with_code(x, pooling)

    def chain(x, factor):
        maxima, code = pool(x)
        return unpool(maxima * factor, code, *x.shape[1:3])

    maxima, pool_vjp, code = jax.vjp(pool, x, has_aux=True)
    unpooled, chain_vjp = jax.vjp(chain, x, factor)
    return maxima, code, unpooled, pool_vjp(cotangent_of_maxima), chain_vjp(cotangent_of_unpooled)


@pytest.mark.parametrize("pooling", ["floor", "ceil"])
@pytest.mark.parametrize(
    "height, width, dtype",
    [
        (1, 1, "float32"),
        (1, 4, "float32"),
        (3, 1, "float32"),
        (2, 3, "float32"),
        (6, 4, "float32"),
        (5, 7, "float32"),
        (5, 4, "bfloat16"),
    ],
)
def test_values_codes_and_gradients_equal_the_loop_with_ties(height, width, dtype, pooling):
    rng = np.random.default_rng(height * 10 + width)
    x = rng.integers(-2, 3, (2, height, width, 3)).astype(dtype)  # five values: most windows have a tie
    maxima, codes = pool_by_loop(x, pooling)
    # small integers, so that no product is rounded and all comparisons are exact
    factor, cotangent_of_maxima = rng.integers(-3, 4, (2, *maxima.shape)).astype(dtype)
    cotangent_of_unpooled = rng.integers(-3, 4, x.shape).astype(dtype)
    picked = pick_by_loop(cotangent_of_unpooled, codes)

    results = pool_and_unpool(x, factor, cotangent_of_maxima, cotangent_of_unpooled, pooling)
    our_maxima, our_codes, unpooled, (pool_gradient,), (chain_gradient, factor_gradient) = results

    assert our_codes.dtype == np.uint8
    assert {array.dtype.name for array in (our_maxima, unpooled, pool_gradient, chain_gradient)} == {dtype}
    np.testing.assert_array_equal(our_maxima, maxima)
    np.testing.assert_array_equal(our_codes, codes)
    np.testing.assert_array_equal(unpooled, put_by_loop(maxima * factor, codes, height, width))
    np.testing.assert_array_equal(pool_gradient, put_by_loop(cotangent_of_maxima, codes, height, width))
    np.testing.assert_array_equal(chain_gradient, put_by_loop(picked * factor, codes, height, width))
    np.testing.assert_array_equal(factor_gradient, picked * maxima)


pool = jax.jit(max_pool_with_code, static_argnames="pooling")
put = jax.jit(unpool, static_argnames=("height", "width"))
gradient_of_sum = jax.jit(jax.grad(lambda x: max_pool_with_code(x)[0].sum()))


def test_the_first_of_four_equals_takes_the_whole_gradient():
    gradient = gradient_of_sum(np.full((1, 2, 2, 1), 7, np.float32))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])


def test_floor_keeps_the_only_pixel_as_ceil_does():
    x = np.random.default_rng(0).normal(size=(2, 1, 1, 3)).astype(np.float32)
    for pooling in ("floor", "ceil"):
        maxima, code = pool(x, pooling=pooling)
        np.testing.assert_array_equal(maxima, x)
        np.testing.assert_array_equal(code, np.zeros((2, 1, 1, 3)))
        np.testing.assert_array_equal(put(maxima, code, height=1, width=1), x)


@pytest.mark.parametrize("cell", range(4))
def test_a_nan_passes_through_pool_and_unpool_and_takes_the_gradient(cell):
    row, column = CELLS[cell]
    x = np.array([[3.0, 9.0], [9.0, 1.0]], np.float32)[None, :, :, None]
    x[0, row, column, 0] = np.nan
    maxima, code = pool(x)
    assert np.isnan(maxima).all() and code == cell
    expected = np.zeros((1, 2, 2, 1), np.float32)
    expected[0, row, column, 0] = 1
    np.testing.assert_array_equal(gradient_of_sum(x), expected)
    np.testing.assert_array_equal(put(maxima, code, height=2, width=2), np.where(expected, np.nan, 0))


def test_a_window_of_minus_infinity_at_a_ceil_edge_names_a_cell_that_exists():
    maxima, code = pool(np.full((1, 3, 3, 1), -np.inf, np.float32), pooling="ceil")
    np.testing.assert_array_equal(code, np.zeros((1, 2, 2, 1)))
    assert np.isneginf(maxima).all()


@pytest.mark.parametrize("pooling", ["floor", "ceil"])
def test_nothing_but_the_one_byte_code_is_kept_for_the_gradient(pooling):
    def kept(function, x):  # runs nothing; a scalar is a constant, not an activation
        residuals = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(function, x)[1], x))
        return [(array.dtype.name, array.shape) for array in residuals if array.ndim]

    x = jnp.zeros((1, 5, 6, 8))
    maxima, code = jax.eval_shape(partial(max_pool_with_code, pooling=pooling), x)
    assert kept(partial(max_pool_with_code, pooling=pooling), x) == [("uint8", code.shape)]
    zeros = jnp.zeros(code.shape, code.dtype)
    assert kept(lambda values: unpool(values, zeros, 5, 6), jnp.zeros(maxima.shape)) == [("uint8", code.shape)]


@pytest.mark.parametrize("height, width, pads", [(4, 6, False), (5, 6, True), (4, 7, True)])
def test_the_padding_of_an_odd_size_is_not_fused_into_the_next_convolution(height, width, pads):
    """Check for a barrier in both directions; without it, a GPU's kernel gradient convolves whole maps."""
    x, code = jnp.zeros((1, height // 2, width // 2, 8)), jnp.zeros((1, height // 2, width // 2, 8), jnp.uint8)
    unpooled, pull_back = jax.vjp(lambda x: unpool(x, code, height, width), x)
    forward = jax.jit(lambda x: unpool(x, code, height, width)).lower(x).as_text()
    backward = jax.jit(pull_back).lower(unpooled).as_text()
    assert ["optimization_barrier" in text for text in (forward, backward)] == [pads, pads]
