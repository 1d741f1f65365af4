"""Test every implementation of the convolution against XLA's, against loops over pixels, and as lowered."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segnet_jax.nn import convolution
from segnet_jax.nn.convolution import Convolution, convolve, convolve_padded


def direct(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def drawn(shape, channels, draw):
    """Return an image, a kernel and an output gradient; `draw` takes a shape."""
    return draw((*shape, channels[0])), draw((3, 3, *channels)), draw((*shape, channels[1]))


def normal(seed=0):
    rng = np.random.default_rng(seed)
    return lambda shape: rng.normal(size=shape)


def integers(largest, seed=0):
    rng = np.random.default_rng(seed)
    return lambda shape: rng.integers(-largest, largest + 1, shape).astype(np.float64)


@partial(jax.jit, static_argnums=0)
def with_gradients(function, x, kernel, gradient):
    """Return the output, the image gradient and the kernel gradient."""
    result, pull_back = jax.vjp(function, x, kernel)
    return result, *pull_back(gradient)


def by_loop(x, kernel, gradient):
    """Return the same as `with_gradients`, computed by a loop over all products."""
    result, image_gradient, kernel_gradient = np.zeros(gradient.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    batch, height, width, _ = x.shape
    for b, h, w, i, j in np.ndindex(batch, height, width, 3, 3):
        row, column = h + i - 1, w + j - 1
        if 0 <= row < height and 0 <= column < width:  # outside there are zeros
            for c, d in np.ndindex(kernel.shape[2:]):
                result[b, h, w, d] += x[b, row, column, c] * kernel[i, j, c, d]
                image_gradient[b, row, column, c] += gradient[b, h, w, d] * kernel[i, j, c, d]
                kernel_gradient[i, j, c, d] += x[b, row, column, c] * gradient[b, h, w, d]
    return result, image_gradient, kernel_gradient


def assert_close(ours, expected, rtol):
    """Check that each array is off by at most `rtol` times its largest value."""
    for name, our, exact in zip(("result", "image's gradient", "kernel's gradient"), ours, expected, strict=True):
        assert our.shape == exact.shape, name
        assert np.abs(np.asarray(our, np.float64) - exact).max() <= rtol * np.abs(exact).max(), name


# -- the numbers

SHAPES = [(1, 1, 1), (3, 1, 1), (1, 7, 1), (3, 2, 9), (1, 23, 30)]  # batch, height, width
CHANNELS = [(3, 5), (5, 3)]  # the CPU's kernel gradient swaps operands if there are fewer outputs than inputs


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradients_are_the_direct_convolutions(shape, channels):
    arrays = drawn(shape, channels, normal())
    with jax.enable_x64(True):
        expected = jax.device_get(with_gradients(direct, *map(jnp.asarray, arrays)))
        ours = with_gradients(convolve, *map(jnp.asarray, arrays))
        assert_close(jax.device_get(ours), expected, rtol=1e-13)
    ours = with_gradients(convolve, *(jnp.asarray(array, jnp.float32) for array in arrays))
    assert {array.dtype.name for array in ours} == {"float32"}
    assert_close(ours, expected, rtol=1e-5)


def test_wide_layers_in_float32_are_the_direct_convolution_too():
    arrays = drawn((2, 9, 11), (64, 80), normal())  # wide enough for Winograd's gradient of the kernel
    with jax.enable_x64(True):
        expected = jax.device_get(with_gradients(direct, *map(jnp.asarray, arrays)))
    assert_close(with_gradients(convolve, *(jnp.asarray(array, jnp.float32) for array in arrays)), expected, rtol=1e-4)


@pytest.mark.parametrize("channels", [(2, 3), (3, 2)])
@pytest.mark.parametrize("function", [convolve, convolve_padded])
def test_result_and_gradients_are_those_of_a_loop_over_every_product(function, channels):
    arrays = drawn((2, 3, 4), channels, integers(4))
    for ours, exact in zip(with_gradients(function, *map(np.float32, arrays)), by_loop(*arrays), strict=True):
        np.testing.assert_array_equal(ours, exact)  # whole numbers: nothing is rounded


def test_the_layer_adds_one_bias_a_channel():
    x, kernel, _ = drawn((1, 3, 2), (2, 3), integers(4))
    bias = np.float32([100, -200, 300])
    variables = {"params": {"kernel": np.float32(kernel), "bias": bias}}
    expected = by_loop(x, kernel, np.zeros((1, 3, 2, 3)))[0]
    np.testing.assert_array_equal(Convolution(3).apply(variables, np.float32(x)), expected + bias)
    del variables["params"]["bias"]
    np.testing.assert_array_equal(Convolution(3, use_bias=False).apply(variables, np.float32(x)), expected)


@pytest.mark.parametrize("layer", [Convolution(11, size=1), Convolution(11, size=1, by_channel=True)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_gradient_of_the_bias_is_summed_in_float32(layer, dtype):
    x = jnp.zeros((1, 257, 43, 11), dtype)  # 11,051 pixels, which bfloat16 and float16 cannot distinguish from 11,052
    variables = layer.init(jax.random.key(0), x)
    result, pull_back = jax.vjp(layer.apply, variables, x)
    gradient, _ = pull_back(jnp.ones_like(result))
    np.testing.assert_array_equal(gradient["params"]["bias"], np.full(11, 11_051, np.float32))


# -- the CPU's gradient of the kernel, in blocks of rows


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(
    "shape, block_pixels, num_blocks",
    [
        ((1, 1, 1), 1920, 1),
        ((3, 7, 4), 1920, 1),
        ((3, 7, 4), 42, 2),  # of four rows: the last block has only three
        ((3, 7, 4), 28, 3),  # of three rows: the last block has only one
        ((1, 7, 4), 1, 7),  # a block has at least one row
        ((1, 5, 1), 1, 5),
        ((3, 1, 6), 1, 1),
    ],
)
def test_the_kernels_gradient_is_the_same_in_however_many_blocks(
    monkeypatch, shape, block_pixels, num_blocks, channels
):
    monkeypatch.setattr(convolution, "_BLOCK_PIXELS", block_pixels)
    with jax.enable_x64(True):
        x, kernel, gradient = map(jnp.asarray, drawn(shape, channels, normal()))
        # A new function, because a traced one is not traced again, even if the block size has changed.
        traced = jax.jit(lambda *arrays: convolution._kernel_gradient_on_cpu(3, *arrays)).trace(x, gradient)
        loops = [each.params["length"] for each in traced.jaxpr.eqns if each.primitive.name == "scan"]
        assert loops == ([num_blocks] if num_blocks > 1 else [])
        ours = traced.lower().compile()(x, gradient)
        expected = with_gradients(direct, x, kernel, gradient)[2]
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [(3, 64), (64, 11), (64, 64)])
def test_only_the_cpus_gradient_is_a_loop(channels):
    shapes = drawn((1, 360, 480), channels, lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32))
    program = jax.jit(lambda *arrays: with_gradients(convolve, *arrays))
    loops = {
        platform: "stablehlo.while" in jax.export.export(program, platforms=[platform])(*shapes).mlir_module()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert loops == {"cpu": True, "cuda": False, "tpu": False}


# -- 16 bits: channels filled up with zeros


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("channels", [(3, 8), (8, 11), (5, 3)])
def test_filled_up_channels_change_no_number(channels, dtype):
    arrays = drawn((2, 3, 4), channels, integers(1))  # sums stay below 256, up to which bfloat16 has every integer
    ours = with_gradients(convolve_padded, *(array.astype(dtype) for array in arrays))
    plain = with_gradients(direct, *(jnp.asarray(array, dtype) for array in arrays))
    for our, other, exact in zip(ours, plain, by_loop(*arrays), strict=True):
        assert our.dtype == dtype
        np.testing.assert_array_equal(our, other)
        np.testing.assert_array_equal(np.asarray(our, np.float64), exact)


def convolved_on_a_gpu(layer, inputs, dtype):
    """Return the operand and result sizes of the layer's three convolutions in the program for a GPU."""
    x = jax.ShapeDtypeStruct((2, 5, 6, inputs), dtype)
    parameters = jax.eval_shape(layer.init, jax.random.key(0), x)

    def run(parameters, x):
        result, pull_back = jax.vjp(layer.apply, parameters, x)
        return pull_back(result)

    text = jax.export.export(jax.jit(run), platforms=["cuda"])(parameters, x).mlir_module()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 3
    return set(re.findall(r"tensor<(\S+)x[bf0-9]+>", " ".join(line.split(" : ")[-1] for line in lines)))


@pytest.mark.parametrize("dtype, three, eleven", [("bfloat16", 8, 16), ("float16", 8, 16), ("float32", 3, 11)])
def test_the_first_and_the_last_layer_are_filled_up_to_eights_in_16_bits_alone(dtype, three, eleven):
    first, last = Convolution(64), Convolution(11)
    assert convolved_on_a_gpu(first, 3, dtype) == {f"2x5x6x{three}", f"3x3x{three}x64", "2x5x6x64"}
    assert convolved_on_a_gpu(last, 64, dtype) == {"2x5x6x64", f"3x3x64x{eleven}", f"2x5x6x{eleven}"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_parameters_keep_their_own_shapes_in_float32(dtype):
    for inputs, outputs in [(3, 64), (64, 11)]:
        x = jax.ShapeDtypeStruct((1, 2, 2, inputs), dtype)
        result, variables = jax.eval_shape(Convolution(outputs).init_with_output, jax.random.key(0), x)
        assert (result.shape, result.dtype) == ((1, 2, 2, outputs), dtype)
        assert {name: (array.shape, array.dtype.name) for name, array in variables["params"].items()} == {
            "kernel": ((3, 3, inputs, outputs), "float32"),
            "bias": ((outputs,), "float32"),
        }
