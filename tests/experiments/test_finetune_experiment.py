"""Test experiments/finetune: configs load, commands parse, frames do not overlap, scores are collected."""

import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest

from segnet_jax.config.differences import differences
from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_config
from segnet_jax.config.flags import parse_config
from segnet_jax.data.camvid_frames import FRAMES
from segnet_jax.reporting.evaluations import Images, images_path, write_images
from segnet_jax.runs.config_checks import check_network

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "finetune"
_SPEC = importlib.util.spec_from_file_location("finetune_run", FOLDER / "run.py")
run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(run)
DRIVE = [name for name in FRAMES if name.startswith("0006R0_")]


def config_of(command):
    assert command[1:3] == ["-m", "segnet_jax.train"]
    return parse_config(command[3:], prog="segnet_jax.train", description="")


def test_every_start_takes_the_same_training_but_for_its_weights_and_rate(tmp_path):
    configs = {start: config_of(run.command_of(start, 1, tmp_path, "DIR", "vgg16")) for start in run.STARTS}
    assert {start: config.init for start, config in configs.items()} == {
        "segnet": str(tmp_path / "base"),
        "vgg16": "vgg16",
        "random": "none",
    }
    for config in configs.values():
        assert differences(configs["random"], config).keys() <= {"init", "learning_rate"}
        assert (config.leave_out, config.leave_out_train, config.seed) == ("0006R0", 30, 1)
    check_network(configs["vgg16"])
    check_network(configs["random"])


def test_the_base_has_the_network_and_size_of_what_is_fine_tuned_and_nothing_is_selected(tmp_path):
    base = config_of(run.command_of_base(tmp_path, "DIR", "vgg16"))
    tuned = read_config(FOLDER / "finetune.toml", Config())
    same = ("network", "encoder", "depth", "width", "image_size", "pooling", "leave_out", "split_rule")
    assert all(getattr(base, name) == getattr(tuned, name) for name in same)
    assert base.leave_out_train == 0 and {base.result_checkpoint, tuned.result_checkpoint} == {"last"}
    assert base.evaluate_every == base.epochs


def test_the_pages_commands_are_those_of_the_script(monkeypatch):
    monkeypatch.chdir(FOLDER.parents[1])
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    written = [config_of(["python", *line.split()[1:]]) for line in re.findall(r"^python -m .*train .*$", page, re.M)]
    made = [config_of(run.command_of_base(pathlib.Path("RUNS"), "DIR", "vgg16"))]
    made += [config_of(run.command_of(start, 0, pathlib.Path("RUNS"), "DIR", "vgg16")) for start in run.STARTS]
    for config in (*written, *made):
        assert config.data == "DIR"
    assert [(each.run, each.to_toml()) for each in written] == [(each.run, each.to_toml()) for each in made]


def finished(folder, names, confusions, **result):
    folder.mkdir()
    images = Images(tuple(names), confusions)
    path = images_path(folder, 5)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_images(path, images)
    (folder / "result.json").write_text(json.dumps({"step": 5, "seed": 0} | result))


def test_scores_are_collected_by_start_and_the_base_is_counted_on_the_same_71_frames(tmp_path):
    generator = np.random.default_rng(0)
    confusions = generator.integers(1, 9, (101, 3, 3)).astype(np.int32)
    finished(tmp_path / "base", DRIVE, confusions)
    assert run.collect(tmp_path) == []  # nothing was fine-tuned: which frames count is not known
    scores = {"miou": 0.5, "mean_accuracy": 0.6, "global_accuracy": 0.8}
    finished(tmp_path / "random-0", DRIVE[30:], confusions[30:], **scores)
    finished(tmp_path / "random-2", DRIVE[30:], confusions[30:], **scores | {"seed": 2, "miou": 0.6})
    (tmp_path / "vgg16-0").mkdir()  # still in training
    rows = {row["name"]: row for row in run.collect(tmp_path)}
    assert rows.keys() == {"random weights", run.NOT_TUNED}
    assert rows["random weights"]["seeds"] == [0, 2] and rows["random weights"]["miou"] == [0.5, 0.6]
    summed = confusions[30:].sum(axis=0)
    ious = [summed[i, i] / (summed[i].sum() + summed[:, i].sum() - summed[i, i]) for i in range(3)]
    assert rows[run.NOT_TUNED]["miou"] == [pytest.approx(np.mean(ious))]
    assert run.as_markdown([rows["random weights"]], "start").splitlines()[-1] == (
        "| random weights | 2 | 55.0 | 50.0, 60.0 | 60.0 | 80.0 |"
    )
    run.draw_scores("", list(rows.values()), tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_of_the_page_is_that_of_the_scores():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    table = page.partition("<!-- scores -->\n")[2].partition("\n<!-- / -->")[0]
    if not (FOLDER / "scores.json").is_file():
        assert table == "The runs have not been made yet."
    else:
        rows = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))["rows"]
        assert table == run.as_markdown(rows, "start") and len(rows) == 4
