"""Check that the Python API does what the commands do."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from made_runs import make_run
from PIL import Image

import segnet_jax
from segnet_jax import predict as predict_command
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.system.errors import UserError

SIZES = ((24, 32), (41, 30), (64, 64), (19, 77), (100, 50))
TINY = {"data": "synthetic", "scenes": (8, 4), "image_size": (24, 32), "depth": 2, "width": 1 / 16, "init": "none"}
TINY |= {"class_weights": "none", "epochs": 1, "devices": 1, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def network(run):
    return segnet_jax.load(run)


def noise(number, height, width):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", ["trained", pytest.param("native", marks=pytest.mark.slow)])
def test_class_ids_equal_the_commands_pixel_by_pixel(run, network, tmp_path, size):
    (tmp_path / "in").mkdir()
    images = {f"{number}": noise(number, *SIZES[number % len(SIZES)]) for number in range(10)}
    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / "in" / f"{name}.png")
    flags = [str(run), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", size, "--devices", "1"]
    assert predict_command.predict(parse_flags(predict_command.PredictOptions, flags, prog="p", description="")) == 0
    predictions = network.predict(list(images.values()), size=size)
    for name, prediction in zip(images, predictions, strict=True):
        np.testing.assert_array_equal(prediction, np.asarray(Image.open(tmp_path / "out" / f"{name}.png")))


def test_one_image_may_come_in_any_form(network, tmp_path):
    image = noise(0, 30, 40)
    expected = network.predict(image)
    assert expected.shape == (30, 40) and expected.dtype == np.uint8
    Image.fromarray(image).save(tmp_path / "a.png")
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(image),
        image / 255,
        (image / 255).astype("f"),
    ]
    forms += [Image.fromarray(image).convert("RGBA")]
    for form in forms:
        np.testing.assert_array_equal(network.predict(form), expected)
    gray = image[..., 0]
    expected = network.predict(np.repeat(gray[..., None], 3, axis=-1))
    for form in (gray, Image.fromarray(gray)):
        np.testing.assert_array_equal(network.predict(form), expected)


def test_several_images_give_as_many_predictions(network):
    images = np.stack([noise(number, 20, 30) for number in range(3)])
    batch, several = network.predict(images), network.predict(list(images))
    assert batch.shape == (3, 20, 30) and isinstance(several, list)
    np.testing.assert_array_equal(batch, several)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.full((4, 4, 3), 7.0), "a float image must be in 0..1, got 7 to 7"),
        (np.full((4, 4, 3), np.nan), "a float image must be in 0..1"),
        (np.zeros((4, 4, 4), np.uint8), r"must be \[H,W,3\] RGB or \[H,W\] gray, got shape \[4, 4, 4\]"),
        (np.zeros((4, 4, 3), np.int64), "must be uint8 0..255 or float 0..1, got int64"),
        (Image.new("I;16", (4, 4)), "8 bits per channel, got mode I;16"),
        ([], "no image given"),
    ],
)
def test_other_images_are_refused_with_what_to_do(network, image, message):
    with pytest.raises(ValueError, match=message):
        network.predict(image)


def test_train_evaluate_and_load_give_what_the_commands_give(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = segnet_jax.train(**TINY, run="runs/a", flip=False)
    result = json.loads(pathlib.Path("runs/a/result.json").read_text())
    assert trained.folder == pathlib.Path("runs/a") and trained.scores.miou == result["miou"]
    scores = segnet_jax.evaluate("runs/a", split="val", devices=1)
    assert scores.miou == pytest.approx(result["miou"], abs=1e-6)
    assert set(scores.iou) == set(result["per_class"]) and "details" not in repr(scores)
    network = trained.load(checkpoint="newest")
    assert repr(network) == "Network(SegNet, 11 classes, trained at 24x32, step 2)"


def test_keywords_are_the_commands_flags():
    from segnet_jax.config.flag_specs import flag_words

    flags = flag_words(Config, TINY | {"flip": False, "sync_batch_norm": True, "seed": 3, "protocol": None})
    config = parse_config(flags, prog="p", description="d")
    assert config == dataclasses.replace(
        Config(), **TINY | {"devices": "1", "flip": False, "sync_batch_norm": True, "seed": 3}
    )


def test_the_verbosity_is_a_keyword_too():
    from segnet_jax.config.flag_specs import flag_words

    assert flag_words(Config, {"quiet": True, "verbose": None, "epochs": 2}) == ["--quiet", "--epochs", "2"]


def test_a_wrong_keyword_is_an_error_with_the_nearest():
    with pytest.raises(UserError, match="--learning-rat"):
        segnet_jax.train(data="synthetic", learning_rat=0.1)


def test_the_names_of_the_api_are_there_and_import_nothing_heavy():
    assert set(segnet_jax.__all__) <= set(dir(segnet_jax))
    code = "import sys, segnet_jax; segnet_jax.load; segnet_jax.evaluate; print('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
