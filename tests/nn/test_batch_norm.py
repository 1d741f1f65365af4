"""Compare BatchNormReLU with flax's layers and hand-computed values; count its collectives and residuals."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import ad_checkpoint
from jax.test_util import check_grads

from segnet_jax.nn.batch_norm import BatchNormReLU, batch_norm_relu

SETTINGS = {"momentum": 0.75, "epsilon": 1e-3}
SHAPE = (8, 5, 6, 3)


class Flax(nn.Module):
    """Flax's BatchNorm and ReLU with the interface of our layer."""

    momentum: float
    epsilon: float

    @nn.compact
    def __call__(self, x, *, train):
        norm = nn.BatchNorm(not train, momentum=self.momentum, epsilon=self.epsilon, dtype=x.dtype, name="norm")
        return nn.relu(norm(x))


FLAX, OURS = Flax(**SETTINGS), BatchNormReLU(**SETTINGS)


def drawn(seed=0):
    """Return an image, an output gradient and variables, float64; no statistic is 0 or 1."""
    rng = np.random.default_rng(seed)
    params = {"scale": rng.uniform(0.5, 1.5, 3), "bias": rng.normal(0, 0.5, 3)}
    statistics = {"mean": rng.normal(0, 0.5, 3), "var": rng.uniform(0.5, 1.5, 3)}
    return rng.normal(1, 2, SHAPE), rng.normal(size=SHAPE), {"params": params, "batch_stats": statistics}


def run(layer, train, x, gradient, variables):
    """Return the output, the new running statistics, and the gradients with respect to x, scale and bias."""

    def apply(x, params):
        result, updated = layer.apply({**variables, "params": params}, x, train=train, mutable=["batch_stats"])
        return result, updated["batch_stats"]

    result, pull_back, statistics = jax.vjp(apply, x, variables["params"], has_aux=True)
    return result, statistics, *pull_back(gradient)


def run_flax(train, x, gradient, variables):
    """Return the same as `run`, computed by flax in float64."""
    nested = {collection: {"norm": arrays} for collection, arrays in variables.items()}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # flax promotes dtypes
        result, statistics, by_x, by_params = jax.jit(partial(run, FLAX, train))(x, gradient, nested)
        return jax.device_get((result, statistics["norm"], by_x, by_params["norm"]))


def assert_close(ours, expected, tolerance):
    for (path, our), exact in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        off = np.abs(np.asarray(our, np.float64) - exact).max()
        assert our.shape == exact.shape
        assert off <= tolerance * np.abs(exact).max(), f"{jax.tree_util.keystr(path)} is off by {off}"


# -- the numbers


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 1e-2)])
def test_values_statistics_and_gradients_are_those_of_flaxs_two_layers(dtype, tolerance, train):
    x, gradient, variables = drawn()
    x, gradient = (array.astype(dtype).astype(np.float64) for array in (x, gradient))  # the same numbers for both
    expected = run_flax(train, x, gradient, variables)
    wide = "float64" if dtype == "float64" else "float32"
    with jax.enable_x64(dtype == "float64"):
        ours = jax.jit(partial(run, OURS, train))(
            x.astype(dtype), gradient.astype(dtype), jax.tree.map(lambda array: array.astype(wide), variables)
        )
        result, statistics, by_x, by_params = jax.device_get(ours)
    assert {array.dtype.name for array in (result, by_x)} == {dtype}
    assert {array.dtype.name for array in jax.tree.leaves((statistics, by_params))} == {wide}
    assert_close((result, statistics, by_x, by_params), expected, tolerance)
    if not train:
        assert_close(statistics, variables["batch_stats"], tolerance=1e-7)


def test_two_channels_worked_by_hand():
    x = np.array([[0, 1], [4, 1], [4, 5], [0, 5]], np.float32).reshape(2, 1, 2, 2)
    variables = {
        "params": {"scale": np.float32([3, 4]), "bias": np.float32([1, -2])},
        "batch_stats": {"mean": np.float32([8, 0]), "var": np.float32([8, 0])},
    }
    # Means 2 and 3, variances 4: pixels become -1 and 1, then -2 and 4 in the first channel, -6 and 2 in the second.
    layer = BatchNormReLU(momentum=0.75, epsilon=0.0)
    result, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(result.reshape(4, 2), [[0, 0], [4, 0], [4, 2], [0, 2]], rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [6.5, 0.75], rtol=1e-6)  # three parts old, one new
    np.testing.assert_allclose(updated["batch_stats"]["var"], [7, 1], rtol=1e-6)


