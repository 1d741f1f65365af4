"""Published results: held against the notes they were taken from, and set beside ours only as far as they compare."""

import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import pytest
from report_runs import ABOUT, make_run
from test_report import Reader

from segnet_jax import report as command
from segnet_jax.config.fields import Config
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.metrics.bootstrap import intervals
from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.evaluations import Images, images_path, packed, read_images, write_images
from segnet_jax.reporting.page.compare import comparison
from segnet_jax.reporting.page.draw import report_html
from segnet_jax.reporting.page.record import read_record
from segnet_jax.reporting.published import Ours, Row, beside, disagreements, read_rows
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
NOTES = ROOT.parent / "shared" / "reference" / "protocols.md"
UNVERIFIED = (
    *(0.88204, 0.85097, 0.60893, 0.79795, 0.6098),
    *(88.6, 65.9, 50.2),  # none of them is a figure of another row
    *(88.204, 85.097, 60.893, 79.795, 60.98),
)
UNVERIFIED_TOGETHER = {"miou": 46.4, "global_accuracy": 62.5}


def test_no_figure_without_a_source_is_shown():
    numbers = [value for row in read_rows() for value in row.scores.values()]
    assert not set(UNVERIFIED) & set(numbers)
    assert not [row for row in read_rows() if row.scores == UNVERIFIED_TOGETHER]
    assert not any(row.scores.get("miou") == 46.4 or row.scores.get("global_accuracy") == 62.5 for row in read_rows())
    text = (ROOT / "segnet_jax" / "reporting" / "published.toml").read_text(encoding="utf-8")
    assert not [number for number in UNVERIFIED if str(number) in re.findall(r"[\d.]+\d", text)]
    assert "FC-DenseNet" not in text and {row.mark for row in read_rows()} <= {"V", "S", "V, user"}


@pytest.mark.parametrize("row", read_rows(), ids=lambda row: row.name)
def test_every_number_of_a_row_stands_in_its_line_of_the_notes_with_its_mark(row):
    if not NOTES.is_file():
        pytest.skip("the notes that the rows were taken from are not beside this checkout")
    section = NOTES.read_text(encoding="utf-8").split("## 8. ")[1].split("\n## ")[0]
    lines = section.splitlines()
    found = [place for place, line in enumerate(lines) if row.line in line]
    assert len(found) == 1, f"{row.line!r} stands in {len(found)} lines"
    line = lines[found[0]]
    numbers = {float(number) for number in re.findall(r"\d+\.\d+|\d+", line)}
    assert set(row.scores.values()) <= numbers
    if row.source.endswith("Table 3"):
        head = next(each for each in reversed(lines[: found[0]]) if each.startswith("| Table 3"))
        assert row.mark == "V" and "[V]" in head and "3,433 images" in head and row.train_images == 3433
    elif row.source.endswith("Table 2"):
        assert row.mark == "V" and "(numbers V, **column order U**)" in line
    else:
        mark = line.rstrip(" |").split("|")[-1].strip()
        assert mark == f"S ({row.quoted_by.removeprefix('the ')})" if mark.startswith("S (") else mark == row.mark


def test_every_line_of_the_notes_that_may_be_shown_has_a_row():
    if not NOTES.is_file():
        pytest.skip("the notes that the rows were taken from are not beside this checkout")
    section = NOTES.read_text(encoding="utf-8").split("## 8. ")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and re.search(r"\d\d", line)]
    lines = [line for line in lines if not line.startswith("| Table 3") and "**U**" not in line]
    assert len(lines) > 25
    assert [line for line in lines if not any(row.line in line for row in read_rows())] == []


def test_the_famous_60_10_says_how_many_images_it_has():
    (row,) = [row for row in read_rows() if row.scores.get("miou") == 60.10]
    assert row.train_images == 3433 and "3,433 images" in row.remark


@pytest.mark.parametrize("changed", [{"mark": "U"}, {"mark": "S"}, {"scores": {}}, {"scores": {"dice": 1.0}}])
def test_a_row_that_may_not_be_shown_is_refused(changed):
    values = {field.name: getattr(read_rows()[0], field.name) for field in dataclasses.fields(Row)}
    with pytest.raises(ValueError):
        Row(**values | changed)


# --- beside ours ---

BASIC = read_rows()[0]
SAME = Ours("a", (0,), "custom", "camvid-tutorial", "test", 233, 367, (360, 480), "none", {"miou": 0.5})


