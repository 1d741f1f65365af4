"""Test Caffe's SegNets: a converted network computes what Caffe's layers do, and its run works like any other."""

import dataclasses
import json
import sys
from functools import partial

import caffe_layers as caffe
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weight_files as files
from PIL import Image

import segnet_jax
from segnet_jax import convert, evaluate, export, predict, prepare, report, train
from segnet_jax.config import files as config_files
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.nn import segnet_basic
from segnet_jax.nn.segnet import ENCODERS
from segnet_jax.reporting.page import content
from segnet_jax.reporting.page.run_summary import read_run_summary
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError
from segnet_jax.training.restore_network import restore
from segnet_jax.weights import published
from segnet_jax.weights.load import read_caffe_segnet

SIZE = (45, 61)
SIZES = {5: (3, 4), 4: (6, 8), 3: (12, 16), 2: (23, 31), 1: (45, 61)}  # half of each below, rounded up


CHANNELS = ((8, 2), (12, 2), (10, 3), (14, 3), (9, 3))
"""Channels of a small network: with fewer, random maps die, and constant maps leave each maximum to rounding."""


@pytest.fixture(scope="module")
def small():
    """Shrink the package's VGG-16; yield random layers of a Caffe SegNet of that size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "vgg16", CHANNELS)
        yield files.random_caffe_segnet(CHANNELS)


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    """Convert the small network to a run."""
    return converted(small, tmp_path_factory.mktemp("small"))


def converted(blobs, folder, *flags, form="layer", dropout=()):
    """Convert a network to a run."""
    path = folder / "net.caffemodel"
    files.write_caffe_segnet(path, blobs, form, dropout)
    given = [str(path), "--run", str(folder / "run"), *map(str, flags)]
    assert convert.convert(parse_flags(convert.ConvertOptions, given, prog="p", description="")) == 0
    return folder / "run"


def random_image(*size):
    """Return an image of smooth areas with some noise, like a photo."""
    random = np.random.default_rng(1)
    coarse = Image.fromarray(random.integers(0, 256, (*(-(-side // 12) for side in size), 3), np.uint8))
    smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC), int)
    return np.clip(smooth + random.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def exact_logits(run, image):
    """Return the logits of the run's checkpoint, unfolded, in float64."""
    restored = restore(str(run), config_files.read_run(run), "best", choose_devices("1"), "float32")
    assert restored.meta["preprocessing"] == {"mean": [0, 0, 0], "std": [1, 1, 1]}
    variables = jax.tree.map(np.float64, jax.device_get(restored.variables))
    model = restored.model.clone(dtype=jnp.float64)
    with jax.enable_x64(True):
        return np.asarray(jax.jit(partial(model.apply, train=False))(variables, np.float64(image)[None]))[0]


def assert_equals_caffe(run, image, expected):
    """Compare a run with Caffe's logits: within 1e-6 in float64, and 99 % of pixels in float32."""
    expected = np.moveaxis(expected, 0, -1)
    assert np.abs(exact_logits(run, image) - expected).max() < 1e-6 * np.abs(expected).max()
    network = segnet_jax.load(run)
    off = np.abs(np.asarray(network.logits(image))[0] - expected).max(axis=-1)
    assert (off < 1e-4 * np.abs(expected).max()).mean() > 0.99  # close maxima may change places
    assert (network.predict(image, size="native") == expected.argmax(axis=-1)).mean() > 0.99


@pytest.mark.slow  # SegNet-Basic has the same layers
def test_a_converted_segnet_computes_what_caffes_layers_do(small, run):
    image = random_image(*SIZE)
    assert_equals_caffe(run, image, caffe.segnet(small, image[:, :, ::-1].transpose(2, 0, 1), SIZES))


def test_every_form_of_the_file_is_the_same_network(small, tmp_path):
    def read(form):
        files.write_caffe_segnet(tmp_path / form, small, form)
        return read_caffe_segnet(tmp_path / form)

    one, *others = map(read, ("layer", "layers", "unpacked"))
    kernel = small["conv1_1"][0]
    np.testing.assert_array_equal(one.params["conv1_1"]["kernel"][1, 2, 0], kernel[:, 2, 1, 2])  # red, which is last
    np.testing.assert_array_equal(one.params["conv1_2"]["kernel"][0, 2, 5], small["conv1_2"][0][:, 5, 0, 2])
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
        jax.tree.map(np.testing.assert_array_equal, one.batch_stats, other.batch_stats)


