"""Test test-time augmentation and ensembles against slow loops in numpy, in Python and in the commands."""

import dataclasses
import errno
import json
import math

import jax
import numpy as np
import pytest
from made_runs import make_run
from PIL import Image

import segnet_jax
from segnet_jax import evaluate, predict
from segnet_jax.config.flags import parse_flags
from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import CAMVID, ClassTable
from segnet_jax.inference.averaging import Views, average, log_mean
from segnet_jax.inference.ensemble_members import check_members, warn_of_other_splits
from segnet_jax.nn.segnet import SegNet
from segnet_jax.reporting.csv_files import image_scores_csv
from segnet_jax.runs.load_dataset import open_data
from segnet_jax.system.errors import DiskFull, UserError
from segnet_jax.training import network_source


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Make two runs of one dataset whose networks differ in width and weights."""
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "a"), make_run(folder / "b", width=1 / 32)


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def resized(array, size, antialias):
    """Resize [h,w,C] bilinearly by loops: a triangle as wide as the larger grid's pixel, normalized at the edges."""
    for axis, length in enumerate(size):
        old = array.shape[axis]
        support = max(1.0, old / length) if antialias else 1.0
        lines = []
        for place in range(length):
            center = (place + 0.5) * old / length - 0.5
            weights = [max(0.0, 1 - abs(i - center) / support) for i in range(old)]
            line = sum(w * np.take(array, i, axis).astype(np.float64) for i, w in enumerate(weights) if w)
            lines.append(line / sum(weights))
        array = np.stack(lines, axis=axis)
    return array


def mean_by_loops(networks, image, flip, scales):
    """Return the mean probabilities [H,W,C] of an image from one forward pass per view and network."""
    total, count = 0, 0
    for network in networks:
        for scale in scales:
            size = [round(scale * length) for length in image.shape[:2]]
            view = image if scale == 1 else resized(image, size, antialias=True).astype(np.float32)
            for mirrored in (False, True)[: 1 + flip]:
                seen = view[:, ::-1] if mirrored else view
                logits = np.asarray(network._logits(network.variables, seen[None]))[0]  # compiled once per size
                logits = logits[:, ::-1] if mirrored else logits
                total = total + softmax(resized(logits, image.shape[:2], antialias=False))
                count += 1
    return total / count


def noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_log_mean_is_the_logarithm_of_the_mean_probability_up_to_a_constant():
    logits = 30 * np.random.default_rng(0).standard_normal((3, 2, 4, 5, 6), np.float32)
    found = np.asarray(jax.jit(lambda *views: log_mean(views))(*logits))
    np.testing.assert_allclose(softmax(found), softmax(logits).mean(axis=0), rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_mean_of_equal_logits_is_these_logits_bit_for_bit(count):
    logits = np.random.default_rng(count).standard_normal((1, 31, 33, 11), np.float32) * np.float32(1e-3)
    found = jax.jit(lambda *views: log_mean(views))(*[logits] * count)
    assert np.array_equal(np.asarray(found), logits)


@pytest.mark.parametrize(
    ("flip", "scales"),
    [
        (True, (1.0,)),
        (False, (0.75, 1.0, 1.25)),
        pytest.param(True, (0.5, 1.3), marks=pytest.mark.slow),
        pytest.param(False, (2.0,), marks=pytest.mark.slow),
    ],
)
def test_augmentation_and_ensembles_equal_slow_loops(runs, flip, scales):
    networks, image = [segnet_jax.load(run) for run in runs], noise(3, 21, 34)
    for members in (networks[:1], networks):
        averaged = average(members, Views(flip, scales))
        expected = mean_by_loops(members, image, flip, scales)
        np.testing.assert_allclose(softmax(np.asarray(averaged.logits(image)))[0], expected, rtol=3e-3, atol=3e-6)


def test_predict_in_python_gives_the_classes_of_the_mean(runs):
    network, image = segnet_jax.load(runs[0]), noise(5, 21, 34)
    ids = network.predict(image, size="native", tta="flip", tta_scales=(0.75, 1, 1.25))
    mean = mean_by_loops([network], image, True, (0.75, 1, 1.25))
    expected = np.sort(mean, axis=-1)
    clear = expected[..., -1] - expected[..., -2] > 1e-4
    assert clear.mean() > 0.99 and np.array_equal(ids[clear], mean.argmax(axis=-1)[clear])
    assert (ids != network.predict(image, size="native")).mean() > 0.01  # the views do matter
    assert np.array_equal(
        network.predict(image, size="native", tta="none", tta_scales=[1]), network.logits(image)[0].argmax(-1)
    )


def scores_of(tmp_path, *flags):
    """Run evaluate, and return the content of --json."""
    path = tmp_path / "scores.json"
    options = parse_flags(evaluate.EvaluateOptions, [*map(str, flags), "--json", str(path)], prog="p", description="")
    assert evaluate.evaluate(options) == 0
    return json.loads(path.read_text())


@pytest.mark.slow
def test_evaluate_counts_the_mean_of_views_and_runs_on_one_device_and_on_eight(runs, tmp_path):
    views = ("--tta", "flip", "--no-boundary")
    found = scores_of(tmp_path, *runs, *views, "--devices", 1)
    eight = scores_of(tmp_path, *runs, *views, "--devices", 8, "--batch-size-per-device", 1)
    assert found["confusion"] == eight["confusion"] and found["loss"] == pytest.approx(eight["loss"], rel=1e-6)
    networks = [segnet_jax.load(run) for run in runs]
    split = open_data(networks[0].config).splits["val"]
    expected, nll, pixels = np.zeros((11, 11), int), 0.0, 0
    for index in range(len(split)):
        image, label = split.read(index)
        mean = mean_by_loops(networks, image, True, (1,))
        known = label != VOID
        np.add.at(expected, (label[known], mean.argmax(axis=-1)[known]), 1)
        nll -= np.log(mean[known, label[known]]).sum()
        pixels += known.sum()
    assert np.abs(expected - found["confusion"]).sum() <= 2e-3 * pixels  # pixels whose classes are equally likely
    assert found["loss"] == pytest.approx(nll / pixels, rel=1e-4)
    assert found["tta"] == "flip" and "tta_scales" not in found and found["runs"] == [str(run) for run in runs]


def test_an_ensemble_of_a_run_with_itself_is_the_run(runs, tmp_path):
    run = runs[0]
    once, twice = (scores_of(tmp_path, *[run] * times, "--no-boundary") for times in (1, 2))
    assert once["confusion"] == twice["confusion"] and once["images"] == twice["images"] and "runs" not in once
    Image.fromarray(noise(1, 40, 50)).save(tmp_path / "a.png")
    for name, members in (("one", [run]), ("two", [run] * 2)):
        flags = [*members, tmp_path / "a.png", "--out", tmp_path / name, "--confidence"]
        assert (
            predict.predict(parse_flags(predict.PredictOptions, list(map(str, flags)), prog="p", description="")) == 0
        )
    for name in ("a.png", "a_confidence.png"):
        one, two = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("one", "two"))
        assert np.array_equal(one, two)


def test_predict_with_views_and_runs_equals_slow_loops_and_scores_as_evaluate(runs, tmp_path):
    networks = [segnet_jax.load(run) for run in runs]
    split = open_data(networks[0].config).splits["val"]
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index in range(3):
        image, label = split.read(index)
        Image.fromarray(image).save(tmp_path / f"images/{index}.png")
        Image.fromarray(label).save(tmp_path / f"labels/{index}.png")
    flags = [*runs, tmp_path / "images", "--labels", tmp_path / "labels", "--out", tmp_path / "out", "--tta", "flip"]
    flags += ["--json", tmp_path / "summary.json", "--confidence", "--void", 255]
    assert predict.predict(parse_flags(predict.PredictOptions, list(map(str, flags)), prog="p", description="")) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["runs"] == [str(run) for run in runs] and summary["tta"] == "flip" and "temperature" not in summary
    for index in range(3):
        mean = mean_by_loops(networks, split.read(index)[0], True, (1,))
        two = np.sort(mean, axis=-1)[..., -2:]
        clear = two[..., 1] - two[..., 0] > 1e-4
        ids = np.asarray(Image.open(tmp_path / f"out/{index}.png"))
        assert clear.mean() > 0.99 and np.array_equal(ids[clear], mean.argmax(axis=-1)[clear])
        confidence = np.asarray(Image.open(tmp_path / f"out/{index}_confidence.png")) / 255
        assert np.abs(confidence - two[..., 1]).max() < 0.0025
    whole = scores_of(tmp_path, *runs, "--tta", "flip", "--no-boundary", "--csv", tmp_path / "images.csv")
    lines = (tmp_path / "images.csv").read_text().splitlines()[1:4]
    found = [float(line.split(",")[3]) for line in lines]
    assert found == pytest.approx([row["miou"] for row in summary["inputs"]], abs=1e-6)
    assert whole["num_images"] == 9


