"""Test published results: equal to their sources, and compared with our scores only if the protocols agree."""

import dataclasses
import json
import pathlib
import re
import sys
import tomllib

import numpy as np
import pytest
from report_runs import ABOUT, make_run
from test_report import Reader

from segnet_jax import report as command
from segnet_jax.config.fields import Config
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.metrics.bootstrap import intervals
from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.evaluations import Images, encode_images, images_path, read_images, write_images
from segnet_jax.reporting.page.compare import comparison
from segnet_jax.reporting.page.render import report_html
from segnet_jax.reporting.page.run_summary import read_run_summary
from segnet_jax.reporting.published import (
    PublishedResult,
    SeedAverage,
    compare_with_published,
    protocol_differences,
    read_published,
)
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
UNVERIFIED = (
    *(0.88204, 0.85097, 0.60893, 0.79795, 0.6098),  # no other row has these numbers
    *(88.204, 85.097, 60.893, 79.795, 60.98),
)
UNVERIFIED_TOGETHER = {"miou": 46.4, "global_accuracy": 62.5}
PRINTED = {  # global accuracy, class accuracy, mIoU, boundary F1 as printed in the source; V: read there, S: quoted
    "SegNet-Basic, median frequency": (82.7, 62.0, 47.7, 35.78, "V"),
    "SegNet-Basic, natural frequency": (84.0, 54.6, 46.3, 36.67, "V"),
    "SegNet-Basic-EncoderAddition": (83.4, 63.6, 48.5, 35.92, "V"),
    "SegNet-Basic-SingleChannelDecoder": (81.2, 60.7, 46.1, 31.62, "V"),
    "FCN-Basic": (81.7, 62.4, 47.3, 38.11, "V"),
    "FCN-Basic-NoDimReduction": (84.1, 63.4, 50.1, 37.37, "V"),
    "Bilinear interpolation": (77.9, 61.1, 43.3, 20.83, "V"),
    "SegNet-Basic, the authors' tutorial page": (82.8, 62.3, 46.3, None, "S"),
    "SegNet, the authors' tutorial page": (88.6, 65.9, 50.2, None, "S"),
    "Bayesian SegNet, 50 samples": (86.9, None, 63.1, None, "S"),
    "Bayesian SegNet, class average": (None, 76.3, None, None, "S"),
    "SegNet, 40K iterations": (88.81, 59.93, 50.02, 35.78, "V"),
    "SegNet, 80K iterations": (89.68, 69.82, 57.18, 42.08, "V"),
    "SegNet, up to 140K iterations": (90.4, 71.2, 60.1, 46.84, "V"),
    "DeepLab-LargeFOV, 40K iterations": (85.95, 60.41, 50.18, 26.25, "V"),
    "DeepLab-LargeFOV, 80K iterations": (87.76, 62.57, 53.34, 32.04, "V"),
    "DeepLab-LargeFOV, up to 140K iterations": (88.2, 62.53, 53.88, 32.77, "V"),
    "DeepLab-LargeFOV + denseCRF, up to 140K iterations": (89.71, 60.67, 54.74, 40.79, "V"),
    "FCN, 40K iterations": (81.97, 54.38, 46.59, 22.86, "V"),
    "FCN, 80K iterations": (82.71, 56.22, 47.95, 24.76, "V"),
    "FCN, up to 200K iterations": (83.27, 59.56, 49.83, 27.99, "V"),
    "FCN, learnt deconvolution, 40K iterations": (83.21, 56.05, 48.68, 27.4, "V"),
    "FCN, learnt deconvolution, 80K iterations": (83.71, 59.64, 50.8, 31.01, "V"),
    "FCN, learnt deconvolution, up to 160K iterations": (83.14, 64.21, 51.96, 33.18, "V"),
    "DeconvNet, 40K iterations": (85.26, 46.4, 39.69, 27.36, "V"),
    "DeconvNet, 80K iterations": (85.19, 54.08, 43.74, 29.33, "V"),
    "DeconvNet, up to 260K iterations": (89.58, 70.24, 59.77, 52.23, "V"),
    "SegNet, Table 2": (90.4, 71.2, None, None, "V"),
    "Kautenja, SegNet": (88.86, 72.21, 57.75, None, "V"),
    "GitLanx, SegNet": (87.44, 72.16, 58.96, None, "V"),
    "GitLanx, SegNet from vgg16_bn, other commit": (87.84, 70.75, 57.68, None, "V"),
    "GitLanx, SegNet, other commit": (86.71, 66.39, 54.09, None, "V"),
    "GitLanx, bilinear decoder": (None, None, 56.22, None, "V"),
    "GitLanx, U-Net": (None, None, 49.83, None, "V"),
    "GitLanx, FCN-32s": (None, None, 49.34, None, "V"),
    "GitLanx, DeepLab-ASPP": (None, None, 55.49, None, "V"),
    "marshallixp, SegNet, 10k steps": (None, None, 40.2, None, "V"),
    "marshallixp, SegNet, 20k steps": (None, None, 44.1, None, "V"),
    "marshallixp, SegNet, 30k steps": (85.5, 52.3, 44.5, None, "V"),
    "Kautenja, SegNet, earlier text": (88.91, 68.13, 56.54, None, "V"),
    "Kautenja, Bayesian SegNet, first of two texts": (86.35, 76.95, 54.72, None, "V"),
    "Kautenja, Bayesian SegNet, second of two texts": (86.85, 76.82, 55.24, None, "V"),
    "SegNet, quoted by ESPNet": (None, 65.2, 55.6, None, "S"),
    "chainercv, SegNet-Basic": (82.7, 67.1, 49.4, None, "V"),
    "toimcio, SegNet": (81.8, None, 43.77, None, "V"),
    "toimcio, SegNet from scratch": (81.3, None, 42.5, None, "V"),
    "toimcio, Bayesian SegNet": (None, None, 47.64, None, "V"),
    "toimcio, Bayesian SegNet from scratch": (None, None, 47.5, None, "V"),
    "mgilar, SegNet": (None, None, 46.6, None, "V"),
    "Bayesian SegNet, rerun": (85.0, 70.0, 52.0, None, "V, user"),
    "meetps/pytorch-semseg": (None, None, 58.0, None, "V, user"),
    "PaddleSeg, SegNet on Cityscapes": (None, None, 60.09, None, "V"),
    "NVIDIA VideoProp, WideResNet-38": (None, None, 81.6, None, "V"),
    "NVIDIA VideoProp on the 360x480 files": (None, None, 75.0, None, "V"),
    "DABNet": (None, None, 66.72, None, "V"),
    "SERNet-Former": (None, None, 84.62, None, "V"),
}