def test_dropout_layers_are_seen_in_every_form(small, tmp_path):
    for form in ("layer", "layers"):
        for dropout in ((), ("conv4_1_D",)):
            files.write_caffe_segnet(tmp_path / "w", small, form, dropout)
            assert read_caffe_segnet(tmp_path / "w").has_dropout == bool(dropout)


@pytest.fixture(scope="module")
def basic():
    """Yield random layers of a Caffe SegNet-Basic with few channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segnet_basic, "CHANNELS", 12)
        yield files.random_caffe_basic(channels=12)


def test_a_converted_segnet_basic_computes_what_caffes_layers_do(basic, tmp_path):
    run, image = converted(basic, tmp_path, form="layers", dropout=("conv_decode3",)), random_image(*SIZE)
    assert_equals_caffe(run, image, caffe.segnet_basic(basic, image[:, :, ::-1].transpose(2, 0, 1), SIZES))
    config = config_files.read_run(run)
    assert (config.network, config.depth, config.dropout) == ("segnet-basic", 4, 0.5)


def test_both_names_of_the_classifier_are_known(basic, tmp_path):
    arrays = basic["dense_softmax_inner_prod"]
    renamed = {name: layer for name, layer in basic.items() if layer is not arrays} | {"conv_classifier": arrays}
    for blobs in (basic, renamed):
        files.write_caffe_segnet(tmp_path / "w", blobs)
        kernel = read_caffe_segnet(tmp_path / "w").params["conv_classifier"]["kernel"]
        np.testing.assert_array_equal(kernel[0, 0], arrays[0][:, :, 0, 0].T)


@pytest.mark.parametrize(
    ("dropout", "flags", "expected"), [((), (), 0.0), (("conv3",), (), 0.5), (("conv3",), (0,), 0.0)]
)
def test_a_file_with_dropout_layers_becomes_a_bayesian_segnet_by_default(dropout, flags, expected, basic, tmp_path):
    given = [flag for each in flags for flag in ("--dropout", each)]
    assert config_files.read_run(converted(basic, tmp_path, *given, dropout=dropout)).dropout == expected


@pytest.mark.slow
@pytest.mark.parametrize("classifier", ["conv_classifier", "dense_softmax_inner_prod"])
def test_segnet_basic_at_full_size_has_the_padding_that_the_prototxt_asks_for(classifier, tmp_path):
    blobs, image = files.random_caffe_basic(classifier=classifier), random_image(360, 480)
    run, bgr = converted(blobs, tmp_path), image[:, :, ::-1].transpose(2, 0, 1)
    assert_equals_caffe(run, image, caffe.segnet_basic(blobs, bgr, caffe.BASIC_SIZES_360x480))


@pytest.mark.slow
def test_at_full_size_it_does_so_with_the_sizes_that_the_prototxt_sets_by_hand(tmp_path):
    blobs, image = files.random_caffe_segnet(files.VGG16), random_image(360, 480)
    run = converted(blobs, tmp_path)
    assert_equals_caffe(run, image, caffe.segnet(blobs, image[:, :, ::-1].transpose(2, 0, 1), caffe.SIZES_360x480))


def test_pooling_and_unpooling_of_the_oracle_are_those_of_a_loop_over_pixels():
    x = np.random.default_rng(0).integers(0, 3, (2, 5, 7)).astype(float)  # with ties
    pooled, mask = caffe.max_pool(x)
    assert pooled.shape == (2, 3, 4)
    for c, i, j in np.ndindex(pooled.shape):
        places = [(h, w) for h in (2 * i, 2 * i + 1) for w in (2 * j, 2 * j + 1) if h < 5 and w < 7]
        h, w = max(places, key=lambda place, c=c: x[c][place])  # the first of equal ones
        assert pooled[c, i, j] == x[c, h, w] and mask[c, i, j] == 7 * h + w
        assert caffe.upsample(pooled, mask, (5, 7))[c, h, w] == x[c, h, w]


@pytest.mark.slow
def test_batch_norm_is_scale_times_x_plus_shift_to_the_last_bit(small, run):
    restored = restore(str(run), config_files.read_run(run), "best", choose_devices("1"), "float32")
    epsilon = restored.model.batch_norm_epsilon
    for name, norm in restored.variables["params"].items():
        if name.endswith("_bn"):
            running = restored.variables["batch_stats"][name]
            factor = jax.jit(lambda norm, running: norm["scale"] * jax.lax.rsqrt(running["var"] + epsilon))
            np.testing.assert_array_equal(factor(norm, running), small[name][0].ravel())
            np.testing.assert_array_equal(norm["bias"], small[name][1].ravel())
            assert not np.any(running["mean"])


def test_the_run_says_what_it_was_made_of_and_by_which_recipe(run):
    config = config_files.read_run(run)
    assert (config.pooling, config.conv_bias, config.batch_norm_epsilon) == ("ceil", True, 1e-9)
    assert (config.init, config.preprocessing, config.image_size) == ("net.caffemodel", "raw", (360, 480))
    assert config.protocol == "camvid-tutorial"
    network = segnet_jax.load(run, checkpoint="newest")
    assert network.class_names == CAMVID.names and network.colors[2] == (192, 192, 128)  # the tutorial's pole
    assert network.step == 0


def test_other_classes_come_from_a_class_table(small, tmp_path):
    blobs = files.random_caffe_segnet(CHANNELS, num_classes=3)
    with pytest.raises(UserError, match="net.caffemodel has 3 classes, .* --classes FILE"):
        converted(blobs, tmp_path)
    (tmp_path / "codes.txt").write_text("road\nmarking\n")
    with pytest.raises(UserError, match="has 2 classes, but net.caffemodel has 3"):
        converted(blobs, tmp_path, "--classes", tmp_path / "codes.txt")
    (tmp_path / "names.txt").write_text("road\nmarking\ncar\n")
    with pytest.raises(UserError, match="--classes must be a file named one of classes.toml"):
        converted(blobs, tmp_path, "--classes", tmp_path / "names.txt")
    assert not (tmp_path / "run").exists()
    (tmp_path / "codes.txt").write_text("road\nmarking\ncar\n")
    network = segnet_jax.load(converted(blobs, tmp_path, "--classes", tmp_path / "codes.txt"))
    assert network.class_names == ("road", "marking", "car") and network.config.protocol == ""


def refused(folder, blobs, **how):
    files.write_caffe_segnet(folder / "w.caffemodel", blobs, **how)
    with pytest.raises(UserError) as caught:
        read_caffe_segnet(folder / "w.caffemodel")
    assert "\n" not in str(caught.value) and "w.caffemodel: " in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_not_just_such_a_network_is_refused_with_the_names(small, tmp_path):
    without = {name: arrays for name, arrays in small.items() if name != "conv3_2_bn"}
    assert "2 missing: conv3_2_bn/0, conv3_2_bn/1" in refused(tmp_path, without)
    assert "1 unknown: fc6/0" in refused(tmp_path, small | {"fc6": [np.zeros((2, 2), np.float32)]})
    kernel, bias = small["conv2_1_D"]
    message = refused(tmp_path, small | {"conv2_1_D": [kernel.transpose(1, 0, 2, 3), bias]})
    assert "conv2_1_D/0 12x8x3x3 instead of 8x12x3x3" in message
    message = refused(tmp_path, small | {"conv2_1_D": [kernel, np.full_like(bias, np.nan)]})
    assert "conv2_1_D/1 has 8 numbers that are not finite" in message
    assert "contains no SegNet" in refused(tmp_path, {name: small[name] for name in ("conv1_1", "conv1_2")})
    message = refused(
        tmp_path, small | {"conv1_1_D": [np.zeros((300, 3, 3, 3), np.float32), np.zeros(300, np.float32)]}
    )
    assert "has 300 classes, but 1 to 255 are supported" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n", "is not a .caffemodel"),
        (b"\n\x06segnet\xa2\x06\xff\x01", "cut off or damaged"),
    ],
)
def test_a_file_that_is_not_a_caffemodel_is_reported_with_exit_code_2(content, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "w.caffemodel").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "w.caffemodel"), "--run", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as left:
        run_command(convert.main)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and message in line and not (tmp_path / "run").exists()


def test_nothing_is_overwritten_and_a_converted_run_cannot_be_resumed(small, run, camvid_like):
    with pytest.raises(UserError, match="is not an empty folder, and nothing is overwritten: choose another --run"):
        converted(small, run.parent)
    flags = ["--run", str(run), "--resume", "--data", str(camvid_like), "--devices", "1"]
    flags += ["--batch-size-per-device", "1"]
    with pytest.raises(UserError, match="cannot be resumed"):
        train.train(parse_config(flags, prog="p", description=""))
    offered = [command.split()[2] for _, command in content.next_commands(read_run_summary(run))]
    assert offered == [f"segnet_jax.{name}" for name in ("evaluate", "predict", "export", "report")]


def test_statistics_that_are_folded_for_good_are_not_recomputed(run, camvid_like):
    assert config_files.read_run(run).batch_norm == "running"
    flags = [str(run), "--data", str(camvid_like), "--devices", "1", "--batch-norm", "recompute"]
    with pytest.raises(
        UserError, match="was converted from Caffe, which merges the BatchNorm statistics into scale and shift"
    ):
        evaluate.evaluate(parse_flags(evaluate.EvaluateOptions, flags, prog="p", description=""))


@pytest.fixture
def camvid_like(tmp_path):
    """Write two frames in the tutorial's layout."""
    folder, random = tmp_path / "camvid", np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, shape, top in (("", (360, 480, 3), 256), ("annot", (360, 480), 12)):
            (folder / f"{split}{kind}").mkdir(parents=True)
            Image.fromarray(random.integers(0, top, shape, np.uint8)).save(folder / f"{split}{kind}/{split}.png")
        (folder / f"{split}.txt").write_text(
            f"/SegNet/CamVid/{split}/{split}.png /SegNet/CamVid/{split}annot/{split}.png"
        )
    return folder


