"""Train on 16-bit images and on other channels than RGB, then evaluate, predict and export the network."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from test_stored_pixels import png, tiff
from test_train import digest_of, restored

import segnet_jax
from segnet_jax import doctor, evaluate, export, predict, train
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.inference.outputs import INDEX
from segnet_jax.nn.preprocessing import CAFFE, TORCH
from segnet_jax.system.errors import UserError
from segnet_jax.training.initial_weights import choose_preprocessing
from segnet_jax.weights.vgg import VGG

FLAGS = (
    "--image-size 24 32 --init none --depth 1 --width 0.125 --devices 1 --batch-size-per-device 2 --val-fraction 0.4 "
    "--learning-rate 0.1 --class-weights matlab --epochs 60 --evaluate-every 20 --scale 0.8 1.25 --shift 2"
)
FORMATS = {"gray": (1, 8, png, ".png"), "gray16": (1, 16, png, ".png"), "six16": (6, 16, tiff, ".tif")}


def write_discs(folder, channels, bits, encode, suffix, count=6):
    """Write bright discs on dark noise; brightness differs between channels, and 16-bit values use a narrow range."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :32]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        label = ((y - rng.integers(8, 16)) ** 2 + (x - rng.integers(8, 24)) ** 2 < 40).astype(np.uint8)
        noise = rng.normal(0, 10, (24, 32, channels))
        values = 60 + 10 * np.arange(channels) + 60 * label[..., None] + noise
        values = np.round(values * (1 if bits == 8 else 3) + (0 if bits == 8 else 20_000)).astype(f"uint{bits}")
        (folder / "images" / f"{number}{suffix}").write_bytes(encode(values))
        Image.fromarray(label).save(folder / "masks" / f"{number}.png")
    return folder


def run(data, folder, *flags):
    args = ["--data", str(data), *FLAGS.split(), "--run", str(folder), *map(str, flags)]
    return train.train(parse_config(args, prog="segnet_jax.train", description=""))


def pixels_of(name):
    channels, bits, _, _ = FORMATS[name]
    return "--channels", channels, "--image-bits", bits


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in ("six16", "gray16")])
def trained(request, tmp_path_factory):
    name = request.param
    folder = tmp_path_factory.mktemp("channels")
    data = write_discs(folder / "discs", *FORMATS[name])
    assert run(data, folder / "run", *pixels_of(name)) == 0
    return name, data, folder / "run"