def test_gradients_are_those_of_finite_differences():
    x, _, variables = drawn()
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array) for array in (x[:2, :3, :2], *variables["params"].values())]
        normalize = jax.jit(lambda *arrays: batch_norm_relu(*arrays, 1e-3)[0])
        assert 0.2 < (normalize(*arrays) == 0).mean() < 0.8  # the ReLU cuts off some and lets others pass
        check_grads(normalize, arrays, order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mean", [0, 100])  # in standard deviations
def test_the_gradient_passes_exactly_where_the_result_is_above_zero(mean, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(mean, 1, (4, 4, 4, 500)), dtype)
    scale = np.float32(rng.uniform(0.5, 1.5, 500) * rng.choice([-1, 1], 500))

    @jax.jit
    def result_and_passed(x, scale, bias):
        (y, *_), pull_back = jax.vjp(lambda *arrays: batch_norm_relu(*arrays, 1e-5), x, scale, bias)
        one_each = jnp.broadcast_to(jnp.eye(64, dtype=x.dtype).reshape(64, 4, 4, 4, 1), (64, *x.shape))
        nothing = jnp.zeros((64, 500))
        # The bias gradient sums the gradients that pass the ReLU: for one pixel, it shows whether that pixel passes.
        return y, jax.vmap(pull_back)((one_each, nothing, nothing))[2]

    # One pixel of each channel lies as close to the ReLU's threshold as rounding allows.
    (no_bias, *_) = batch_norm_relu(x, scale, jnp.zeros(500), 1e-5, relu=False)
    bias = -no_bias[0, 0, 0].astype(jnp.float32)
    y, passed = result_and_passed(x, scale, bias)
    np.testing.assert_array_equal(passed, (y > 0).reshape(64, 500))
    assert 0.2 < passed.mean() < 0.8


@pytest.mark.parametrize("train", [True, False])
def test_a_nan_is_not_cut_off(train):
    x, _, variables = jax.tree.map(np.float32, drawn())
    for array in (variables["params"]["bias"], variables["params"]["scale"], x[0, 0, 0]):
        before, array[1] = array[1], np.nan
        result, _ = OURS.apply(variables, x, train=train, mutable=["batch_stats"])
        assert np.isnan(result[0, 0, 0, 1]) and np.isfinite(result[..., ::2]).all()
        array[1] = before


def test_no_gradient_flows_through_the_statistics():
    x, _, variables = drawn()
    x, scale, bias = (np.float32(array) for array in (x, *variables["params"].values()))
    gradients = jax.grad(lambda *arrays: sum(map(jnp.sum, batch_norm_relu(*arrays, 1e-3)[1:])), argnums=(0, 1, 2))
    assert not any(array.any() for array in gradients(x, scale, bias))


@pytest.mark.parametrize("height", [16, 15])  # 256 pixels, division by which is exact, and 240
def test_a_constant_channel_has_no_variance_and_finite_gradients(height):
    values = np.float32([0, 1, -7, 0.1, -1000.1, 33333.3])
    x = np.broadcast_to(values, (2, height, 8, 6))
    scale, bias = np.ones(6, np.float32), np.full(6, 0.5, np.float32)
    results, pull_back = jax.vjp(lambda *arrays: batch_norm_relu(*arrays, 1e-5), x, scale, bias)
    gradients = pull_back((np.random.default_rng(0).normal(size=x.shape).astype(np.float32), *results[1:]))
    result, mean, variance = jax.device_get(results)
    np.testing.assert_allclose(mean, values, rtol=1e-5)
    assert (variance >= 0).all() and (variance <= 1e-5 * values**2).all()  # rounding alone
    assert all(np.isfinite(array).all() for array in (result, *gradients))
    if height == 16:  # sums of integers and their squares are exact
        assert (variance[:3] == 0).all() and (result[..., :3] == 0.5).all()


# -- over devices


def on_devices(num_devices, synchronized):
    """Map the layer and its gradients over devices; parameter gradients are per device."""
    layer = BatchNormReLU(**SETTINGS, axis_name="data" if synchronized else None)
    return jax.pmap(partial(run, layer, True), "data", in_axes=(0, 0, None), devices=jax.devices()[:num_devices])


@pytest.mark.parametrize("num_devices", [2, 8])
def test_devices_that_share_a_batch_compute_what_one_would_with_all_of_it(num_devices):
    x, gradient, variables = drawn()
    expected = run_flax(True, x, gradient, variables)
    halves = [array.reshape(num_devices, -1, *SHAPE[1:]) for array in (x, gradient)]
    with jax.enable_x64(True):
        result, statistics, by_x, by_params = jax.device_get(on_devices(num_devices, True)(*halves, variables))
    for array in jax.tree.leaves(statistics):
        assert (array == array[:1]).all()  # the same on all devices
    ours = (
        result.reshape(SHAPE),
        {name: array[0] for name, array in statistics.items()},
        by_x.reshape(SHAPE),
        {name: array.sum(0) for name, array in by_params.items()},
    )
    assert_close(ours, expected, tolerance=1e-12)


@pytest.mark.parametrize("synchronized, messages", [(True, 1), (False, 0)])
def test_statistics_take_one_message_forward_and_one_backward(synchronized, messages):
    layer = BatchNormReLU(**SETTINGS, axis_name="data" if synchronized else None)
    x, gradient, variables = jax.tree.map(np.float32, drawn())
    x, gradient = (array[:, None] for array in (x, gradient))

    def forward(x, variables):
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])

    def sent(mapped, *arrays):
        text = mapped.lower(*arrays).compile().as_text()
        assert not re.findall(r" (all-gather|all-to-all|reduce-scatter|collective-permute)[a-z-]*\(", text)
        return len(re.findall(r" all-reduce(?:-start)?\(", text))

    assert sent(jax.pmap(forward, "data", in_axes=(0, None)), x, variables) == messages
    assert sent(on_devices(8, synchronized), x, gradient, variables) == 2 * messages


# -- memory


@pytest.mark.parametrize("dtype, short", [("bfloat16", "bf16"), ("float16", "f16"), ("float32", "f32")])
def test_between_the_passes_no_array_of_the_images_size_is_kept_but_the_image(dtype, short, capsys):
    x, channels = jnp.zeros((2, 8, 9, 16), dtype), jnp.ones(16)
    ad_checkpoint.print_saved_residuals(lambda *arrays: batch_norm_relu(*arrays, 1e-3)[0], x, channels, channels)
    kept = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("f32[16] ", "f32[] "))]
    assert [line.split(" from ")[0] for line in kept] == [f"{short}[2,8,9,16]"]
