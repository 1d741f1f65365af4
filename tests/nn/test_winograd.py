"""Compare Winograd's convolution and its gradients with XLA's direct ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segnet_jax.nn import convolution
from segnet_jax.nn.cpu import winograd

SHAPES = [(1, 1, 1), (2, 4, 4), (1, 5, 11), (2, 9, 3), (1, 23, 30)]  # batch, height, width


def direct(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def drawn(shape, inputs=3, outputs=5, dtype=np.float64):
    rng = np.random.default_rng(0)
    sizes = ((*shape, inputs), (3, 3, inputs, outputs), (*shape, outputs))
    return [rng.normal(size=size).astype(dtype) for size in sizes]


@pytest.mark.parametrize("shape", [*SHAPES[:2], *(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES[2:])])
def test_in_float64_it_is_the_direct_convolution_with_the_direct_gradients(shape):
    with jax.enable_x64(True):
        x, kernel, gradient = map(jnp.asarray, drawn(shape))
        expected, pull_back = jax.vjp(direct, x, kernel)
        by_image, by_kernel = pull_back(gradient)
        np.testing.assert_allclose(winograd.convolve(x, kernel), expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(winograd.image_gradient(gradient, kernel), by_image, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(winograd.kernel_gradient(x, gradient), by_kernel, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tiles", [1, 7, 16])
def test_the_kernels_gradient_is_the_same_in_however_many_strips(monkeypatch, tiles):
    monkeypatch.setattr(winograd, "_STRIP_TILES", tiles)
    with jax.enable_x64(True):
        x, kernel, gradient = map(jnp.asarray, drawn((2, 23, 30)))
        (by_kernel,) = jax.vjp(partial(direct, x), kernel)[1](gradient)
        np.testing.assert_allclose(winograd.kernel_gradient(x, gradient), by_kernel, rtol=1e-9, atol=1e-11)


def test_in_float32_it_is_off_by_a_hundred_thousandth_of_the_largest_number():
    x, kernel, gradient = drawn((1, 24, 32), 256, 256)  # as wide as in use
    with jax.enable_x64(True):
        expected, pull_back = jax.vjp(direct, x, kernel)
        expected = jax.device_get((expected, *pull_back(gradient)))
    x, kernel, gradient = (array.astype(np.float32) for array in (x, kernel, gradient))
    ours = (
        winograd.convolve(x, kernel),
        winograd.image_gradient(gradient, kernel),
        winograd.kernel_gradient(x, gradient),
    )
    for our, exact in zip(ours, expected, strict=True):
        assert our.dtype == jnp.float32
        assert 0 < np.abs(np.asarray(our) - exact).max() < 5e-5 * np.abs(exact).max()


@pytest.mark.parametrize(
    "shape, channels, dtype, uses",
    [
        ((1, 45, 60), (256, 512), "float32", True),
        ((1, 45, 60), (128, 512), "float32", False),  # too few products saved
        ((1, 22, 30), (512, 512), "float32", False),  # too few tiles for the Winograd kernel gradient
        ((9, 22, 30), (512, 512), "float32", False),  # an image's result does not depend on its batch
        ((1, 45, 60), (256, 512), "bfloat16", False),
        ((1, 45, 60), (256, 512), "float64", False),
    ],
)
def test_it_is_used_on_the_cpu_in_float32_where_it_saves_much(shape, channels, dtype, uses):
    with jax.enable_x64(dtype == "float64"):
        x, kernel = jnp.zeros((*shape, channels[0]), dtype), jnp.zeros((3, 3, *channels), dtype)

        def has(platform):
            exported = jax.export.export(jax.jit(convolution.convolve), platforms=[platform])(x, kernel)
            return "stablehlo.convolution" not in exported.mlir_module()

        assert has("cpu") == uses
        assert not has("cuda") and not has("tpu")
