"""Test experiments/ablation: every config loads, and the scores are compared."""

import importlib.util
import json
import pathlib
import tomllib

import numpy as np
import pytest

from segnet_jax.config.differences import differences
from segnet_jax.config.fields import Config
from segnet_jax.config.files import override, read_config, read_protocol
from segnet_jax.runs.config_checks import check_network
from segnet_jax.training.build_model import build_model

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "ablation"
STUDIES = sorted((ROOT / "experiments").glob("*/study.toml"))
STRONG_PARTS = {"scale", "color", "ema_decay"}
LENGTH = {"epochs", "image_size", "shift"}


def load_study():
    spec = importlib.util.spec_from_file_location("study", ROOT / "experiments" / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


study = load_study()
ablation = study.Study(FOLDER / "study.toml")
TABLES = [(each, name) for each in map(study.Study, STUDIES) for name in each.tables]


def config_of(variant, seed=0):
    protocol, text = ablation.settings(variant, seed)
    base = read_protocol(protocol, Config()) if protocol else Config()
    return override(base, tomllib.loads(text), source=variant)


def test_all_runs_have_the_same_size_and_their_tables_length_and_select_nothing():
    for variant in ablation.variants:
        config = config_of(variant, seed=2)
        check_network(config)
        size, epochs = ((60, 80), 300) if variant.startswith("longer-") else ((120, 160), 30)
        assert (config.image_size, config.width, config.epochs, config.init) == (size, 0.25, epochs, "none")
        assert (config.result_checkpoint, config.seed) == ("last", 2)


@pytest.mark.parametrize(
    "one, other, changed",
    [
        ("base", "bilinear", {"upsampling"}),
        ("base", "learnt", {"upsampling"}),
        ("base", "weights-caffe", {"class_weights"}),
        ("base", "weights-auto-present", {"class_weights"}),
        ("schedule", "plain", {"class_weights"}),
        ("plain", "base", {"flip", "shift"}),
        ("longer-plain", "longer-base", {"flip", "shift"}),
        ("longer-base", "longer-strong", STRONG_PARTS),
        ("strong", "longer-strong", LENGTH),
        ("base", "slow-average", {"batch_norm_momentum"}),
        ("base", "scale", {"scale"}),
        ("base", "strong", STRONG_PARTS),
    ],
)
def test_two_runs_differ_only_in_what_their_rows_say(one, other, changed):
    assert differences(config_of(one), config_of(other)).keys() == changed


def test_the_strong_training_has_the_protocols_parts():
    protocol, ours = read_protocol("camvid-strong", Config()), config_of("strong")
    recipe = ("learning_rate", "schedule", "class_weights", "flip", "batch_size_per_device", "batch_norm")
    for field in (*STRONG_PARTS, *recipe):
        assert getattr(protocol, field) == getattr(ours, field), field


def test_tables_compare_known_runs():
    for each, name in TABLES:
        assert {row["variant"] for row in each.tables[name]["rows"]} <= each.variants.keys()
        assert (ROOT / "experiments" / each.tables[name]["folder"]).is_dir()


@pytest.mark.parametrize("name", ["bilinear", "learnt", "encoder_addition", "single_channel_decoder"])
def test_the_papers_variants_are_configs_over_its_protocol(name):
    config = read_config(FOLDER / f"{name}.toml", read_protocol("paper-2017-basic", Config()))
    check_network(config)
    assert len(differences(read_protocol("paper-2017-basic", Config()), config)) == 1
    assert type(build_model(config, 11, "float32")).__name__ == "SegNetBasic"


def keep(folder, name, **mious):
    protocol, config = ablation.settings(name[:-2], int(name[-1]))
    scores = {rule: {"miou": miou, "mean_accuracy": miou + 0.1, "global_accuracy": 0.8} for rule, miou in mious.items()}
    (folder / f"{name}.json").write_text(json.dumps({"protocol": protocol, "config": config, "scores": scores}))


def test_scores_are_collected_by_seed_and_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(study.Study, "kept", tmp_path)
    keep(tmp_path, "base-0", running=0.40, recompute=0.41)
    keep(tmp_path, "base-2", running=0.44, recompute=0.43)
    keep(tmp_path, "tutorial-0", running=0.10, recompute=0.20)
    base, _, recomputed, *_, tutorial, _, _, _ = ablation.collect(ablation.tables["batch_norm"])
    assert base["seeds"] == [0, 2] and base["miou"] == [0.40, 0.44]
    assert recomputed["miou"] == [0.41, 0.43] and tutorial["miou"] == [0.10]
    rows = study.as_markdown([base, tutorial]).splitlines()
    assert rows[2] == "| our recipe, running average 0.9 | 2 | 42.0 | 40.0, 44.0 | 52.0 | 80.0 |"
    study.draw_scores("Whose?", [base, tutorial], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_every_training_of_a_study_is_a_valid_config():
    for each in map(study.Study, STUDIES):
        for variant in each.variants:
            protocol, text = each.settings(variant, seed=1)
            base = read_protocol(protocol, Config()) if protocol else Config()
            check_network(override(base, tomllib.loads(text), source=variant))


def test_scores_of_another_study_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(study.Study, "kept", tmp_path)
    keep(tmp_path, "base-0", running=0.40)
    monkeypatch.setitem(ablation.content["small"], "width", 1.0)
    with pytest.raises(SystemExit, match="base-0.json was made with another study.toml"):
        ablation.collect(ablation.tables["upsampling"])


def test_the_fit_is_the_mean_over_the_last_epoch(tmp_path):
    rows = [{"kind": "train", "epoch": step / 2, "accuracy": step / 10} for step in (1, 2, 3, 4)]
    rows += [{"kind": "val", "loss": 0.5}, {"kind": "val", "loss": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert study.read_fit(tmp_path / "metrics.jsonl") == {
        "training_accuracy": pytest.approx(0.35),
        "validation_loss": 0.25,
    }


@pytest.mark.parametrize("each, name", TABLES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_table_in_the_experiments_readme_is_that_of_its_scores(each, name):
    table = each.tables[name]
    folder = ROOT / "experiments" / table["folder"]
    page = (folder / "README.md").read_text(encoding="utf-8")
    if not (folder / f"{name}.json").exists():  # not trained yet, and the page says so
        assert not each.collect(table)[0]["seeds"]
        assert f"<!-- {name} -->\nNo results yet.\n<!-- / -->" in page
        return
    found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert {"command", "machine", "date"} <= found.keys() and found["question"] == table["question"]
    assert [row["name"] for row in found["rows"]] == [row["name"] for row in table["rows"]]
    assert all(0 < score < 1 for row in found["rows"] for score in np.ravel(row["miou"]))
    assert study.as_markdown(found["rows"]) in page