def test_the_network_learns_and_is_normalized_by_the_training_images_own_statistics(trained):
    name, data, folder = trained
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    channels = FORMATS[name][0]
    assert restored(folder)["params"]["conv1_1"]["kernel"].shape[2] == channels
    preprocessing = segnet_jax.load(folder).preprocessing
    names = segnet_names(folder, "train")
    images = np.stack([pictures(data, name, each) for each in names])
    np.testing.assert_allclose(preprocessing.mean, images.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(preprocessing.std, images.std(axis=(0, 1, 2)), rtol=1e-6)


def segnet_names(folder, split):
    from segnet_jax.config.files import read_run
    from segnet_jax.runs.load_dataset import open_data

    return open_data(read_run(folder)).splits[split].names


def pictures(data, name, each):
    from segnet_jax.constants import Pixels
    from segnet_jax.data.images.decode import read_image

    channels, bits, _, suffix = FORMATS[name]
    return read_image(data / "images" / f"{each}{suffix}", each, pixels=Pixels(channels, bits)).astype(np.float64)


def test_the_first_batch_and_the_predictions_are_drawn(trained):
    _, _, folder = trained
    picture = np.asarray(Image.open(folder / "first_batch.png").convert("RGB"))
    assert np.ptp(picture) > 100 and list((folder / "samples").glob("step_*.png"))


def test_it_is_evaluated_to_the_scores_of_its_result(trained, tmp_path):
    _, _, folder = trained
    options = [str(folder), "--json", str(tmp_path / "scores.json"), "--devices", "1"]
    assert evaluate.evaluate(parse_flags(evaluate.EvaluateOptions, options, prog="x", description="")) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["miou"] == json.loads((folder / "result.json").read_text())["miou"] > 0.7


def test_predict_and_python_give_the_same_classes(trained, tmp_path):
    name, data, folder = trained
    _, bits, _, suffix = FORMATS[name]
    options = [str(folder), str(data / "images"), "--out", str(tmp_path / "out"), "--devices", "1"]
    assert predict.predict(parse_flags(predict.PredictOptions, options, prog="x", description="")) == 0
    network = segnet_jax.load(folder)
    path = data / "images" / f"0{suffix}"
    array = pictures(data, name, "0").astype(f"uint{bits}")
    by_path, by_array = network.predict(path), network.predict(array)
    np.testing.assert_array_equal(by_path, by_array)
    np.testing.assert_array_equal(by_path, np.asarray(Image.open(tmp_path / "out" / f"0{INDEX}")))
    assert network.logits(array).shape == (1, 24, 32, 2)
    with pytest.raises(ValueError, match=r"an image must be uint"):
        network.predict(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"images must be uint"):
        network.logits(np.zeros((8, 8, 3), np.uint8))
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(UserError, match=r"rgb.png has pixels of 3 channels of 8 bits, instead of"):
        network.predict(tmp_path / "rgb.png")


@pytest.mark.slow
def test_it_is_exported_and_the_export_is_a_network_again(trained, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX is not installed: pip install -e '.[onnx]' runs this test")
    name, data, folder = trained
    channels, bits, _, suffix = FORMATS[name]
    options = [str(folder), "--format", "stablehlo", "onnx", "safetensors", "--out", str(tmp_path / "out")]
    assert export.export(parse_flags(export.ExportOptions, options, prog="x", description="")) == 0
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report.keys() == {"stablehlo", "onnx", "safetensors"}  # written only if each matches the network
    assert report["onnx"]["preprocessing"]["channels"] == channels
    assert report["onnx"]["preprocessing"]["range"] == f"0..{2**bits - 1}"
    assert f"uint{bits} [B,H,W,{channels}]" in report["onnx"]["use"]
    assert f"images of {channels} channel" in (tmp_path / "out" / "README.md").read_text()
    again, path = segnet_jax.load(tmp_path / "out"), data / "images" / f"0{suffix}"
    np.testing.assert_array_equal(again.predict(path), segnet_jax.load(folder).predict(path))
    assert run(data, tmp_path / "more", *pixels_of(name), "--init", tmp_path / "out", "--epochs", 1) == 0
    other = "gray16" if name == "six16" else "six16"
    data = write_discs(tmp_path / "other", *FORMATS[other])
    differs = f"differs from the one to be trained: .*channels {channels} instead of {FORMATS[other][0]}"
    with pytest.raises(UserError, match=differs):
        run(data, tmp_path / "more", *pixels_of(other), "--init", tmp_path / "out")


@pytest.mark.slow
def test_both_input_paths_and_a_resumed_run_give_the_same_bits(tmp_path):
    data = write_discs(tmp_path / "discs", *FORMATS["gray16"])
    flags = (*pixels_of("gray16"), "--epochs", 2)
    for folder, more in (("device", ("--input", "device")), ("host", ("--input", "host"))):
        assert run(data, tmp_path / folder, *flags, *more) == 0
    run(data, tmp_path / "stopped", *flags, "--max-steps", 1)
    run(data, tmp_path / "stopped", *flags, "--resume")
    assert digest_of(tmp_path / "device") == digest_of(tmp_path / "host") == digest_of(tmp_path / "stopped")


@pytest.mark.parametrize("start", [CAFFE, TORCH, None], ids=["caffe", "torch", "none"])
def test_the_first_layer_gets_values_as_large_as_those_of_imagenet(start):
    """After the VGG's own preprocessing, ImageNet's images have a deviation of 57.6 or of 1; so have ours."""
    config = Config(channels=2, image_bits="16")
    initial = start and VGG("vgg16", {}, start)
    mean, deviation = [20_000.0, 300.0], [3000.0, 0.0]
    found = choose_preprocessing(config, initial, lambda: (mean, deviation))
    assert found.mean == (20_000, 300)
    expected = 57.63 if start is CAFFE else 1.0
    assert deviation[0] / found.std[0] == pytest.approx(expected, rel=1e-3)
    assert found.std[1] > 0  # of a constant channel
    raw = choose_preprocessing(Config(channels=2, preprocessing="raw"), initial, None)
    assert (raw.mean, raw.std) == ((0, 0), (1, 1))
    assert choose_preprocessing(Config(), initial, None) == (start or TORCH)


def test_the_doctor_reads_and_draws_them(tmp_path, capsys):
    data = write_discs(tmp_path / "discs", *FORMATS["six16"])
    flags = [str(data), *map(str, pixels_of("six16")), "--picture", str(tmp_path / "look.png")]
    assert doctor.doctor(parse_flags(doctor.DoctorOptions, flags, prog="x", description="")) == 0
    assert "--channels 6 --image-bits 16" in capsys.readouterr().out.splitlines()[-1]
    assert np.ptp(np.asarray(Image.open(tmp_path / "look.png").convert("RGB"))) > 100
    with pytest.raises(UserError, match="0.tif is of 6 channels; .*fix: .*--channels 6 --image-bits 16"):
        doctor.doctor(parse_flags(doctor.DoctorOptions, [str(data)], prog="x", description=""))


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--channels", 4), r"images/0.png has pixels of 1 channel of 8 bits, instead of 4 channels of 8 bits"),
        (("--channels", 1, "--color", 0.5), r"--color is for 8-bit RGB images, got --channels 1"),
        (("--channels", 1, "--preprocessing", "torch"), r"--preprocessing torch is for 8-bit RGB images"),
        (("--channels", 1, "--network", "segnet-basic"), r"--network segnet-basic is for 8-bit RGB images"),
        (("--image-bits", 16, "--image-range", 0, 4095), r"--image-range converts 16-bit images to 8-bit RGB"),
        (("--channels", 0), r"--channels must be between 1 and 64, got 0"),
        (
            ("--channels", 1, "--data", "synthetic"),
            r"--channels, --val-fraction can be used with folders of images and labels only",
        ),
    ],
)
def test_what_does_not_fit_is_one_error(flags, message, tmp_path):
    data = write_discs(tmp_path / "discs", *FORMATS["gray"], count=2)
    with pytest.raises(UserError, match=message):
        run(data, tmp_path / "run", *flags)


@pytest.mark.slow
def test_gray_images_are_still_read_as_rgb_unless_asked(tmp_path):
    data = write_discs(tmp_path / "discs", *FORMATS["gray"])
    assert run(data, tmp_path / "run", "--epochs", 1) == 0
    params = restored(tmp_path / "run")["params"]
    assert params["conv1_1"]["kernel"].shape[2] == 3 and jax.tree.leaves(params)