def test_the_same_split_images_size_and_test_set_are_the_same_protocol():
    assert BASIC.scores["miou"] == 47.7 and disagreements(BASIC, SAME) == {}
    told = beside([SAME])["published"][0]["ours"][0]
    assert told["same_protocol"] is True and told["difference"] == {"miou": pytest.approx(2.3)}


@pytest.mark.parametrize(
    ("changed", "what", "why"),
    [
        ({"dataset": "camvid-matlab"}, "split", "its split is tutorial, ours camvid-matlab"),
        ({"train_images": 421}, "images", "367 training images, ours 421"),
        ({"train_images": None}, "images", "367 training images, ours unknown"),
        ({"image_size": (120, 160)}, "size", "images of 360x480, ours 120x160"),
        ({"split": "val", "num_images": 101}, "test set", "scored on 233 test images, ours 101 val images"),
        ({"num_images": 232}, "test set", "scored on 233 test images, ours 232 test images"),
    ],
)
def test_each_thing_that_differs_makes_it_another_protocol(changed, what, why):
    assert disagreements(BASIC, dataclasses.replace(SAME, **changed)) == {what: why}


def test_what_a_source_does_not_state_is_not_taken_to_agree():
    unknown = dataclasses.replace(BASIC, split="not stated", train_images=None, test_images=None, image_size=None)
    assert disagreements(unknown, SAME).keys() == {"split", "images", "size", "test set"}
    other = dataclasses.replace(BASIC, data="Cityscapes")
    assert disagreements(other, SAME) == {"split": "its data are Cityscapes"}


def test_no_row_of_other_data_or_more_images_is_ever_the_same_protocol():
    same = [row for row in read_rows() if not disagreements(row, SAME)]
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
    told = {"global_batch_size": [4, 32], "<b>width</b>": [1.0, 0.25], "broken": [1]}
    interval = {"miou": [0.412, 0.498], "mean_accuracy": ["<i>", 1], "global_accuracy": [0.8, 0.9]}
    result = json.loads((folder / "result.json").read_text()) | {"differences": told, "interval": interval}
    (folder / "result.json").write_text(json.dumps(result))
    read = Reader(report_html(read_record(folder)))
    shown = "".join(read.text)
    assert "Protocol: camvid-tutorial" in shown and "mean IoU 41.2 % to 49.8 %, pixels right 80.0 % to 90.0 %" in shown
    rows = [row for row in read.rows if row[0] in ("global_batch_size", "<b>width</b>", "broken", "depth")]
    assert rows == [["global_batch_size", "4", "32"], ["<b>width</b>", "1.0", "0.25"]] and read.faults == []


def test_images_of_another_evaluation_than_the_result_give_no_interval(tmp_path):
    folder, _ = seeded_run(tmp_path / "run", 0)
    write_images(images_path(folder, 5), some_images(9))
    assert report(folder, "--published", "--json", tmp_path / "told.json") == 0
    (ours,) = json.loads((tmp_path / "told.json").read_text())["beside"]["ours"]
    assert ours["interval"] == {} and "no interval" in ours["told"]


def report(*flags):
    return command.report(command.parse_flags(command.Options, [str(flag) for flag in flags], prog="p", description=""))


def test_runs_that_differ_by_seed_alone_are_one_result_with_its_mean_and_interval(tmp_path, capsys):
    runs = [seeded_run(tmp_path / f"seed-{seed}", seed) for seed in range(3)]
    other, _ = seeded_run(tmp_path / "other", 3, depth=4)
    mious = [scores(images.confusions.sum(axis=0)).miou for _, images in runs]
    flags = [*(folder for folder, _ in runs), other, "--published", "--out", tmp_path / "page.html"]
    assert report(*flags, "--json", tmp_path / "told.json") == 0
    mean, alone = json.loads((tmp_path / "told.json").read_text())["beside"]["ours"]
    assert mean["seeds"] == [0, 1, 2] and mean["each"]["miou"] == mious and alone["seeds"] == [3]
    assert mean["scores"]["miou"] == pytest.approx(sum(mious) / 3)
    expected = intervals([images.confusions for _, images in runs])
    assert mean["interval"] == {name: list(ends) for name, ends in expected.items()}
    page, shown = (tmp_path / "page.html").read_text(), capsys.readouterr().out
    assert "mean of 3 seeds" in page and "mean of 3 seeds" in shown
    for row in read_rows():
        assert row.name.replace("'", "&#39;") in page and f"{row.scores.get('miou', 0):g}"[:4] in page
    assert "Beside what others published" in page and "3,433 images" in page
    assert Reader(page).faults == []