def test_the_report_says_where_a_converted_run_comes_from(run, capsys):
    assert report.report(parse_flags(report.ReportOptions, [str(run)], prog="p", description="")) == 0
    assert "converted from net.caffemodel" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_take_a_converted_run_as_any_other(run, tmp_path, camvid_like):

    def command(module, function, *flags):
        given = [str(run), *map(str, flags)]
        options = getattr(module, f"{function.__name__.title()}Options")
        assert function(parse_flags(options, given, prog="p", description="")) == 0

    photo, scores = camvid_like / "val/val.png", tmp_path / "scores.json"
    command(evaluate, evaluate.evaluate, "--data", camvid_like, "--devices", 1, "--json", scores)
    command(predict, predict.predict, photo, "--out", tmp_path / "out", "--devices", 1)
    command(export, export.export, "--format", "safetensors", "--data", camvid_like, "--out", tmp_path / "net")
    expected = segnet_jax.load(run).predict(np.asarray(Image.open(photo)))
    assert (np.asarray(Image.open(tmp_path / "out/val.png")) == expected).mean() > 0.999
    label = np.asarray(Image.open(camvid_like / "valannot/val.png"))
    summary = json.loads(scores.read_text())
    assert summary["global_accuracy"] == pytest.approx((expected == label)[label < 11].mean(), abs=1e-3)


