"""Several classes per pixel from the folder of masks to training, scores, predictions, report and export."""

import json

import numpy as np
import pytest
from field_folders import BLUE, RED, save, scene
from PIL import Image
from test_class_masks import fill, labels_of, opened, refused
from test_train import digest_of

import segnet_jax
from segnet_jax import evaluate, export, predict, report, train
from segnet_jax.benchmarks.portability.flags import own_flags, parse_with_config
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.constants import VOID
from segnet_jax.data.input_pipeline.cache import from_arrays
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.data.input_pipeline.tf_data import BatchShard, training_batch
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.nn.label_bits import unpack
from segnet_jax.reporting.colors import colorize, overlay
from segnet_jax.reporting.prediction_files import mask_suffixes
from segnet_jax.runs.dataset_checks import check_dataset
from segnet_jax.system.errors import UserError

FLAGS = (
    "--multi-label --image-size 48 64 --init none --depth 1 --width 0.0625 --devices 1 --batch-size-per-device 2 "
    "--val-fraction 0.4 --learning-rate 0.1 --loss ce+dice --class-weights none"
)
VALUES = {"disc": RED, "box": BLUE}


def area(ids, value):
    """Return the area of a class: the box lies in a frame that it shares with part of the disc."""
    rows, columns = np.indices(ids.shape)
    return (ids == value) | (value == BLUE) & (columns < 16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("data") / "photos", "masks/{name}/{i:04}.png", classes=VALUES, area=area)


def run(data, folder, *flags):
    words = ["--data", str(data), *FLAGS.split(), "--run", str(folder), *map(str, flags)]
    return train.train(parse_config(words, prog="segnet_jax.train", description=""))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "several"
    assert run(data, folder, "--epochs", 3) == 0
    return folder


def called(command, options, *words):
    return command(parse_flags(options, list(map(str, words)), prog="p", description=""))


def images_of(trained, split):
    return [name for name in json.loads((trained / "data.json").read_text())[split] if name.startswith("images/")]


# --- labels ---


def test_a_pixel_has_the_classes_of_all_its_masks(data):
    dataset = opened(data, "--multi-label")
    assert dataset.classes.names == ("box", "disc") and dataset.classes.multi_label and not dataset.doubts
    for name, label in labels_of(dataset).items():
        ids = scene(int(name))[1]
        np.testing.assert_array_equal(label, area(ids, BLUE) + 2 * area(ids, RED))
    assert "--multi-label if such pixels have both" in refused(data)["overlapping-masks"].fix


def test_masks_of_void_and_too_many_classes(tmp_path):
    fill(tmp_path, "masks/{name}/{i:04}.png", classes=VALUES | {"ignore": RED})
    label = labels_of(opened(tmp_path, "--multi-label"))["0003"]
    np.testing.assert_array_equal(label, np.where(scene(3)[1] == RED, VOID, scene(3)[1] == BLUE))
    fill(tmp_path, "masks/{name}/{i:04}.png", classes={f"thing {letter}": RED for letter in "abcdefg"})
    assert "at most 7 classes, but there are 9" in refused(tmp_path, "--multi-label")["too-many-classes"].what
    assert "omit --mask-order" in refused(tmp_path, "--multi-label --unmasked void")["mask-per-class"].fix


def test_every_augmentation_moves_the_masks_of_all_classes_together():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, 24, 30, 3)).astype(np.uint8)
    labels = random.choice(np.array([0, 1, 2, 3, 7, VOID], np.uint8), (4, 24, 30))
    moves = {"rotate": 20.0, "shear": 10.0, "scale": (0.7, 1.5), "vertical_flip": True, "crop": (16, 20), "shift": 3}
    sampler = Sampler(4, 4, seed=3, flip=True, **moves)

    def moved(label):
        shard = BatchShard(1, 0, 1, batch_size_per_device=4)
        return training_batch(from_arrays(images, label), sampler, shard, 1, 0)["label"].reshape(4, 16, 20)

    together = moved(labels)
    for c in range(3):
        plane = np.where(labels == VOID, VOID, labels >> c & 1).astype(np.uint8)
        expected = moved(plane)
        np.testing.assert_array_equal(together == VOID, expected == VOID)
        known = together != VOID
        np.testing.assert_array_equal((together >> c & 1)[known], expected[known])
    assert (together == VOID).any() and {1, 2, 3, 7} <= {*np.unique(together)}


# --- a run ---


