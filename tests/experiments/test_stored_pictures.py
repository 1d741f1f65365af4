"""Test that the current version draws the stored pictures of the demo from the same run."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "demo"
MOST = 150  # pixels that may differ, as other library versions rasterize differently


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw_demo", FOLDER / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(draw, tmp_path_factory):
    return draw.unpack(tmp_path_factory.mktemp("demo"))


def num_differing(one, other):
    """Return the number of pixels that differ visibly, or all if the sizes differ."""
    one, other = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (one, other))
    if one.shape != other.shape:
        return one[..., 0].size
    return int((np.abs(one - other).max(axis=-1) > 40).sum())


def test_the_curves_are_drawn_by_the_present_version(draw, run, tmp_path):
    draw.draw_progress(run, tmp_path / "drawn.png")
    assert num_differing(tmp_path / "drawn.png", FOLDER / "progress.png") <= MOST
    draw.draw_progress(run, tmp_path / "other.png", title="demo-2: SegNet on rendered scenes")
    assert num_differing(tmp_path / "other.png", FOLDER / "progress.png") > MOST  # a changed word is seen


def test_the_predictions_are_drawn_by_the_present_version(draw, run, tmp_path):
    draw.draw_predictions(run, tmp_path / "drawn.png")
    assert num_differing(tmp_path / "drawn.png", FOLDER / "predictions.png") <= MOST


def test_the_report_is_drawn_by_the_present_version(draw, run, tmp_path):
    if draw.CHROMIUM is None:
        pytest.skip("no Chromium")
    draw.draw_report(run, tmp_path / "drawn.png")
    pictures = [Image.open(path).convert("L") for path in (tmp_path / "drawn.png", FOLDER / "report.png")]
    assert pictures[0].size == pictures[1].size
    small = [np.asarray(picture.resize((50, 70), Image.Resampling.BOX)).astype(int) for picture in pictures]
    assert np.abs(small[0] - small[1]).mean() < 8  # fonts differ between machines


def test_the_pictures_are_of_the_run_that_the_result_is_of():
    stored, of_run = (json.loads((FOLDER / name).read_text()) for name in ("result.json", "run/result.json"))
    assert stored == {name: stored[name] for name in ("command", "machine", "date")} | of_run