def test_tiles_are_scored_at_the_native_size_as_predict_segments_them(runs, tmp_path):
    run, tiles = runs[0], ("--tile", 16, 16, "--overlap", 8)
    found = scores_of(tmp_path, run, *tiles)
    split = open_data(segnet_jax.load(run).config).splits["val"]
    (tmp_path / "images").mkdir()
    for index, name in enumerate(split.names):
        Image.fromarray(split.read(index)[0]).save(tmp_path / f"images/{name}.png")
    flags = [run, tmp_path / "images", "--out", tmp_path / "out", *tiles]
    assert predict.predict(parse_flags(predict.PredictOptions, list(map(str, flags)), prog="p", description="")) == 0
    expected = np.zeros((11, 11), int)
    for index, name in enumerate(split.names):
        label, ids = split.read(index)[1], np.asarray(Image.open(tmp_path / f"out/{name}.png"))
        np.add.at(expected, (label[label != VOID], ids[label != VOID]), 1)
    assert np.abs(expected - found["confusion"]).sum() <= 1e-3 * expected.sum()  # predict folds BatchNorm
    assert found["tile"] == [16, 16] and found["overlap"] == 8 and found["loss"] is None
    assert 0 < found["boundary_f1"]["script"] <= found["boundary_f1"]["paper"] < 1
    assert found["confusion"] != scores_of(tmp_path, run, "--no-boundary")["confusion"]


def test_the_csv_has_the_scores_of_each_image(runs, tmp_path, monkeypatch):
    scores_of(tmp_path, runs[0], "--no-boundary", "--csv", tmp_path / "images.csv")
    header, *lines = (line.split(",") for line in (tmp_path / "images.csv").read_text().splitlines())
    assert header == ["image", "pixels", "accuracy", "mIoU", *(f"IoU {name}" for name in CAMVID.names)]
    network = segnet_jax.load(runs[0])
    split = open_data(network.config).splits["val"]
    assert [line[0] for line in lines] == list(split.names)
    for index, (_, pixels, accuracy, miou, *ious) in enumerate(lines):
        image, label = split.read(index)
        ids, known = network.predict(image), label != VOID
        assert int(pixels) == known.sum() and float(accuracy) == pytest.approx((ids == label)[known].mean(), abs=2e-3)
        expected = []
        for class_id, iou in enumerate(ious):
            true, predicted = (label == class_id)[known], (ids == class_id)[known]
            assert (iou == "") == (not true.any())
            if iou:
                expected.append((true & predicted).sum() / (true | predicted).sum())
                assert float(iou) == pytest.approx(expected[-1], abs=5e-3)
        assert float(miou) == pytest.approx(np.mean(expected), abs=5e-3)
    scores_of(tmp_path, runs[0], "--no-boundary", "--csv", tmp_path / "images.csv")  # its own file is replaced
    (tmp_path / "other.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="already exists and is not overwritten"):
        scores_of(tmp_path, runs[0], "--csv", tmp_path / "other.csv")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluate, "atomic_write_text", full)
    with pytest.raises(DiskFull, match="cannot write a file: No space left on device; the scores above are complete"):
        scores_of(tmp_path, runs[0], "--no-boundary", "--csv", tmp_path / "images.csv")


def test_runs_of_other_folds_are_warned_of_as_their_training_images_may_be_scored(runs, logged):
    one, other = (segnet_jax.load(run) for run in runs)
    folds = [
        dataclasses.replace(each, config=dataclasses.replace(each.config, folds=2, fold=fold))
        for fold, each in ((1, one), (2, other))
    ]
    warn_of_other_splits(("a", "b"), folds)
    assert logged == [
        "warning: b was trained with a different --fold than a: its training images may include images scored here"
    ]
    warn_of_other_splits(("a", "b"), (one, other))
    assert len(logged) == 1
    known = [dataclasses.replace(one, data={"train": each, "val": "c"}) for each in "aab"]
    warn_of_other_splits(("a", "same", "b"), known)
    assert logged[1:] == [
        "warning: b was trained on other images than a: its training images may include images scored here"
    ]


