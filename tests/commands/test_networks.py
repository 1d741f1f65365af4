"""Test that U-Net and SegNet with a bilinear decoder train, freeze, evaluate, predict, export and compile."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from test_train import restored, run

import segnet_jax
from segnet_jax import evaluate, export, predict
from segnet_jax.benchmarks.portability.steps import StepConstants, lower_steps
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_flags
from segnet_jax.system.errors import UserError

FORMS = {"unet": ("--network", "unet"), "bilinear": ("--upsampling", "bilinear")}
FLAGS = ("--depth", 2, "--devices", 1, "--batch-size-per-device", 2, "--evaluate-every", 0)


@pytest.fixture(scope="module", params=["unet", pytest.param("bilinear", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    flags = (*FORMS[request.param], *FLAGS)
    assert run("--run", folder, *flags, "--epochs", 2) == 0
    return folder, flags


@pytest.mark.slow
def test_its_loss_falls(trained):
    rows = list(map(json.loads, (trained[0] / "metrics.jsonl").read_text().splitlines()))
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])


def test_it_evaluates_to_the_scores_of_its_result(trained, tmp_path):
    options = [str(trained[0]), "--json", str(tmp_path / "scores.json"), "--devices", "1"]
    assert evaluate.evaluate(parse_flags(evaluate.EvaluateOptions, options, prog="x", description="")) == 0
    found, result = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", trained[0] / "result.json"))
    assert found["miou"] == result["miou"] > 0


def test_it_predicts_images_of_other_sizes(trained, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (41, 58, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    options = [str(trained[0]), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--devices", "1"]
    assert predict.predict(parse_flags(predict.PredictOptions, options, prog="x", description="")) == 0
    found = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    np.testing.assert_array_equal(found, segnet_jax.load(trained[0]).predict(image))


@pytest.mark.slow
def test_it_exports_and_the_weights_start_another_training(trained, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX is not installed: pip install -e '.[onnx]' runs this test")
    folder, flags = trained
    options = [str(folder), "--format", "stablehlo", "onnx", "safetensors", "--out", str(tmp_path / "out")]
    assert export.export(parse_flags(export.ExportOptions, options, prog="x", description="")) == 0
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report.keys() == {"stablehlo", "onnx", "safetensors"}  # written only if each matches the network
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("U-Net with a VGG-16 encoder" if "--network" in flags else "SegNet with a VGG-16 encoder") in card
    weights = tmp_path / "out" / "network.safetensors"
    assert run("--run", tmp_path / "again", *flags, "--init", weights, "--epochs", 1) == 0


@pytest.mark.slow
def test_its_frozen_stage_stays(trained, tmp_path):
    folder, flags = trained
    assert run("--run", tmp_path / "run", *flags, "--freeze", 1, "--init", folder, "--epochs", 1) == 0
    before, after = (
        restored(path, which)["params"] for path, which in ((folder, "best"), (tmp_path / "run", "newest"))
    )
    same = {layer for layer in before if jax.tree.all(jax.tree.map(np.array_equal, before[layer], after[layer]))}
    assert same == {"conv1_1", "conv1_1_bn", "conv1_2", "conv1_2_bn"}


@pytest.mark.parametrize(
    "form", [{"network": "unet"}, {"upsampling": "bilinear"}, {"channels": 5, "image_bits": "16"}], ids=str
)
def test_its_steps_lower_for_cuda(form):
    config = Config(**form, init="none", depth=1, width=1 / 16, image_size=(32, 48), batch_size_per_device=1)
    settings = {"precisions": ("float16",), "platforms": ("cuda",), "num_devices": 1}
    lowered = list(lower_steps(config, StepConstants(11), **settings))
    assert len(lowered) >= 3 and all(each.exported.platforms == ("cuda",) for each in lowered)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--encoder-addition",), "--encoder-addition does not apply to --network unet, which concatenates features"),
        (("--final-batch-norm",), "--final-batch-norm does not apply to --network unet"),
        (("--decoder", "single-channel"), "--decoder single-channel is for --network segnet-basic"),
        (("--init", "vgg16", "--width", 0.5), "--init vgg16 needs --width 1"),
    ],
)
def test_settings_that_it_does_not_have_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        run("--network", "unet", *flags)