def test_no_number_without_a_source_is_shown():
    numbers = [value for row in read_published() for value in row.scores.values()]
    assert not set(UNVERIFIED) & set(numbers)
    assert not [row for row in read_published() if row.scores == UNVERIFIED_TOGETHER]
    assert not any(
        row.scores.get("miou") == 46.4 or row.scores.get("global_accuracy") == 62.5 for row in read_published()
    )
    text = (ROOT / "segnet_jax" / "reporting" / "published.toml").read_text(encoding="utf-8")
    assert not [number for number in UNVERIFIED if str(number) in re.findall(r"[\d.]+\d", text)]
    assert "FC-DenseNet" not in text and {row.mark for row in read_published()} <= {"V", "S", "V, user"}


def test_every_row_has_the_numbers_and_the_mark_of_its_source():
    names = ("global_accuracy", "mean_accuracy", "miou", "boundary_f1")
    assert {row.name: (*map(row.scores.get, names), row.mark) for row in read_published()} == PRINTED
    assert len(read_published()) == len(PRINTED) == 56


def test_rows_of_the_same_kind_agree_on_their_data():
    for row in read_published():
        if row.source.endswith("Table 3"):
            assert (row.train_images, row.test_images, row.split) == (3433, 233, "four datasets")
        assert (row.split == "trainval") == (row.train_images == 468)
        if row.train_images == 367:
            assert row.split == "tutorial" and row.source == "SegNet paper, Table 1"


