"""Check experiments/evaluation: its table matches its numbers, and its cost is counted as described."""

import importlib.util
import json
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "evaluation"
SCORES = json.loads((FOLDER / "scores.json").read_text())


@pytest.fixture(scope="module")
def measure():
    spec = importlib.util.spec_from_file_location("measure_evaluation", FOLDER / "measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_has_the_table_of_the_scores(measure):
    assert measure.as_table(SCORES) in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_scores_state_their_origin_and_are_of_validation_images():
    assert {"command", "date", "machine", "commit", "versions"} <= SCORES.keys() and SCORES["split"] == "val"
    assert {row["num_images"] for row in SCORES["rows"]} == {101}
    assert sum(row["num_images"] for row in SCORES["folds"]["folds"].values()) == 367 + 101


def test_the_cost_is_the_number_of_pixels_that_the_networks_see():
    cost = {row["name"]: row["cost"] for row in SCORES["rows"]}
    scales = 0.75**2 + 1 + 1.25**2
    expected = {"plain": 1, "flip": 2, "3 scales": scales}
    assert cost == pytest.approx(expected | {"2 runs, plain": 2, "2 runs, flip": 4})
