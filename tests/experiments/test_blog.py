"""Test the article's two figures and ours: hand-computed numbers, and no invalid comparison."""

import importlib.util
import json
import pathlib
import sys

import pytest

from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_config
from segnet_jax.data.camvid_frames import split_names
from segnet_jax.system.command import run_command

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "blog"
_SPEC = importlib.util.spec_from_file_location("blog_measure", FOLDER / "measure.py")
measure = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(measure)
TIMES = json.loads((FOLDER / "times.json").read_text(encoding="utf-8"))


def measured(device, batch=4, rate=50.0):
    train = {"images_per_second_with_input": rate, "ms_per_step_min": 1.0, "ms_per_step_max": 2.0}
    shape = {"image_size": [360, 480], "width": 1.0, "depth": 5}
    return {"device": device, "precision": "float16", "batch_size_per_device": batch, "train": train, **shape}


def test_the_time_of_100_epochs_is_that_worked_by_hand():
    """Compare with 105 full batches of 4 per epoch of 421 images on one device, and 13 of 8 x 4 on eight."""
    one = measure.row(1, measured("1 x V100", rate=50.0), 421, 100)
    eight = measure.row(8, measured("8 x V100", rate=320.0), 421, 100)
    assert (one["steps"], eight["steps"]) == (10_500, 1300)
    assert one["minutes"] == pytest.approx(42_000 / 50 / 60) and eight["minutes"] == pytest.approx(41_600 / 320 / 60)
    found = measure.result([one, eight], {}, comparable=True, how="")
    assert [each["speed_up"] for each in found["ours"]] == pytest.approx([1, 14 / (41_600 / 320 / 60)])
    assert measure.draw(found).startswith(b"\x89PNG")
    assert "| the article, V100 | 8 | 37 | 3.27 |" in measure.table(found)


def test_the_articles_training_is_of_its_421_frames():
    config = read_config(FOLDER / "config.toml", Config())
    assert len(split_names(config.split_rule)["train"]) == 421 and config.epochs == 100
    assert config.final_batch_norm and config.class_weights != "none" and config.result_checkpoint == "last"
    assert [(each["global_batch_size"], each["steps"]) for each in TIMES["ours"]] == [(4, 10_500), (8, 5200)]


def test_what_was_measured_on_a_cpu_says_that_it_does_not_compare():
    assert TIMES["ours"][0]["device"].endswith("x cpu") and TIMES["comparable"] is False
    assert TIMES["note"].startswith("NOT COMPARABLE") and "extrapolated" in TIMES["how"]
    assert TIMES["article"]["minutes"] == {"1": 121, "8": 37}
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert measure.table(TIMES) in page and "not comparable" in page.lower()
    assert (FOLDER / "times.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices", "0"], "--devices must be positive, got 0"),
        (["--out", "no/such/folder/times.json"], "there is no folder no/such/folder"),
    ],
)
def test_a_mistake_is_reported_in_one_line(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["measure.py", *flags])
    with pytest.raises(SystemExit) as left:
        run_command(measure.main)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and message in line


@pytest.mark.slow
def test_the_command_runs_from_end_to_end_and_reports_missing_devices(tmp_path, monkeypatch, capsys):
    out = tmp_path / "times.json"
    flags = ["--fake-devices", "2", "--devices", "1", "2", "--scaled-down", "--steps", "1", "--rounds", "1"]
    assert measure.main([*flags, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [each["devices"] for each in found["ours"]] == [1, 2] and found["comparable"] is False
    assert out.with_suffix(".png").is_file()
    monkeypatch.setattr(sys, "argv", ["measure.py", *flags[:2], "--devices", "3", "--out", str(out)])
    with pytest.raises(SystemExit) as left:
        run_command(measure.main)
    assert left.value.code == 2 and "3 devices requested, but only 2 found" in capsys.readouterr().err
