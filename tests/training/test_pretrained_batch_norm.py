"""Test BatchNorm initialized from a pretrained VGG: the encoder computes the VGG's features."""

import jax
import numpy as np
import pytest
import weight_files as files
from random_variables import random_variables

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.nn.convolution import msra
from segnet_jax.nn.preprocessing import CAFFE, TORCH
from segnet_jax.nn.segnet import ENCODERS
from segnet_jax.training import build_model, initial_weights
from segnet_jax.training.pretrained_batch_norm import he_norm
from segnet_jax.weights.vgg import VGG, BatchNormWeights, ConvWeights

torch = pytest.importorskip("torch")

SIZE, CLASSES = 24, 3
ENCODER = ("conv1_1", "conv1_2", "conv2_1", "conv2_2")


@pytest.fixture
def vgg(monkeypatch):
    return VGG("vgg16", {conv: ConvWeights(*each) for conv, each in shrunk(monkeypatch).items()}, CAFFE)


@pytest.fixture
def vgg_bn(monkeypatch):
    convs = shrunk(monkeypatch)
    norms = files.random_batch_norm(convs)
    held = {conv: ConvWeights(*each, BatchNormWeights(*norms[conv])) for conv, each in convs.items()}
    return VGG("vgg16", held, TORCH, 1e-3)


def shrunk(monkeypatch):
    """Return kernels of mixed signs, for which about half of the ReLU outputs are positive."""
    return {
        conv: (kernel, bias - np.float32(0.5)) for conv, (kernel, bias) in files.shrink(monkeypatch, ENCODERS).items()
    }


def batch_of(number, num_devices=1, batch_size=8):
    shape = (num_devices, 1, batch_size, SIZE, SIZE)
    random = np.random.default_rng(number)
    return {"image": random.integers(0, 256, (*shape, 3), np.uint8), "label": np.zeros(shape, np.uint8)}


@pytest.fixture(autouse=True)
def drawn_in_numpy(monkeypatch):
    """Draw the decoder's initial parameters in numpy, which saves seconds of compilation."""
    monkeypatch.setattr(initial_weights, "init_variables", random_variables)