def test_no_row_refers_to_files_outside_the_package():
    text = (ROOT / "segnet_jax" / "reporting" / "published.toml").read_text(encoding="utf-8")
    assert {key for row in tomllib.loads(text)["row"] for key in row} <= {
        item.name for item in dataclasses.fields(PublishedResult)
    }
    assert "line" not in {item.name for item in dataclasses.fields(PublishedResult)} and "shared" not in text


def test_the_famous_60_10_says_how_many_images_it_has():
    (row,) = [row for row in read_published() if row.scores.get("miou") == 60.10]
    assert row.train_images == 3433 and "3,433 images" in row.remark


@pytest.mark.parametrize("changed", [{"mark": "U"}, {"mark": "S"}, {"scores": {}}, {"scores": {"dice": 1.0}}])
def test_an_invalid_row_is_rejected(changed):
    values = {field.name: getattr(read_published()[0], field.name) for field in dataclasses.fields(PublishedResult)}
    with pytest.raises(ValueError):
        PublishedResult(**values | changed)


# --- compared with ours ---

BASIC = read_published()[0]
SAME = SeedAverage("a", (0,), "custom", "camvid-tutorial", "test", 233, 367, (360, 480), "none", {"miou": 0.5})


def test_the_same_split_images_size_and_test_set_are_the_same_protocol():
    assert BASIC.scores["miou"] == 47.7 and protocol_differences(BASIC, SAME) == {}
    compared = compare_with_published([SAME])["published"][0]["ours"][0]
    assert compared["same_protocol"] is True and compared["difference"] == {"miou": pytest.approx(2.3)}


@pytest.mark.parametrize(
    ("changed", "kind", "reason"),
    [
        ({"dataset": "camvid-matlab"}, "split", "the split is tutorial, ours is camvid-matlab"),
        ({"train_images": 421}, "images", "367 training images, ours 421"),
        ({"train_images": None}, "images", "367 training images, ours unknown"),
        ({"image_size": (120, 160)}, "size", "image size 360x480, ours 120x160"),
        ({"split": "val", "num_images": 101}, "test set", "evaluated on 233 test images, ours on 101 val images"),
        ({"num_images": 232}, "test set", "evaluated on 233 test images, ours on 232 test images"),
    ],
)
def test_any_difference_makes_it_a_different_protocol(changed, kind, reason):
    assert protocol_differences(BASIC, dataclasses.replace(SAME, **changed)) == {kind: reason}


def test_what_a_source_does_not_state_counts_as_a_difference():
    unknown = dataclasses.replace(BASIC, split="not stated", train_images=None, test_images=None, image_size=None)
    assert protocol_differences(unknown, SAME).keys() == {"split", "images", "size", "test set"}
    other = dataclasses.replace(BASIC, data="Cityscapes")
    assert protocol_differences(other, SAME) == {"split": "the dataset is Cityscapes"}


def test_no_row_with_other_data_or_more_images_has_the_same_protocol():
    same = [row for row in read_published() if not protocol_differences(row, SAME)]
    assert {row.source[-7:] for row in same} == {"Table 1"} and len(same) == 7


# --- runs ---


def some_images(seed, num_images=6):
    generator = np.random.default_rng(seed)
    size = len(CAMVID)
    confusions = generator.integers(0, 9, (num_images, size, size)) + 20 * np.eye(size, dtype=int)
    return Images(tuple(f"0016E5_{number:05}" for number in range(num_images)), confusions.astype(np.int32))


def seeded_run(folder, seed, **settings):
    images = some_images(seed)
    about = ABOUT | {"dataset": "camvid-tutorial", "num_images": {"train": 367, "val": 6}}
    config = Config(seed=seed, init="none", **settings)
    summed = images.confusions.sum(axis=0)
    make_run(folder, classes=CAMVID, steps=(5,), confusion=summed, config=config, about=about)
    write_images(images_path(folder, 5), images)
    result = json.loads((folder / "result.json").read_text()) | {"miou": scores(summed).miou}
    (folder / "result.json").write_text(json.dumps(result))
    return folder, images


