"""Test binary masks with a sigmoid head from training to prediction, with losses, weights and recipes."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from test_one_rule import mapped
from test_train import restored

from segnet_jax import api, evaluate, export, predict, train
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.system.errors import UserError

FLAGS = (
    "--image-size 24 32 --init none --depth 1 --width 0.0625 --devices 1 --batch-size-per-device 2 --val-fraction 0.4 "
    "--learning-rate 0.05"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "discs"
    mapped(folder)
    return folder


def run(data, folder, *flags):
    args = ["--data", str(data), "--map", "255=1", *FLAGS.split(), "--run", str(folder), *map(str, flags)]
    return train.train(parse_config(args, prog="segnet_jax.train", description=""))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sigmoid"
    flags = ("--output", "sigmoid", "--epochs", 8, "--loss", "ce + dice", "--class-weights", "1", "3")
    assert run(data, folder, *flags) == 0
    return folder


@pytest.mark.slow
def test_the_network_learns_with_one_output_channel_and_is_evaluated_as_any_other(trained, tmp_path):
    shapes = {each.shape[-1] for each in jax.tree.leaves(restored(trained)["params"]["conv1_1_D"])}
    assert shapes == {1}
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    result = json.loads((trained / "result.json").read_text())
    options = [str(trained), "--json", str(tmp_path / "scores.json"), "--devices", "1"]
    assert evaluate.evaluate(parse_flags(evaluate.EvaluateOptions, options, prog="x", description="")) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["miou"] == result["miou"]
    (val_loss,) = (row["loss"] for row in rows if row["kind"] == "val" and row["step"] == scores["step"])
    assert scores["loss"] == pytest.approx(val_loss, rel=1e-6)


@pytest.mark.slow
def test_predict_and_python_segment_where_the_probability_exceeds_one_half(trained, data, tmp_path):
    options = [str(trained), str(data / "images"), "--out", str(tmp_path / "out"), "--devices", "1", "--confidence"]
    assert predict.predict(parse_flags(predict.PredictOptions, options, prog="x", description="")) == 0
    written = sorted((tmp_path / "out").rglob("*.png"))
    assert written and all(set(np.unique(np.asarray(Image.open(each)))) <= set(range(256)) for each in written)
    network = api.load(trained)
    image = np.asarray(Image.open(data / "images" / "n0.png").convert("RGB").resize((32, 24)))
    logits = np.asarray(network.logits(image))[0]
    assert logits.shape == (24, 32, 2) and not logits[..., 0].any()
    np.testing.assert_array_equal(np.asarray(network.predict(image)), logits[..., 1] > 0)


@pytest.mark.slow  # runs/test_initialization.py starts from exports
def test_an_export_starts_another_training_with_the_same_head(trained, data, tmp_path):
    options = export.ExportOptions(str(trained), format=("safetensors",), out=str(tmp_path / "out"), images=1)
    assert export.export(options) == 0
    flags = ("--output", "sigmoid", "--init", tmp_path / "out" / "network.safetensors", "--epochs", 1)
    assert run(data, tmp_path / "again", *flags, "--learning-rate", 1e-12) == 0
    before, after = (restored(folder)["params"]["conv1_1_D"]["kernel"] for folder in (trained, tmp_path / "again"))
    assert before.shape == after.shape
    best = restored(trained, "best")["params"]["conv1_1_D"]["kernel"]
    np.testing.assert_allclose(after, best, atol=1e-6)
    with pytest.raises(UserError, match="output sigmoid instead of softmax"):
        run(data, tmp_path / "third", "--init", tmp_path / "out" / "network.safetensors", "--epochs", 1)


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--loss", "ce + dise"], ["at character 6", "nearest: dice"]),
        (["--class-weights", "1", "2", "3"], ["3 weights", "2 classes", "NAME=WEIGHT"]),
        (["--class-weights", "clas1=2"], ["'clas1'", "not a class of", "nearest: class 1"]),
        (["--output", "sigmoid", "--final-batch-norm"], ["--no-final-batch-norm"]),
    ],
)
def test_wrong_settings_are_refused_before_a_run_is_created(data, tmp_path, flags, parts):
    with pytest.raises(UserError) as error:
        run(data, tmp_path / "run", *flags)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_sigmoid_head_needs_two_classes(tmp_path):
    args = ["--data", "synthetic", *FLAGS.split(), "--output", "sigmoid", "--run", str(tmp_path / "run")]
    args[args.index("--val-fraction") : args.index("--val-fraction") + 2] = []
    with pytest.raises(UserError, match="is for two classes, but synthetic has 11: use --output softmax"):
        train.train(parse_config(args, prog="segnet_jax.train", description=""))
