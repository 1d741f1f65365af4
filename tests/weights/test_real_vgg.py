"""Test a VGG's features from the loaded weights, layer by layer, and the published weights in every format."""

import os
from pathlib import Path

import caffe_layers
import jax
import numpy as np
import pytest
import weight_files as files
from PIL import Image
from safetensors.numpy import save_file

from segnet_jax.nn.preprocessing import CAFFE
from segnet_jax.nn.segnet import ENCODERS, SegNet
from segnet_jax.weights.formats import published_sums
from segnet_jax.weights.insert_vgg import insert_encoder
from segnet_jax.weights.load import read_vgg

VARIABLE = "SEGNET_JAX_VGG16"
RELATIVE = 1e-4
EXACT_EPSILON = 1e-9
"""Epsilon that is lost in float32: with variance 1 and scale 1, BatchNorm only subtracts the mean."""


@pytest.fixture(scope="module")
def published_file():
    """Return Keras' file of the ImageNet weights; skip the tests without it."""
    if not (path := os.environ.get(VARIABLE)):
        pytest.skip(f"{VARIABLE} does not name a file of the ImageNet weights as Keras publishes them")
    return Path(path)


def features(image, convs):
    """Return the ReLU output of every convolution in numpy and float64, [C,H,W] from a BGR image [3,H,W]."""
    x, found = image, {}
    for conv, (kernel, bias) in convs.items():
        if found and conv.endswith("_1"):
            height, width = (size // 2 * 2 for size in x.shape[1:])  # a last odd row or column is dropped
            x, _ = caffe_layers.max_pool(x[:, :height, :width])
        x = found[conv] = np.maximum(caffe_layers.convolution(x, files.oihw(kernel), bias), 0)
    return found


def by_jax_convolutions(image, vgg):
    """Return the features of an RGB image [H,W,3], computed by JAX's convolutions."""
    x, found = ((image - np.float32(vgg.preprocessing.mean)) / np.float32(vgg.preprocessing.std))[None], {}
    for conv, weights in vgg.convs.items():
        if found and conv.endswith("_1"):
            x = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        form = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, weights.kernel, (1, 1), "SAME", dimension_numbers=form, precision="highest")
        x = found[conv] = jax.nn.relu(x + weights.bias[None, None, None])
    return found


def by_our_encoder(image, vgg):
    """Return the features of the network's encoder, whose BatchNorm only adds the bias."""
    model = SegNet(num_classes=2, batch_norm_epsilon=EXACT_EPSILON)
    x = ((image - np.float32(vgg.preprocessing.mean)) / np.float32(vgg.preprocessing.std))[None]
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x[:, :32, :32], train=False))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), variables)
    params, batch_stats = insert_encoder(variables["params"], variables["batch_stats"], vgg, model)

    @jax.jit
    def compute(x):
        variables = {"params": params, "batch_stats": batch_stats}
        _, caught = model.apply(variables, x, train=False, capture_intermediates=True, mutable=["intermediates"])
        return {conv: caught["intermediates"][f"{conv}_bn"]["__call__"][0] for conv in vgg.convs}

    with jax.default_matmul_precision("highest"):
        return compute(x)


def assert_same_features(image, convs, vgg):
    """Compare the features of all convolutions; `convs` are the file's, for BGR."""
    bgr = (np.float64(image) - vgg.preprocessing.mean).transpose(2, 0, 1)[::-1]
    expected = features(bgr, convs)
    for compute in (by_jax_convolutions, by_our_encoder):
        found = compute(np.float32(image), vgg)
        assert found.keys() == expected.keys() == vgg.convs.keys()
        for conv, values in expected.items():
            assert values.max() > 0
            difference = np.abs(np.asarray(found[conv])[0].transpose(2, 0, 1) - values).max() / values.max()
            assert difference < RELATIVE, f"{conv} {compute.__name__}: {difference:.1e}"


def test_features_of_random_weights_are_those_of_a_plain_vgg(monkeypatch, tmp_path):
    wide = ((8, 2), (12, 2), (10, 3), (14, 3), (9, 3))
    monkeypatch.setitem(ENCODERS, "vgg16", wide)
    random = np.random.default_rng(3)
    convs = {
        conv: (np.float32(kernel * np.sqrt(24 / kernel[..., 0].size)), bias)
        for conv, (kernel, bias) in files.random_vgg(wide).items()
    }
    files.write_keras(tmp_path / "w.h5", convs)
    vgg = read_vgg(tmp_path / "w.h5", "vgg16")
    image = random.integers(0, 256, (52, 67, 3), np.uint8)
    as_in_the_file = {conv: (files.bgr(conv, kernel), bias) for conv, (kernel, bias) in convs.items()}
    assert_same_features(image, as_in_the_file, vgg)


def raw_tensors(path):
    """Read the file with h5py; return our name -> kernel for BGR and bias."""
    import h5py

    with h5py.File(path) as file:
        layers = {conv: f"block{conv[4]}_conv{conv[6]}" for conv in files.FEATURES}
        return {conv: tuple(file[f"{layer}/{layer}_{part}_1:0"][()] for part in "Wb") for conv, layer in layers.items()}


def test_features_of_a_camvid_frame_by_the_published_weights(published_file, camvid_folder):
    path = min((camvid_folder / "train").glob("*.png"))
    with Image.open(path) as frame:
        image = np.asarray(frame.convert("RGB"))
    assert image.shape == (360, 480, 3)
    assert_same_features(image, raw_tensors(published_file), read_vgg(published_file, "vgg16"))


FORMS = {
    "keras-1": files.write_keras,
    "keras-3": files.write_keras3,
    "keras-3-archive": files.write_keras3_archive,
    "onnx": lambda path, convs: path.write_bytes(files.OnnxVGG().vgg(convs, first_for="BGR").model()),
    "safetensors": lambda path, convs: save_file(files.state_dict(convs), path),
    "safetensors-own": lambda path, convs: save_file(files.own_names(convs), path),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_published_weights_have_one_sum_through_every_format(form, published_file, tmp_path):
    convs = {
        conv: (np.ascontiguousarray(files.bgr(conv, kernel)), bias)
        for conv, (kernel, bias) in raw_tensors(published_file).items()
    }  # for RGB
    FORMS[form](tmp_path / "w", convs)
    vgg = read_vgg(tmp_path / "w", "vgg16")
    (tmp_path / "w").unlink()
    assert published_sums.checksum(vgg.convs) == published_sums._IMAGENET["vgg16"]
    assert published_sums.describe(vgg).startswith("ImageNet VGG-16, verified")
    if form != "safetensors-own":  # which carries its preprocessing
        assert vgg.preprocessing == CAFFE


def test_the_published_file_itself_has_that_sum_and_a_changed_bit_does_not(published_file):
    vgg = read_vgg(published_file, "vgg16")
    assert published_sums.is_published(vgg.convs, "vgg16")
    vgg.convs["conv5_3"].bias[-1] = np.nextafter(vgg.convs["conv5_3"].bias[-1], 9, dtype=np.float32)
    assert not published_sums.is_published(vgg.convs, "vgg16")