def test_the_report_shows_the_protocol_all_differences_and_the_interval(tmp_path):
    folder, _ = seeded_run(tmp_path / "run", 0, protocol="camvid-tutorial")
    differences = {"global_batch_size": [4, 32], "<b>width</b>": [1.0, 0.25], "broken": [1]}
    interval = {"miou": [0.412, 0.498], "mean_accuracy": ["<i>", 1], "global_accuracy": [0.8, 0.9]}
    result = json.loads((folder / "result.json").read_text()) | {"differences": differences, "interval": interval}
    (folder / "result.json").write_text(json.dumps(result))
    read = Reader(report_html(read_run_summary(folder)))
    shown = "".join(read.text)
    assert (
        "Protocol: camvid-tutorial" in shown and "mean IoU 41.2 % to 49.8 %, global accuracy 80.0 % to 90.0 %" in shown
    )
    rows = [row for row in read.rows if row[0] in ("images per step", "<b>width</b>", "broken", "depth")]
    assert rows == [["images per step", "4", "32"], ["<b>width</b>", "1", "0.25"]] and read.faults == []


def test_confusions_of_a_different_evaluation_than_the_result_give_no_interval(tmp_path):
    folder, _ = seeded_run(tmp_path / "run", 0)
    write_images(images_path(folder, 5), some_images(9))
    assert report(folder, "--published", "--json", tmp_path / "report.json") == 0
    (ours,) = json.loads((tmp_path / "report.json").read_text())["published_comparison"]["ours"]
    assert ours["interval"] == {} and "no interval" in ours["summary"]


def report(*flags):
    return command.report(
        command.parse_flags(command.ReportOptions, [str(flag) for flag in flags], prog="p", description="")
    )


def test_runs_that_differ_only_in_their_seed_are_averaged_with_an_interval(tmp_path, capsys):
    runs = [seeded_run(tmp_path / f"seed-{seed}", seed) for seed in range(3)]
    other, _ = seeded_run(tmp_path / "other", 3, depth=4)
    mious = [scores(images.confusions.sum(axis=0)).miou for _, images in runs]
    flags = [*(folder for folder, _ in runs), other, "--published", "--out", tmp_path / "page.html"]
    assert report(*flags, "--json", tmp_path / "report.json") == 0
    mean, alone = json.loads((tmp_path / "report.json").read_text())["published_comparison"]["ours"]
    assert mean["seeds"] == [0, 1, 2] and mean["each"]["miou"] == mious and alone["seeds"] == [3]
    assert mean["scores"]["miou"] == pytest.approx(sum(mious) / 3)
    expected = intervals([images.confusions for _, images in runs])
    assert mean["interval"] == {name: list(ends) for name, ends in expected.items()}
    page, shown = (tmp_path / "page.html").read_text(), capsys.readouterr().out
    assert "mean of 3 seeds" in page and "mean of 3 seeds" in shown
    for row in read_published():
        assert row.name.replace("'", "&#39;") in page and f"{row.scores.get('miou', 0):g}"[:4] in page
    assert "Published results" in page and "3,433 images" in page
    assert Reader(page).faults == []


def test_runs_with_a_different_batch_size_or_the_same_seed_are_not_averaged(tmp_path):
    folders = [seeded_run(tmp_path / name, seed)[0] for name, seed in (("a", 0), ("b", 1), ("again", 1), ("wide", 2))]
    result = json.loads((folders[3] / "result.json").read_text())  # 8 devices of 4 images, where the others had one
    (folders[3] / "result.json").write_text(json.dumps(result | {"differences": {"global_batch_size": [4, 32]}}))
    assert report(*folders, "--published", "--out", tmp_path / "page.html", "--json", tmp_path / "report.json") == 0
    ours = json.loads((tmp_path / "report.json").read_text())["published_comparison"]["ours"]
    assert [each["seeds"] for each in ours] == [[0, 1], [1], [2]]
    rows = dict(comparison([read_run_summary(folder) for folder in folders]).settings)
    assert rows["global_batch_size"] == ["-", "-", "-", "32"] and rows["seed"] == ["0", "1", "1", "2"]


