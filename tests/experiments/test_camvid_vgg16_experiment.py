"""Test experiments/camvid_vgg16: configs load, commands parse, all stages have one network, nothing is selected."""

import importlib.util
import json
import pathlib
import re

import pytest

from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_config
from segnet_jax.config.flags import parse_config
from segnet_jax.runs.config_checks import check_network

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "camvid_vgg16"
_SPEC = importlib.util.spec_from_file_location("camvid_vgg16_run", FOLDER / "run.py")
run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(run)


def config_of(command):
    assert command[1:3] == ["-m", "segnet_jax.train"]
    return parse_config(command[3:], prog="segnet_jax.train", description="")


def test_each_stage_starts_from_the_one_before_and_keeps_the_network(tmp_path):
    configs = [config_of(run.train_command(stage, "DIR", tmp_path, "vgg16")) for stage in run.STAGES]
    assert [config.init for config in configs] == ["vgg16", str(tmp_path / "120x160"), str(tmp_path / "180x240")]
    for stage, config in zip(run.STAGES, configs, strict=True):
        check_network(config)
        assert stage == "x".join(map(str, config.image_size))
        assert (config.width, config.depth, config.network, config.encoder) == (1.0, 5, "segnet", "vgg16")
        assert config.result_checkpoint == "last" and config.epochs % config.evaluate_every == 0
        assert config.shift * 480 == 24 * config.image_size[1]  # the same part of the image
    same = ("pooling", "conv_bias", "flip", "scale", "class_weights", "schedule", "precision")
    assert all(getattr(config, name) == getattr(configs[0], name) for config in configs for name in same)


def test_the_commands_in_the_configs_are_those_of_the_script(monkeypatch):
    monkeypatch.chdir(FOLDER.parents[1])
    for stage in run.STAGES:
        text = (FOLDER / f"{stage}.toml").read_text(encoding="utf-8")
        written = config_of(["python", *re.search(r"^#   python (-m .*train .*)$", text, re.M)[1].split()])
        made = config_of(run.train_command(stage, "DIR", pathlib.Path("RUNS"), "vgg16"))
        assert (written.run, written.to_toml()) == (made.run, made.to_toml())
        assert read_config(FOLDER / f"{stage}.toml", Config()).image_size == made.image_size


def test_the_table_has_a_row_for_each_finished_stage(tmp_path):
    assert run.collect(tmp_path) == []
    (tmp_path / "120x160").mkdir()
    scores = {"miou": 0.5, "mean_accuracy": 0.625, "global_accuracy": 0.875, "num_steps": 1800, "seconds": 5400.0}
    result = scores | {"per_class": {"Sky": {"iou": 0.75, "accuracy": 0.8, "pixels": 9}}}
    (tmp_path / "120x160" / "result.json").write_text(json.dumps(result))
    rows = run.collect(tmp_path)
    assert rows == [{"name": "120x160", "iou": {"Sky": 0.75}} | scores]
    assert run.as_markdown(rows).splitlines()[2] == "| 120x160 | 1,800 | 1.5 | 50.0 | 62.5 | 87.5 |"


def test_the_test_split_is_not_scored_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "HERE", tmp_path)
    (tmp_path / run.TEST).write_text("{}")
    monkeypatch.setattr("sys.argv", ["run.py", "--runs", str(tmp_path), "--score-test"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2 and "the test split was scored already" in capsys.readouterr().err


def test_the_page_says_what_the_stages_scored():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    if (FOLDER / "stages.json").exists():
        assert run.as_markdown(json.loads((FOLDER / "stages.json").read_text())["rows"]) in page
    else:
        assert "No results yet." in page
