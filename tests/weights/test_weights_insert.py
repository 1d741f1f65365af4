"""Check that a VGG inserted into a network computes the same features."""

import jax
import numpy as np
import pytest
import weight_files as files

from segnet_jax.nn.network_interface import collect_taps
from segnet_jax.nn.preprocessing import CAFFE, TORCH
from segnet_jax.nn.segnet import ENCODERS, SegNet
from segnet_jax.nn.unet import UNet
from segnet_jax.system.errors import UserError
from segnet_jax.weights.insert_vgg import adapt_channels, insert_encoder
from segnet_jax.weights.vgg import VGG, BatchNormWeights, ConvWeights

EPSILON = 1e-5


@pytest.fixture
def small(monkeypatch):
    return files.shrink(monkeypatch, ENCODERS)


def as_vgg(convs, batch_norm=None, epsilon=EPSILON, encoder="vgg16"):
    if batch_norm is None:
        return VGG(encoder, {conv: ConvWeights(*weights) for conv, weights in convs.items()}, CAFFE)
    held = {conv: ConvWeights(*weights, BatchNormWeights(*batch_norm[conv])) for conv, weights in convs.items()}
    return VGG(encoder, held, TORCH, epsilon)


def network(**changed):
    """Return a network and its initial variables."""
    model = SegNet(num_classes=2, **changed)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 4, 4, 3), np.float32), train=False))
    random = np.random.default_rng(5)
    return model, jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), variables)


def insert(model, variables, vgg):
    params, batch_stats = insert_encoder(variables["params"], variables["batch_stats"], vgg, model)
    return {"params": params, "batch_stats": batch_stats}


