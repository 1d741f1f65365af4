"""Test the time budget of a run on an H200: its sums, and its page."""

import importlib.util
import json
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "time_budget"
spec = importlib.util.spec_from_file_location("time_budget", FOLDER / "measure.py")
time_budget = importlib.util.module_from_spec(spec)
spec.loader.exec_module(time_budget)

MEASURED = {
    "imports": 4.0,
    "opening the dataset": 1.0,
    "decoding, all cores": 16.0,
    "a checkpoint, training waits": 0.5,
    "a checkpoint, written beside training": 2.0,
    "boundary F1 of an image, one core": 0.16,
    "sample pictures": 1.0,
    "progress.png": 0.5,
    "report.html": 0.5,
}
PROGRAM = {"compile_seconds": 100.0, "limit": {"at_efficiencies": [{"images_per_second": rate} for rate in (400, 200)]}}


def test_a_hand_computed_budget():
    result = {"cores": 2, "train_images": 400, "val_images": 100, "measured": MEASURED}
    parts = time_budget.budget(result, {"train": PROGRAM, "evaluate": PROGRAM})
    seconds = {each["part"]: each["seconds"] for each in parts}
    assert seconds["steps of 100 epochs"] == [200, 100]
    assert seconds["11 evaluations"] == [5.5, 2.75]
    assert seconds["decoding"] == [2, 2]
    assert seconds["boundary F1 of the result"] == [1, 1]
    assert seconds["compiling, without a cache"] == [200, 200]
    # 4 + 1 + 2 + steps + evaluations + 11 * 0.5 + 1 + (2 + 1 + 0.5 + 0.5); compiling is not in the sum
    assert time_budget.total(parts) == pytest.approx([223.0, 120.2], abs=0.06)


def test_the_page_has_the_measured_table():
    result = json.loads((FOLDER / "budget.json").read_text())
    assert time_budget.as_markdown(result) in (FOLDER / "README.md").read_text()
    programs = json.loads(time_budget.PROGRAMS.read_text())["programs"]
    assert time_budget.budget(result, programs) == result["budget"]