def test_a_published_name_is_fetched_after_its_license_was_shown_and_its_checksum_is_kept(
    small, tmp_path, monkeypatch, capsys
):
    name = "bayesian_segnet_camvid"
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(tmp_path / "cache"))
    files.write_caffe_segnet(tmp_path / f"{name}.caffemodel", small)
    address = (tmp_path / f"{name}.caffemodel").as_uri()
    resource = dataclasses.replace(published.PUBLISHED_SEGNETS[name], urls=(address,), num_bytes=None)
    monkeypatch.setitem(published.PUBLISHED_SEGNETS, name, resource)
    prepare.main([name])
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert "CC BY-NC 4.0" in lines[0] and "fetching" in lines[1] and "no published checksum" in lines[2]
    assert f"python -m segnet_jax.convert {name}" in printed.out
    assert (tmp_path / "cache" / f"{name}.caffemodel.sha256").is_file()
    given = [name, "--run", str(tmp_path / "run")]
    assert convert.convert(parse_flags(convert.ConvertOptions, given, prog="p", description="")) == 0
    assert segnet_jax.load(tmp_path / "run").config.init == f"{name}.caffemodel"
    (tmp_path / "cache" / f"{name}.caffemodel").write_bytes(b"\n\x06segnot")
    with pytest.raises(UserError, match="the first download had"):
        prepare.main([name])


@pytest.mark.parametrize("name", published.PUBLISHED_SEGNETS)
def test_every_published_segnet_has_the_address_that_its_authors_print(name):
    resource = published.PUBLISHED_SEGNETS[name]
    assert resource.urls == (f"http://mi.eng.cam.ac.uk/~agk34/resources/SegNet/{name}.caffemodel",)
    numbers = 1_416_587 if "basic" in name else 29_449_355  # SegNet-Basic's and SegNet's parameters
    assert resource.num_bytes[0] < 4 * numbers < resource.num_bytes[1]


def test_a_name_that_is_not_a_file_is_reported_with_the_published_ones():
    with pytest.raises(
        UserError, match="weight file segnet_camvid does not exist; pass a .caffemodel or one of segnet"
    ):
        published.obtain_segnet("segnet_camvid")