def test_runs_of_another_batch_or_the_same_seed_are_not_seeds_of_one_recipe(tmp_path):
    folders = [seeded_run(tmp_path / name, seed)[0] for name, seed in (("a", 0), ("b", 1), ("again", 1), ("wide", 2))]
    result = json.loads((folders[3] / "result.json").read_text())  # 8 devices of 4 images, where the others had one
    (folders[3] / "result.json").write_text(json.dumps(result | {"differences": {"global_batch_size": [4, 32]}}))
    assert report(*folders, "--published", "--out", tmp_path / "page.html", "--json", tmp_path / "told.json") == 0
    ours = json.loads((tmp_path / "told.json").read_text())["beside"]["ours"]
    assert [each["seeds"] for each in ours] == [[0, 1], [1], [2]]
    rows = dict(comparison([read_record(folder) for folder in folders]).settings)
    assert rows["global_batch_size"] == ["-", "-", "-", "32"] and rows["seed"] == ["0", "1", "1", "2"]


def test_scores_of_the_test_split_are_taken_where_they_are_given(tmp_path, capsys):
    folder, _ = seeded_run(tmp_path / "run", 0)
    images = some_images(7, num_images=233)
    told = {"split": "test", "num_images": 233, "miou": 0.45, "dataset": "camvid-tutorial", "images": packed(images)}
    told |= {"boundary_f1": {"paper": 0.4, "script": 0.3}, "seed": 0}
    path = tmp_path / "test.json"
    path.write_text(json.dumps(told | {"confusion": images.confusions.sum(axis=0).tolist()}))
    out = ["--out", tmp_path / "page.html", "--json", tmp_path / "told.json"]
    assert report(folder, "--published", "--scores", path, *out) == 0
    found = json.loads((tmp_path / "told.json").read_text())["beside"]
    (ours,) = found["ours"]
    assert ours["interval"]["miou"] == list(intervals([images.confusions])["miou"]) and ours["num_images"] == 233
    assert found["published"][0]["ours"][0]["same_protocol"] is True
    assert found["published"][0]["ours"][0]["difference"]["miou"] == pytest.approx(45 - 47.7)
    assert found["published"][0]["ours"][0]["difference"]["boundary_f1"] == pytest.approx(40 - 35.78)
    assert "-2.7, yes" in capsys.readouterr().out


def test_scores_of_another_run_are_refused(tmp_path):
    folders = [seeded_run(tmp_path / f"seed-{seed}", seed)[0] for seed in (0, 1)]
    paths = [tmp_path / f"{seed}.json" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        told = {"split": "test", "miou": 0.45, "seed": seed, "differences": {"dataset": ["camvid-tutorial", "other"]}}
        path.write_text(json.dumps(told | {"confusion": np.eye(len(CAMVID), dtype=int).tolist()}))
    out = ["--out", tmp_path / "page.html"]
    assert report(*folders, "--published", "--scores", *paths, *out) == 0
    with pytest.raises(UserError, match="1.json is of another run than .*seed-0: give the files in the order of the"):
        report(*folders, "--published", "--scores", *paths[::-1], *out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scores", "FILE"], "--scores needs --published"),
        (["--published", "--scores", "FILE", "FILE"], "one file for each run, got 2 for 1 runs"),
        (["--published", "--scores", "nowhere.json"], "cannot read nowhere.json"),
        (["--published", "--scores", "FILE"], "was not written by evaluate --json"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, monkeypatch, capsys, flags, message):
    folder, _ = seeded_run(tmp_path / "run", 0)
    (tmp_path / "file.json").write_text("{}")
    given = [str(tmp_path / "file.json") if flag == "FILE" else flag for flag in flags]
    monkeypatch.setattr(sys, "argv", ["report", str(folder), *given])
    with pytest.raises(SystemExit) as left:
        run_command(command.main)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and message in line


def test_kept_images_come_back_and_anything_else_is_nothing(tmp_path):
    images, path = some_images(0), tmp_path / "images.npz"
    write_images(path, images)
    back = read_images(path)
    assert back.names == images.names and np.array_equal(back.confusions, images.confusions)
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