def first(vgg, num_devices=1, **changed):
    config = Config(**{"depth": 2, "image_size": (SIZE, SIZE), "batch_size_per_device": 8 // num_devices} | changed)
    devices = choose_devices(str(num_devices))
    model = build_model.build_model(config, CLASSES, "float32")

    def batches(number):
        return batch_of(number, num_devices, 8 // num_devices)

    return model, initial_weights.first_variables(config, model, vgg, vgg.preprocessing, batches, devices)


def outputs(model, variables, images, *layers):
    """Return the outputs of some layers of our network, with running statistics."""

    @jax.jit
    def apply(variables, image):
        _, held = model.apply(variables, image, train=False, capture_intermediates=True, mutable=["intermediates"])
        return [held["intermediates"][layer]["__call__"][0] for layer in layers]

    return [jax.device_get(apply(variables, image)) for image in images]


def features(model, variables, image):
    """Return the encoder's features before each pooling, from our network."""
    return outputs(model, variables, [image], "conv1_2_bn", "conv2_2_bn")[0]


def features_by_torch(vgg, image):
    """Return the features of the plain VGG, computed by PyTorch."""
    x, maps = torch.tensor(np.asarray(image)).permute(0, 3, 1, 2), []
    for conv in ENCODER:
        weights = vgg.convs[conv]
        kernel = torch.tensor(weights.kernel.transpose(3, 2, 0, 1).copy())
        x = torch.nn.functional.conv2d(x, kernel, torch.tensor(weights.bias), padding=1)
        if (norm := weights.batch_norm) is not None:
            mean, var, scale, bias = map(torch.tensor, (norm.mean, norm.var, norm.scale, norm.bias))
            x = torch.nn.functional.batch_norm(x, mean, var, scale, bias, eps=vgg.batch_norm_epsilon)
        x = torch.relu(x)
        if conv.endswith("_2"):
            maps.append(x.permute(0, 2, 3, 1).numpy())
            x = torch.nn.functional.max_pool2d(x, 2)
    return maps


def image_for(vgg):
    mean, std = (np.float32(values) for values in (vgg.preprocessing.mean, vgg.preprocessing.std))
    return (batch_of(99)["image"][0, 0, :2].astype(np.float32) - mean) / std


@pytest.mark.parametrize(
    "kind, changed",
    [
        ("vgg", {"init_batch_norm": "preserve"}),
        ("vgg_bn", {"init_batch_norm": "rescale", "conv_bias": True, "num_devices": 2}),
        pytest.param("vgg", {"init_batch_norm": "preserve", "conv_bias": True}, marks=pytest.mark.slow),
        pytest.param("vgg_bn", {"init_batch_norm": "rescale", "sync_batch_norm": False}, marks=pytest.mark.slow),
    ],
)
def test_the_encoder_computes_what_the_vgg_computes(kind, changed, request):
    vgg = request.getfixturevalue(kind)
    model, variables = first(vgg, **changed)
    image = image_for(vgg)
    for ours, expected in zip(features(model, variables, image), features_by_torch(vgg, image), strict=True):
        assert expected.max() > 0.1 and (expected == 0).any()
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_with_scale_one_and_shift_zero_it_computes_something_else(vgg):
    model, variables = first(vgg, init_batch_norm="identity")
    assert all((variables["params"][f"{conv}_bn"]["scale"] == 1).all() for conv in ENCODER)
    image = image_for(vgg)
    ours, expected = features(model, variables, image)[1], features_by_torch(vgg, image)[1]
    assert np.abs(ours - expected).max() > 0.5 * expected.max()


@pytest.mark.parametrize("conv_bias", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_normalized_features_are_the_vggs_divided_by_one_number_a_layer(vgg, conv_bias):
    model, variables = first(vgg, init_batch_norm="normalize", conv_bias=conv_bias)
    image = image_for(vgg)
    for stage, (ours, expected) in enumerate(
        zip(features(model, variables, image), features_by_torch(vgg, image), strict=True), start=1
    ):
        number = expected.max() / ours.max()
        assert number > 10  # of these kernels and images
        np.testing.assert_allclose(number * ours, expected, rtol=1e-4, atol=1e-5 * expected.max())
        scale = variables["params"][f"conv{stage}_2_bn"]["scale"]
        np.testing.assert_allclose(np.sqrt(np.mean(scale**2)), 1, rtol=1e-5)
    for conv in ENCODER:
        kernel = variables["params"][conv]["kernel"]
        np.testing.assert_allclose(np.linalg.norm(kernel), np.sqrt(2 * kernel.shape[-1]), rtol=1e-5)
    preserved = first(vgg, init_batch_norm="preserve", conv_bias=conv_bias)[1]
    logits, expected = (outputs(model, each, [image], "conv1_1_D")[0][0] for each in (variables, preserved))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_scale_and_shift_are_the_deviation_and_mean_of_the_vggs_own_outputs(vgg):
    """Check the first convolution with numpy over the same images."""
    _, variables = first(vgg, init_batch_norm="preserve")
    kernel, bias = vgg.convs["conv1_1"].kernel, vgg.convs["conv1_1"].bias
    means, variances = [], []
    for number in range(8):
        image = (batch_of(number)["image"][0, 0].astype(np.float64) - np.array(CAFFE.mean)) / np.array(CAFFE.std)
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))  # [B,H,W,3,3,3], channel first
        out = np.einsum("bhwikl,klio->bhwo", windows, kernel.astype(np.float64)) + bias
        means.append(out.mean((0, 1, 2)))
        variances.append(out.var((0, 1, 2)))
    norm, running = variables["params"]["conv1_1_bn"], variables["batch_stats"]["conv1_1_bn"]
    np.testing.assert_allclose(norm["bias"], np.mean(means, axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm["scale"], np.sqrt(np.mean(variances, axis=0) + 1e-5), rtol=1e-4)
    np.testing.assert_allclose(running["mean"], np.mean(means, axis=0) - bias, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(variables["params"]["conv1_1"]["kernel"], kernel)


def test_rescaled_kernels_have_the_norm_of_he_initialization(vgg):
    _, variables = first(vgg, init_batch_norm="rescale")
    for conv in ENCODER:
        kernel, trained = variables["params"][conv]["kernel"], vgg.convs[conv].kernel
        np.testing.assert_allclose(np.linalg.norm(kernel), np.sqrt(2 * kernel.shape[-1]), rtol=1e-5)
        factor = np.linalg.norm(kernel) / np.linalg.norm(trained)
        np.testing.assert_allclose(kernel, factor * trained, rtol=1e-5)


def test_the_norm_is_that_of_kernels_as_they_are_drawn():
    shape = (3, 3, 32, 64)
    np.testing.assert_allclose(np.linalg.norm(msra(jax.random.key(0), shape)), he_norm(shape), rtol=0.02)


def test_the_decoder_is_calibrated_on_the_preserved_features(vgg):
    """Check that a decoder layer's running mean is the mean of its convolution's output over the same images."""
    model, variables = first(vgg, init_batch_norm="preserve")
    mean, std = np.float32(CAFFE.mean), np.float32(CAFFE.std)
    images = [(batch_of(number)["image"][0, 0].astype(np.float32) - mean) / std for number in range(8)]
    means = [maps.mean((0, 1, 2)) for (maps,) in outputs(model, variables, images, "conv2_2_D")]
    found = jax.device_get(variables["batch_stats"]["conv2_2_D_bn"]["mean"])
    np.testing.assert_allclose(found, np.mean(means, axis=0), rtol=1e-3, atol=1e-3 * np.abs(means).max())