def test_predictions_equal_the_evaluation_and_a_count_by_numpy(trained, data, tmp_path):
    assert (
        called(evaluate.evaluate, evaluate.EvaluateOptions, trained, "--devices", 1, "--json", tmp_path / "e.json") == 0
    )
    names, out = images_of(trained, "val"), tmp_path / "out"
    words = [*(data / name for name in names), "--labels", data / "masks", "--out", out, "--devices", 1]
    assert called(predict.predict, predict.PredictOptions, trained, *words, "--json", tmp_path / "p.json") == 0
    evaluated, predicted = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ep")
    assert evaluated["confusion"] == predicted["confusion"] and evaluated["miou"] == predicted["miou"]
    network, ious, exact = segnet_jax.load(trained), [], []
    pictures = {name: network.predict(str(data / name)) for name in names}
    for c, (name, value) in enumerate(sorted(VALUES.items())):
        both = either = 0
        for image, has_class in pictures.items():
            stem = image.removeprefix("images/").removesuffix(".png")
            mask = np.asarray(Image.open(out / f"{stem}_{name}.png"))
            assert set(np.unique(mask)) <= {0, 255} and np.array_equal(mask > 0, has_class[..., c])
            known = area(scene(int(stem))[1], value)
            both, either = both + (known & (mask > 0)).sum(), either + (known | (mask > 0)).sum()
        ious.append(both / either)
    for image, has_class in pictures.items():
        ids = scene(int(image.removeprefix("images/").removesuffix(".png")))[1]
        truth = np.stack([area(ids, VALUES[name]) for name in network.class_names], axis=-1)
        exact.append((truth == has_class).all(-1).mean())
    assert [evaluated["per_class"][name]["iou"] for name in sorted(VALUES)] == pytest.approx(ious)
    assert evaluated["miou"] == pytest.approx(np.mean(ious))
    assert evaluated["global_accuracy"] == pytest.approx(np.mean(exact))
    fractions = predicted["class_fractions"]
    assert fractions["disc"] == pytest.approx(np.mean([each[..., 1].mean() for each in pictures.values()]))
    assert not list(out.glob("000?.png")) and len(list(out.glob("*_overlay.jpg"))) == len(names)