@pytest.mark.parametrize("with_batch_norm", [False, True])
def test_a_bias_folded_into_the_running_mean_changes_no_output(with_batch_norm, small):
    vgg = as_vgg(small, files.random_batch_norm(small) if with_batch_norm else None)
    image = np.random.default_rng(6).random((1, 6, 5, 3), np.float32)
    biased, with_bias = network(depth=2, conv_bias=True)
    plain, without = network(depth=2)
    with_bias, without = insert(biased, with_bias, vgg), insert(plain, without, vgg)
    for name in with_bias["params"]:  # the same decoder in both, with a bias that its BatchNorm takes away again
        if name.endswith("_D"):
            without["params"][name] = dict(with_bias["params"][name])
            if name != "conv1_1_D":
                bias = without["params"][name].pop("bias")
                mean = with_bias["batch_stats"][f"{name}_bn"]["mean"]
                without["batch_stats"][f"{name}_bn"] = with_bias["batch_stats"][f"{name}_bn"] | {"mean": mean - bias}
        elif name.endswith("_D_bn"):
            without["params"][name] = with_bias["params"][name]
    assert "bias" not in without["params"]["conv1_1"]
    expected = biased.apply(with_bias, image, train=False)
    np.testing.assert_allclose(plain.apply(without, image, train=False), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize("our_epsilon", [1e-5, 1e-3])
def test_the_first_layer_computes_its_formula(conv_bias, our_epsilon, small):
    """Compute one pixel of convolution and BatchNorm by definition, with the epsilon that the file was trained with."""
    batch_norm = files.random_batch_norm(small)
    batch_norm["conv1_1"][3] *= 1e-2  # variances so small that epsilon matters
    model, variables = network(depth=1, conv_bias=conv_bias, batch_norm_epsilon=our_epsilon)
    loaded = insert(model, variables, as_vgg(small, batch_norm))
    patch = np.random.default_rng(7).random((3, 3, 3), np.float32)

    kernel, bias = small["conv1_1"]
    scale, shift, mean, var = batch_norm["conv1_1"]
    expected = scale * (np.tensordot(patch, kernel, 3) + bias - mean) / np.sqrt(var + EPSILON) + shift

    conv, norm = loaded["params"]["conv1_1"], loaded["params"]["conv1_1_bn"]
    stats = loaded["batch_stats"]["conv1_1_bn"]
    x = np.tensordot(patch, conv["kernel"], 3) + (conv["bias"] if conv_bias else 0)
    found = norm["scale"] * (x - stats["mean"]) / np.sqrt(stats["var"] + our_epsilon) + norm["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_plain_vgg_leaves_batch_norm_an_identity_and_everything_is_float32(small):
    model, variables = network()
    loaded = insert(model, variables, as_vgg(small))
    for conv, (kernel, bias) in small.items():
        np.testing.assert_array_equal(loaded["params"][conv]["kernel"], kernel)
        for value, expected in (
            (loaded["params"][f"{conv}_bn"]["scale"], np.ones_like(bias)),
            (loaded["params"][f"{conv}_bn"]["bias"], np.zeros_like(bias)),
            (loaded["batch_stats"][f"{conv}_bn"]["mean"], -bias),
            (loaded["batch_stats"][f"{conv}_bn"]["var"], np.ones_like(bias)),
        ):
            np.testing.assert_array_equal(value, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    jax.tree.map(lambda ours, theirs: np.testing.assert_equal(ours.shape, theirs.shape), loaded, variables)


def test_only_the_encoder_is_replaced_and_the_arguments_are_left_alone(small):
    model, variables = network(depth=4)
    before = jax.tree.map(np.copy, variables)
    loaded = insert(model, variables, as_vgg(small))
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert "conv5_1" not in loaded["params"] and "conv4_3" in loaded["params"]
    for collection in ("params", "batch_stats"):
        for name, leaves in variables[collection].items():
            same = loaded[collection][name] is leaves
            assert same == ("_D" in name), name


def test_another_width_and_another_encoder_are_refused(small):
    model, wide = network(width=2.0)
    with pytest.raises(UserError, match="need width 1: 13 of 13 kernels"):
        insert(model, wide, as_vgg(small))
    model, deeper = network(encoder="vgg19")
    with pytest.raises(UserError, match="vgg16 have no conv3_4, conv4_4, conv5_4"):
        insert(model, deeper, as_vgg(small))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_the_first_kernel_is_adapted_to_other_channels(channels, small):
    """Compare with sums in numpy; three equal channels, or a gray image, give the same result as RGB."""
    vgg = as_vgg(small)
    rgb = small["conv1_1"][0]
    kernel = adapt_channels(vgg, channels).convs["conv1_1"].kernel
    expected = np.empty((3, 3, channels, rgb.shape[3]), np.float32)
    for i in range(channels):
        expected[:, :, i] = rgb.sum(axis=2) if channels == 1 else rgb[:, :, i % 3] * 3 / channels
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    assert kernel.dtype == np.float32 and (channels != 3 or kernel is rgb)
    gray = np.random.default_rng(0).random((1, 6, 5, 1), np.float32)
    if channels == 1:
        found, whole = (
            jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            for x, k in ((gray, kernel), (gray.repeat(3, -1), rgb))
        )
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)
    others = [conv for conv in vgg.convs if conv != "conv1_1"]
    assert all(adapt_channels(vgg, channels).convs[conv] is vgg.convs[conv] for conv in others)


@pytest.mark.slow
def test_a_network_of_four_channels_and_a_unet_take_the_vgg(small):
    vgg, image = as_vgg(small), np.random.default_rng(1).random((1, 8, 8, 3), np.float32)

    def variables_of(model, channels=3):
        shapes = jax.eval_shape(
            lambda: model.init(jax.random.key(0), np.zeros((1, 4, 4, channels), np.float32), train=False)
        )
        random = np.random.default_rng(5)
        return insert(model, jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), shapes), vgg)

    features = [
        collect_taps(model, variables_of(model), image)[1]["features2"]
        for model in (SegNet(2, depth=2), UNet(2, depth=2))
    ]
    np.testing.assert_array_equal(*features)
    four = variables_of(SegNet(2, depth=2, channels=4), channels=4)["params"]["conv1_1"]["kernel"]
    np.testing.assert_allclose(four[:, :, 3], small["conv1_1"][0][:, :, 0] * 0.75, rtol=1e-6)
