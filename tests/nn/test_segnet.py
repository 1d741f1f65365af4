"""Test the network's names, sizes, dtypes and statistics against hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from segnet_jax.nn import SegNet

TINY = 1 / 32  # widths 2, 4, 8, 16, 16

# SegNet-Tutorial's segnet_train.prototxt: every convolution in order, with its inputs and outputs
PUBLISHED = {
    "conv1_1": (3, 64), "conv1_2": (64, 64),
    "conv2_1": (64, 128), "conv2_2": (128, 128),
    "conv3_1": (128, 256), "conv3_2": (256, 256), "conv3_3": (256, 256),
    "conv4_1": (256, 512), "conv4_2": (512, 512), "conv4_3": (512, 512),
    "conv5_1": (512, 512), "conv5_2": (512, 512), "conv5_3": (512, 512),
    "conv5_3_D": (512, 512), "conv5_2_D": (512, 512), "conv5_1_D": (512, 512),
    "conv4_3_D": (512, 512), "conv4_2_D": (512, 512), "conv4_1_D": (512, 256),
    "conv3_3_D": (256, 256), "conv3_2_D": (256, 256), "conv3_1_D": (256, 128),
    "conv2_2_D": (128, 128), "conv2_1_D": (128, 64),
    "conv1_2_D": (64, 64), "conv1_1_D": (64, 11),
}  # fmt: skip


def shapes_of(model, batch=1, height=32, width=32):
    """Return the shapes and dtypes of the variables without computing them."""
    image = jnp.zeros((batch, height, width, 3), jnp.float32)
    return jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))


def names_in_order(model):
    """Return the names of the convolutions in the order of the forward pass."""
    names = []  # filled while tracing, because eval_shape's result is sorted
    image = jnp.zeros((1, 1, 1, 3))
    jax.eval_shape(lambda key: names.extend(model.init(key, image, train=False)["params"]), jax.random.key(0))
    return [name for name in names if not name.endswith("_bn")]


def count(tree):
    return sum(array.size for array in jax.tree.leaves(tree))


def train_and_evaluate(model):
    """Return a jitted function of variables and image that returns two logits and the statistics between them.

    The first logits are those of a training step, the second those with the running statistics.
    """

    @jax.jit
    def run(variables, image):
        logits, updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return logits, updated["batch_stats"], model.apply(variables, image, train=False)

    return run


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# -- names, widths, counts


def test_the_convolutions_are_the_published_ones_in_name_order_and_width():
    parameters = shapes_of(SegNet(11))["params"]
    kernels = {name: group["kernel"].shape for name, group in parameters.items() if "kernel" in group}
    assert names_in_order(SegNet(11)) == list(PUBLISHED)
    assert kernels == {name: (3, 3, *channels) for name, channels in PUBLISHED.items()}


def test_every_convolution_but_the_last_has_a_batch_norm_of_its_name():
    variables = shapes_of(SegNet(11))
    expected = {f"{name}_bn": outputs for name, (_, outputs) in PUBLISHED.items() if name != "conv1_1_D"}
    assert variables["params"].keys() == PUBLISHED.keys() | expected.keys()
    assert variables["batch_stats"].keys() == expected.keys()
    for name, channels in expected.items():
        assert {key: array.shape for key, array in variables["params"][name].items()} == {
            "scale": (channels,),
            "bias": (channels,),
        }
        assert {key: array.shape for key, array in variables["batch_stats"][name].items()} == {
            "mean": (channels,),
            "var": (channels,),
        }


@pytest.mark.parametrize(
    "settings, parameters",
    [
        ({"conv_bias": True}, 29_449_355),  # the published network, counted from its prototxt
        ({}, 29_441_419),  #                  7,936 biases fewer
        # Stages 1-4 have 7,632,576 weights down and 7,637,184 up, 11 biases, 4,864 channels with scale and shift.
        ({"depth": 4}, 15_279_499),
        ({"depth": 4, "conv_bias": True}, 15_284_363),
        # One more convolution in stages 3, 4 and 5, down and up: 2 x (589,824 + 2 x 2,359,296 + 2 x (256 + 2 x 512)).
        ({"encoder": "vgg19"}, 40_063_371),
        # Without the last convolution's 11 biases, with scale and shift for 11 channels.
        ({"final_batch_norm": True}, 29_441_430),
        ({"final_batch_norm": True, "conv_bias": True}, 29_449_377),
        # 3x3 weights: 3 to 64 and 64 to 64 down, 64 to 64 and 64 to 11 up; 11 biases; three BatchNorms.
        ({"depth": 1}, 9 * (3 * 64 + 64 * 64 + 64 * 64 + 64 * 11) + 11 + 3 * 2 * 64),
    ],
)
def test_the_number_of_trainable_parameters(settings, parameters):
    assert count(shapes_of(SegNet(11, **settings))["params"]) == parameters


def test_depth_four_is_the_published_network_without_its_fifth_stage():
    whole, shallow = (shapes_of(SegNet(11, depth=depth)) for depth in (5, 4))
    for collection in ("params", "batch_stats"):
        expected = {name: group for name, group in whole[collection].items() if not name.startswith("conv5")}
        assert shallow[collection] == expected


def test_vgg19_has_four_convolutions_in_each_of_the_stages_three_to_five():
    counts = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4}
    down = [f"conv{stage}_{i}" for stage, n in counts.items() for i in range(1, n + 1)]
    assert names_in_order(SegNet(11, encoder="vgg19")) == down + [f"{name}_D" for name in reversed(down)]


def test_width_scales_every_hidden_layer_and_neither_image_nor_classes():
    parameters = shapes_of(SegNet(7, width=0.25))["params"]
    for name, (inputs, outputs) in PUBLISHED.items():
        expected = (3 if inputs == 3 else inputs // 4, 7 if outputs == 11 else outputs // 4)
        assert parameters[name]["kernel"].shape == (3, 3, *expected)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"encoder": "resnet"}, "encoder.*'resnet'"),
        ({"depth": 0}, "depth must be 1 to 5, got 0"),
        ({"depth": 6}, "depth must be 1 to 5, got 6"),
        ({"width": 0}, "width must be positive, got 0"),
        ({"width": float("nan")}, "width must be positive, got nan"),
        ({"pooling": "ciel"}, "pooling.*'ciel'"),
    ],
)
def test_an_impossible_network_is_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(SegNet(11, **settings))


# -- any size


@pytest.mark.parametrize("pooling", [pytest.param("floor", marks=pytest.mark.slow), "ceil"])
def test_logits_have_the_images_height_and_width(pooling):
    model = SegNet(11, width=TINY, pooling=pooling)
    variables = shapes_of(model)

    def train_and_evaluate(variables, image):
        trained, _ = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return trained, model.apply(variables, image, train=False)

    for height, width in [(1, 1), (1, 50), (33, 2), (45, 61), (360, 480)]:
        image = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
        for logits in jax.eval_shape(train_and_evaluate, variables, image):
            assert (logits.shape, logits.dtype) == ((2, height, width, 11), jnp.float32)


@pytest.mark.parametrize("height, width, pooling", [(1, 1, "floor"), (5, 3, "ceil")])
def test_images_smaller_than_five_poolings_give_finite_logits(height, width, pooling):
    model = SegNet(11, width=TINY, pooling=pooling)
    trained, statistics, evaluated = train_and_evaluate(model)(
        random_variables(model), random_image(1, height, width, 3)
    )
    for array in (trained, evaluated, *jax.tree.leaves(statistics)):
        assert np.isfinite(array).all()


# -- dtypes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_computes_in_it_and_keeps_parameters_statistics_and_logits_in_float32(dtype):
    model = SegNet(11, width=TINY, dtype=jnp.dtype(dtype))
    image = jnp.zeros((2, 33, 40, 3))

    def train(variables):
        return model.apply(
            variables, image, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True
        )

    variables = shapes_of(model)
    logits, updated = jax.eval_shape(train, variables)

    layers = {name: outputs for name, outputs in updated.pop("intermediates").items() if name.startswith("conv")}
    assert len(layers) == 26 + 25
    assert {array.dtype.name for array in jax.tree.leaves(layers)} == {dtype}
    assert {array.dtype.name for array in jax.tree.leaves((variables, updated, logits))} == {"float32"}


def test_half_precision_comes_near_float32():
    model = SegNet(11, depth=2, width=TINY)
    variables, image = random_variables(model), random_image(2, 9, 10, 3)
    expected = jax.tree.leaves(train_and_evaluate(model)(variables, image))
    for dtype in ("bfloat16", "float16"):
        results = jax.tree.leaves(train_and_evaluate(model.clone(dtype=jnp.dtype(dtype)))(variables, image))
        for half, full in zip(results, expected, strict=True):  # on average: values move with maxima
            assert abs(half - full).mean() < 0.1 * abs(full).mean(), dtype


# -- the layers


def test_kernels_start_as_msra_says_and_all_else_is_neutral():
    model = SegNet(11, depth=1)
    image = jnp.zeros((1, 2, 2, 3))
    key = jax.random.key(0, impl="rbg")  # the default generator compiles ten times as long
    variables = jax.jit(lambda key: model.init(key, image, train=False))(key)
    for name, fan_in in {"conv1_1": 9 * 3, "conv1_2": 9 * 64, "conv1_2_D": 9 * 64, "conv1_1_D": 9 * 64}.items():
        kernel = np.asarray(variables["params"][name]["kernel"])
        standardised = kernel / np.sqrt(2 / fan_in)
        error = 1 / np.sqrt(kernel.size)  # the mean's standard error; the deviation's is smaller by sqrt(2)
        assert abs(standardised.mean()) < 4 * error and abs(standardised.std() - 1) < 4 * error
        assert abs(standardised).max() > 2.7  # a normal distribution cut at two deviations would end at 2.3
    assert not variables["params"]["conv1_1_D"]["bias"].any()
    for name, group in variables["batch_stats"].items():
        scale, shift = (variables["params"][name][key] for key in ("scale", "bias"))
        assert (scale == 1).all() and not shift.any() and not group["mean"].any() and (group["var"] == 1).all()


@pytest.mark.parametrize("settings, kept", [({}, 0.9), ({"batch_norm_momentum": 0.5}, 0.5)])
def test_a_training_step_keeps_the_momentum_fraction_of_the_old_statistics(settings, kept):
    model = SegNet(2, depth=1, width=1 / 16, **settings)
    variables, image = random_variables(model), random_image(2, 3, 4, 3)
    _, updated, _ = train_and_evaluate(model)(variables, image)

    padded, kernel = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0))), variables["params"]["conv1_1"]["kernel"]
    convolved = sum(padded[:, i : i + 3, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3))
    old, new = variables["batch_stats"]["conv1_1_bn"], updated["conv1_1_bn"]
    mean, variance = convolved.mean(axis=(0, 1, 2)), convolved.var(axis=(0, 1, 2))  # biased, as flax has it
    np.testing.assert_allclose(new["mean"], kept * old["mean"] + (1 - kept) * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new["var"], kept * old["var"] + (1 - kept) * variance, rtol=1e-5, atol=1e-6)


def test_a_bias_before_batch_norm_is_inert_in_training_and_folds_into_the_running_mean():
    bare, biased = (SegNet(3, depth=2, width=TINY, conv_bias=conv_bias) for conv_bias in (False, True))
    variables, image = random_variables(bare), random_image(2, 6, 7, 3)
    with_bias = jax.tree.map(np.copy, variables)
    rng = np.random.default_rng(1)
    for name, group in with_bias["params"].items():
        if name.endswith("_bn"):
            bias = rng.normal(size=group["bias"].shape).astype(np.float32)
            with_bias["params"][name.removesuffix("_bn")]["bias"] = bias
            with_bias["batch_stats"][name]["mean"] += bias
    trained, _, evaluated = train_and_evaluate(bare)(variables, image)
    biased_trained, _, biased_evaluated = train_and_evaluate(biased)(with_bias, image)
    np.testing.assert_allclose(biased_trained, trained, atol=1e-4 * abs(trained).max())
    np.testing.assert_allclose(biased_evaluated, evaluated, atol=1e-4 * abs(evaluated).max())


def test_final_batch_norm_ends_in_batch_norm_and_relu():
    model = SegNet(11, depth=1, width=TINY, final_batch_norm=True)
    variables = random_variables(model)
    assert list(variables["params"]["conv1_1_D"]) == ["kernel"]  # a bias would be inert here too
    assert variables["params"]["conv1_1_D_bn"]["scale"].shape == (11,)
    assert variables["batch_stats"]["conv1_1_D_bn"]["mean"].shape == (11,)
    logits, _, _ = train_and_evaluate(model)(variables, random_image(2, 6, 7, 3))
    assert logits.min() == 0 and logits.max() > 0


def test_statistics_over_the_mapped_axis_are_those_of_the_whole_batch():
    plain, synchronized = (SegNet(3, depth=2, width=TINY, sync_axis=axis) for axis in (None, "data"))
    variables, image = random_variables(plain), random_image(4, 6, 7, 3)

    @jax.jit
    def run_in_halves(variables, halves):
        def run(half):
            return synchronized.apply(variables, half, train=True, mutable=["batch_stats"])

        return jax.vmap(run, axis_name="data")(halves)

    logits, statistics, _ = train_and_evaluate(plain)(variables, image)
    half_logits, updated = run_in_halves(variables, image.reshape(2, 2, 6, 7, 3))
    np.testing.assert_allclose(half_logits.reshape(logits.shape), logits, atol=1e-4 * abs(logits).max())
    jax.tree.map(
        lambda halves, whole: np.testing.assert_allclose(halves, np.stack([whole, whole]), rtol=1e-4, atol=1e-5),
        updated["batch_stats"],
        statistics,
    )
