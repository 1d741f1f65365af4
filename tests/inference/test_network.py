"""Test `segnet_jax.load`: the network computes what its unfolded checkpoint does, at any size."""

import dataclasses
import json
import shutil
import sys
from functools import partial

import jax
import numpy as np
import pytest
from made_runs import make_run
from random_variables import random_variables

import segnet_jax
from segnet_jax import evaluate
from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_flags
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.data.synthetic.street_scenes import street_scenes
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.inference.network import folded
from segnet_jax.nn import SegNet
from segnet_jax.system.errors import NoCheckpoint, UserError
from segnet_jax.training.restore_network import Restored, restore

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # of ImageNet, by hand


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", depth=2)


@pytest.fixture(scope="module")
def network(run):
    return segnet_jax.load(run)


def images_of(count, *size):
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)


def unfolded_logits(model, variables, images):
    return np.asarray(jax.jit(partial(model.apply, train=False))(variables, ((images - MEAN) / STD).astype(np.float32)))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"depth": 5, "pooling": "ceil"}, (33, 45)),
        ({"depth": 3, "conv_bias": True, "final_batch_norm": True}, (24, 50)),
        pytest.param({"depth": 5}, (7, 3), marks=pytest.mark.slow),  # smaller than the poolings
        ({"depth": 1}, (1, 1)),
    ],
    ids=str,
)
def test_logits_are_those_of_the_unfolded_network_for_any_statistics(settings, size):
    model = SegNet(11, width=1 / 16, **settings)
    variables = random_variables(model)
    meta = {
        "classes": CAMVID.names,
        "colors": CAMVID.colors,
        "step": 0,
        "preprocessing": {"mean": MEAN.tolist(), "std": STD.tolist()},
    }
    images = images_of(2, *size)
    ours = np.asarray(folded(Restored(model, variables, meta), Config()).logits(images))
    expected = unfolded_logits(model, variables, images)
    assert ours.shape == (2, *size, 11) and ours.dtype == np.float32
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_loaded_network_scores_as_the_evaluation_of_the_run_says(run, network, tmp_path):
    flags = [str(run), "--json", str(tmp_path / "scores.json"), "--devices", "1"]
    assert evaluate.evaluate(parse_flags(evaluate.EvaluateOptions, flags, prog="p", description="")) == 0
    expected = np.array(json.loads((tmp_path / "scores.json").read_text())["confusion"])
    split = street_scenes(num_train=8, num_val=9, height=24, width=32, seed=0).splits["val"]
    images, labels = (np.stack(each) for each in zip(*map(split.read, range(9)), strict=True))
    ours = np.zeros((11, 11), int)
    for label, prediction in zip(labels.ravel(), network.predict(images).ravel(), strict=True):
        if label != 255:
            ours[label, prediction] += 1
    assert (expected > 0).any(axis=0).sum() > 5  # classes that are predicted
    assert np.abs(ours - expected).sum() <= 4  # folding rounds otherwise: a tie or two


def test_a_loaded_network_knows_its_classes_and_run(run, network):
    assert network.class_names == CAMVID.names and network.colors == CAMVID.colors
    assert network.config.image_size == (24, 32) and network.model.folded
    assert network.step == 7 and segnet_jax.load(str(run), checkpoint="newest").step == 8


def test_predictions_are_the_largest_logits_and_do_not_depend_on_the_batch(network):
    images = images_of(3, 19, 26)
    predictions = network.predict(images, size="native")
    assert predictions.shape == (3, 19, 26) and predictions.dtype == np.uint8
    logits = np.asarray(network.logits(images))
    np.testing.assert_array_equal(np.take_along_axis(logits, predictions[..., None], -1)[..., 0], logits.max(axis=-1))
    for image, prediction in zip(images, predictions, strict=True):
        np.testing.assert_array_equal(network.predict(image, size="native"), prediction)
    np.testing.assert_array_equal(network.predict(list(images), size="native"), predictions)  # a list of them


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        [],
    ],
    ids=["float", "grey", "RGBA", "none", "empty"],
)
def test_other_than_images_of_three_bytes_are_refused(network, images):
    with pytest.raises(ValueError, match=r"images must be uint8 \[B,H,W,3\] or \[H,W,3\], got"):
        network.logits(images)


def emptied(folder):
    shutil.rmtree(folder / "checkpoints")


def damaged(folder):
    for path in folder.glob("checkpoints/*/*/state/**/*"):
        if path.is_file():
            path.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "settings", "kind", "message"),
    [
        (shutil.rmtree, {}, UserError, "there is no such folder"),
        (lambda folder: (folder / "config.toml").unlink(), {}, UserError, "contains no config.toml"),
        (emptied, {}, UserError, "no best checkpoint"),
        (damaged, {}, NoCheckpoint, "checkpoint"),
        (None, {"checkpoint": "worst"}, UserError, "checkpoint must be one of result, newest, best, got 'worst'"),
        (None, {"precision": "float8"}, UserError, "precision in segnet_jax.load must be one of auto, float32"),
    ],
)
def test_what_cannot_be_loaded_is_reported(run, tmp_path, spoil, settings, kind, message):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    if spoil:
        spoil(copy)
    with pytest.raises(kind, match=message):
        segnet_jax.load(copy, **settings)


def test_a_network_of_another_shape_than_its_config_says_is_reported(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text().replace("width = 0.0625", "width = 0.125"))
    with pytest.raises(UserError, match="the network of .*config.toml does not match its checkpoint"):
        segnet_jax.load(tmp_path / "run")


def test_half_precision_labels_nearly_every_pixel_alike(run, network):
    images = images_of(2, 24, 32)
    half = segnet_jax.load(run, precision="bfloat16")
    assert half.logits(images).dtype == np.float32
    assert (half.predict(images, size="native") == network.predict(images, size="native")).mean() > 0.9


def test_the_checkpoint_itself_is_left_unfolded(run):
    devices = choose_devices("1")
    restored = restore(str(run), files.read_run(run), "best", devices, "float32")
    assert not restored.model.folded and "batch_stats" in restored.variables
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(restored.variables["batch_stats"]))


@pytest.mark.parametrize(("selected", "which"), [("best", "best"), ("last", "newest")])
def test_what_is_loaded_unless_requested_otherwise_is_what_the_runs_result_is_of(run, selected, which):
    config = dataclasses.replace(files.read_run(run), result_checkpoint=selected)
    assert restore(str(run), config, "result", choose_devices("1"), "float32").which == which


def test_loading_is_offered_by_the_package_and_imported_when_it_is_requested():
    assert segnet_jax.load is sys.modules["segnet_jax.inference.trained_network"].load
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        segnet_jax.laod  # noqa: B018