def test_scores_of_the_test_split_are_used_if_given(tmp_path, capsys):
    folder, _ = seeded_run(tmp_path / "run", 0)
    images = some_images(7, num_images=233)
    scored = {
        "split": "test",
        "num_images": 233,
        "miou": 0.45,
        "dataset": "camvid-tutorial",
        "images": encode_images(images),
    }
    scored |= {"boundary_f1": {"paper": 0.4, "script": 0.3}, "seed": 0}
    path = tmp_path / "test.json"
    path.write_text(json.dumps(scored | {"confusion": images.confusions.sum(axis=0).tolist()}))
    out = ["--out", tmp_path / "page.html", "--json", tmp_path / "report.json"]
    assert report(folder, "--published", "--scores", path, *out) == 0
    comparison = json.loads((tmp_path / "report.json").read_text())["published_comparison"]
    (ours,) = comparison["ours"]
    assert ours["interval"]["miou"] == list(intervals([images.confusions])["miou"]) and ours["num_images"] == 233
    assert comparison["published"][0]["ours"][0]["same_protocol"] is True
    assert comparison["published"][0]["ours"][0]["difference"]["miou"] == pytest.approx(45 - 47.7)
    assert comparison["published"][0]["ours"][0]["difference"]["boundary_f1"] == pytest.approx(40 - 35.78)
    assert "-2.7, yes" in capsys.readouterr().out


def test_scores_of_a_different_run_are_rejected(tmp_path):
    folders = [seeded_run(tmp_path / f"seed-{seed}", seed)[0] for seed in (0, 1)]
    paths = [tmp_path / f"{seed}.json" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        scored = {"split": "test", "miou": 0.45, "seed": seed, "differences": {"dataset": ["camvid-tutorial", "other"]}}
        path.write_text(json.dumps(scored | {"confusion": np.eye(len(CAMVID), dtype=int).tolist()}))
    out = ["--out", tmp_path / "page.html"]
    assert report(*folders, "--published", "--scores", *paths, *out) == 0
    with pytest.raises(UserError, match="1.json does not belong to .*seed-0; give the files in the order of the"):
        report(*folders, "--published", "--scores", *paths[::-1], *out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scores", "FILE"], "--scores needs --published"),
        (["--published", "--scores", "FILE", "FILE"], "one file per run, got 2 for 1 runs"),
        (["--published", "--scores", "nowhere.json"], "cannot read nowhere.json"),
        (["--published", "--scores", "FILE"], "was not written by evaluate --json"),
    ],
)
def test_an_error_is_one_line(tmp_path, monkeypatch, capsys, flags, message):
    folder, _ = seeded_run(tmp_path / "run", 0)
    (tmp_path / "file.json").write_text("{}")
    given = [str(tmp_path / "file.json") if flag == "FILE" else flag for flag in flags]
    monkeypatch.setattr(sys, "argv", ["report", str(folder), *given])
    with pytest.raises(SystemExit) as left:
        run_command(command.main)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and message in line


def test_stored_confusions_are_read_back_and_malformed_files_give_none(tmp_path):
    images, path = some_images(0), tmp_path / "images.npz"
    write_images(path, images)
    read = read_images(path)
    assert read.names == images.names and np.array_equal(read.confusions, images.confusions)
    whole = path.read_bytes()
    wrong = {
        "cut": whole[:-30],
        "empty": b"",
        "text": b"no archive",
        "flipped": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
    }
    for name, data in wrong.items():
        (tmp_path / name).write_bytes(data)
        assert read_images(tmp_path / name) is None
    for name, arrays in {
        "short": {"names": np.array(["a"]), "confusions": images.confusions},
        "floats": {"names": np.array(images.names), "confusions": images.confusions.astype(float)},
        "objects": {"names": np.array([{}] * 6, object), "confusions": images.confusions},
        "negative": {"names": np.array(images.names), "confusions": -images.confusions},
        "bomb": {"names": np.array(["a"]), "confusions": np.zeros((1, 6000, 6000), np.int32)},
    }.items():
        np.savez_compressed(tmp_path / f"{name}.npz", **arrays)
        assert read_images(tmp_path / f"{name}.npz") is None
    assert read_images(tmp_path / "nowhere.npz") is None