def test_the_stored_run_says_what_a_pixel_may_have_and_its_report_is_written(trained):
    assert json.loads((trained / "labels.json").read_text())["rule"]["multi_label"] is True
    result = json.loads((trained / "result.json").read_text())
    assert result["per_class"].keys() == {"box", "disc"} and 0 <= result["miou"] <= 1
    assert called(report.report, report.ReportOptions, trained) == 0
    assert "box" in (trained / "report.html").read_text()
    rows = (trained / "confusion.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].endswith("box,disc")


def test_what_needs_one_class_per_pixel_is_refused(trained, data, tmp_path):
    for flags, message in (
        (["--output", "sigmoid"], "cannot be used with --multi-label: omit it, as each class has a sigmoid"),
        (["--class-mix", "0.5"], "use --class-mix 0"),
        (["--loss", "lovasz"], "lovasz needs one class per pixel"),
    ):
        with pytest.raises(UserError, match=message):
            run(data, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--calibrate and --samples are for one class per pixel"):
        called(evaluate.evaluate, evaluate.EvaluateOptions, trained, "--devices", 1, "--calibrate")
    with pytest.raises(UserError, match="--samples and --frames are for one class per pixel"):
        called(predict.predict, predict.PredictOptions, trained, data / "images", "--samples", 3)


def test_portability_lowers_and_compiles_networks_of_one_class_per_pixel_only():
    given = {"prog": "segnet_jax.portability lower", "description": "", "flags": ()}
    with pytest.raises(UserError, match="networks with one class per pixel, got --multi-label"):
        parse_with_config(own_flags(), ["--multi-label"], **given)


def test_mostly_void_and_no_pixel_of_any_class_are_faults(tmp_path):
    fill(tmp_path / "void", "masks/{name}/{i:04}.png", classes=VALUES | {"ignore": 0}, area=lambda ids, v: ids == v)
    (doubt,) = opened(tmp_path / "void", "--multi-label").doubts
    assert doubt.kind == "mostly-void" and not opened(tmp_path / "void", "--multi-label --mostly-void").doubts
    fill(tmp_path / "data", "{split}/masks/{name}/{i:04}.png", "{split}/images/{i:04}.png", VALUES)
    for path in (tmp_path / "data/train/masks").glob("*/*.png"):
        save(np.zeros((48, 64), np.uint8), path)
    (fault,) = check_dataset(lambda: opened(tmp_path / "data", "--multi-label")).faults
    assert fault.kind == "no-usable-label" and "no train label has a pixel of any class" in fault.what


@pytest.mark.slow
def test_averages_and_tiles_are_evaluated_and_predicted(trained, tmp_path):
    for flags in (["--tta", "flip"], ["--tile", 32, 32, "--overlap", 8], [trained]):
        words = [trained, *flags] if flags != [trained] else [trained, trained]
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        assert called(evaluate.evaluate, evaluate.EvaluateOptions, *words, "--devices", 1, "--json", path) == 0
        assert 0 <= json.loads(path.read_text())["miou"] <= 1


@pytest.mark.slow
def test_both_input_paths_and_a_resumed_run_give_the_same_bits(data, tmp_path):
    moves = ("--epochs", 4, "--rotate", 10, "--scale", 0.8, 1.2, "--vertical-flip", "--crop", 32, 48)
    for place in ("host", "device"):
        assert run(data, tmp_path / place, *moves, "--input", place) == 0
    assert run(data, tmp_path / "stopped", *moves, "--max-steps", 3) == 0
    assert run(data, tmp_path / "stopped", *moves, "--resume") == 0
    assert digest_of(tmp_path / "host") == digest_of(tmp_path / "device") == digest_of(tmp_path / "stopped")


@pytest.mark.slow
def test_the_network_learns_overlapping_classes(tmp_path):
    classes = {"disc": RED, "thing": BLUE}  # every disc is a thing too

    def things(ids, value):
        return ids == RED if value == RED else ids > 0

    data = fill(tmp_path / "data", "masks/{name}/{i:04}.png", classes=classes, area=things, number=12)
    assert run(data, tmp_path / "run", "--epochs", 60, "--depth", 2, "--width", 0.25) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert all(result["per_class"][name]["iou"] > 0.8 for name in classes) and result["global_accuracy"] > 0.95


@pytest.mark.slow
def test_exports_predict_the_same_bits(trained, tmp_path):
    formats = ("stablehlo", "safetensors", "onnx")
    pytest.importorskip("onnxruntime")
    assert called(export.export, export.ExportOptions, trained, "--format", *formats, "--out", tmp_path / "out") == 0
    stored = json.loads((tmp_path / "out/export.json").read_text())
    images = np.random.default_rng(0).integers(0, 256, (2, 21, 33, 3), np.uint8)
    expected = segnet_jax.load(trained).predict(images, size="native")
    for name in ("stablehlo", "onnx"):
        assert "bit c of a value" in stored[name]["prediction"]
        names = {"images": images}
        exec(stored[name]["use"], names)
        np.testing.assert_array_equal(unpack(np.asarray(names["prediction"]), 2), expected)
    again = segnet_jax.load(tmp_path / "out")
    assert again.classes.multi_label
    np.testing.assert_array_equal(again.predict(images, size="native"), expected)
    assert "any number of 2 classes" in (tmp_path / "out/README.md").read_text()


# --- pictures and names ---


def test_pixels_of_several_classes_have_the_mean_of_their_colors():
    classes = ClassTable(("a", "b"), ((200, 0, 0), (0, 100, 0)), multi_label=True)
    label = np.array([[0, 1, 2, 3, VOID]], np.uint8)
    expected = [[(0, 0, 0), (200, 0, 0), (0, 100, 0), (100, 50, 0), (0, 0, 0)]]
    np.testing.assert_array_equal(colorize(label, classes), expected)
    image = np.full((1, 5, 3), 100, np.uint8)
    shown = overlay(image, label, classes, transparency=0.5)
    np.testing.assert_array_equal(shown[0, [0, 4]], image[0, [0, 4]])
    np.testing.assert_array_equal(shown[0, 3], (100, 75, 50))


def test_each_class_has_a_file_name_of_its_own():
    names = ("car", "Car", "traffic light/red", "overlay", "äöü", "/")
    suffixes = mask_suffixes(names)
    assert suffixes[0] == "_car.png" and suffixes[2] == "_traffic_light_red.png" and suffixes[4] == "_äöü.png"
    assert len({each.casefold() for each in suffixes}) == len(names) and "_overlay.png" not in suffixes
    assert all("/" not in each for each in suffixes)