def test_runs_that_do_not_fit_are_named_with_the_difference(runs, tmp_path):
    other = make_run(tmp_path / "wide", image_size=(24, 48))
    with pytest.raises(
        UserError, match=r"a and .*wide cannot be averaged: --image-size is 24 32 in the first and 24 48"
    ):
        scores_of(tmp_path, runs[0], other)
    classes = ClassTable((*CAMVID.names[:-1], "Scooter"), CAMVID.colors)
    other = make_run(tmp_path / "classes", classes=classes)
    with pytest.raises(UserError, match="class 10 is Bicyclist in the first and Scooter in the second"):
        scores_of(tmp_path, runs[0], other)
    fewer = make_run(tmp_path / "fewer", classes=ClassTable(CAMVID.names[:7], CAMVID.colors[:7]))
    with pytest.raises(UserError, match="the first has 11 classes, the second 7"):
        check_members(("a", "b"), [segnet_jax.load(run) for run in (runs[0], fewer)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tta-scales", 0.1], "--tta-scales must be 1 to 16 factors between 0.25 and 4, got 0.1"),
        (["--tta-scales", 1, 1], "--tta-scales must be different factors, got 1 1"),
        (["--tta-scales", math.nan], "--tta-scales must be"),
        (["--tta", "flop"], "flip"),
        (["--tta", "flip", "--samples", 3], "--samples works for one network"),
        (["--tile", 16, 16, "--pictures", "p"], "--pictures and --calibrate use images of the training size"),
        (["--tile", 2, 2], "--tile must be at least"),
        (
            ["--calibrate", "--split", "train"],
            "--calibrate fits on validation images: use --split val, got --split train",
        ),
        (["--calibrate", "--no-ema"], "--calibrate needs a single run as trained"),
    ],
)
def test_bad_flags_of_evaluate_are_reported(runs, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        scores_of(tmp_path, runs[0], *flags)


def test_a_model_that_no_run_needs_is_an_error(runs):
    for given in (runs[0], runs):
        with pytest.raises(UserError, match="(was not|no network of .*,.* was) passed from Python: omit model"):
            segnet_jax.evaluate(given, model=SegNet)


def test_further_runs_of_predict_may_be_in_buckets(runs, tmp_path, monkeypatch):
    Image.fromarray(noise(0, 24, 32)).save(tmp_path / "a.png")
    fetched = []
    monkeypatch.setattr(network_source, "local_copy", lambda flag, address: fetched.append(address) or runs[1])
    for name, other in (("there", "s3://street/runs/b"), ("here", runs[1])):
        flags = [runs[0], other, tmp_path / "a.png", "--out", tmp_path / name]
        options = parse_flags(predict.PredictOptions, list(map(str, flags)), prog="p", description="")
        assert options.num_others == 1 and predict.predict(options) == 0
    assert fetched == ["s3://street/runs/b"]
    assert (tmp_path / "there" / "a.png").read_bytes() == (tmp_path / "here" / "a.png").read_bytes()


def test_names_in_the_csv_have_no_control_characters_and_start_no_formula():
    text = image_scores_csv(["\x1b[2J\u202ea", "=1+1", "\t=1", "b\nc"], np.ones((4, 2, 2), int), ["\x1b]0;x\x07", "b"])
    assert text.splitlines()[0] == r"image,pixels,accuracy,mIoU,IoU \x1b]0;x\x07,IoU b"
    assert [line.split(",")[0] for line in text.splitlines()[1:]] == [r"\x1b[2J\u202ea", "'=1+1", r"\t=1", r"b\nc"]


def test_bad_settings_in_python_and_predict_are_reported(runs, tmp_path):
    with pytest.raises(UserError, match="--tta must be one of none, flip, got 'flop'; nearest: flip"):
        segnet_jax.load(runs[0]).predict(noise(0, 24, 32), tta="flop")
    flags = [*map(str, runs), "a.png"]
    with pytest.raises(UserError, match="predictions of several runs need an output folder: add --out FOLDER"):
        predict.predict(parse_flags(predict.PredictOptions, flags, prog="p", description=""))
