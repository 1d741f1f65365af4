"""Check the published numbers: every config loads, and the README matches the result files."""

import json
import pathlib
import re

import pytest

from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_config

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = sorted(path.parent.name for path in ROOT.glob("experiments/*/result.json"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_there_are_published_numbers():
    assert EXPERIMENTS


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*/config.toml")), ids=lambda path: path.parent.name)
def test_every_config_loads(path):
    assert read_config(path, Config()) != Config()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_readme_row_of_an_experiment_says_what_its_result_says(name):
    result = json.loads((ROOT / "experiments" / name / "result.json").read_text())
    row = re.search(rf"^\| \[{name}\]\(experiments/{name}/?\) \|(.*)\|$", README, re.MULTILINE)
    assert row, f"README has no row for experiments/{name}"
    cells = [cell.strip() for cell in row[1].split("|")]
    expected = [f"{100 * result[key]:.1f}" for key in ("global_accuracy", "mean_accuracy", "miou")]
    assert cells[1:4] == expected
    assert f"{result['num_images']} {result['split']}" in cells[0]
    assert cells[4] == f"{result['num_steps']}"
    assert cells[5] == f"{result['seconds'] / 60:.1f} min"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_result_states_its_origin(name):
    result = json.loads((ROOT / "experiments" / name / "result.json").read_text())
    assert {"command", "date", "machine", "commit", "versions", "seed", "device", "per_class"} <= result.keys()
    assert "/" not in result["machine"]
    for picture in ("progress.png", "predictions.png"):
        assert (ROOT / "experiments" / name / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["network", "pooling", "input"])
@pytest.mark.parametrize("page", ["README.md", "experiments/peers/README.md"])
def test_the_speeds_beside_pytorch_are_those_of_the_measurements(name, page):
    rows = (ROOT / page).read_text(encoding="utf-8")
    for found in json.loads((ROOT / "experiments" / "peers" / f"{name}.json").read_text())["comparisons"]:
        ours, peers = found["sides"]["ours"], {side: row for side, row in found["sides"].items() if side != "ours"}
        fastest = min(peers, key=lambda side: peers[side]["ms_per_step"])
        speeds = [f"{side['ms_per_step']:,.4g}" for side in (ours, peers[fastest])]
        cells = [found["what"], fastest, *speeds, f"{found['ours_over_fastest']:.2f}"]
        assert f"| {' | '.join(cells)} |" in rows


def test_the_scores_with_half_gradients_are_those_of_the_measurement():
    folder = ROOT / "experiments" / "half_gradients"
    found, page = json.loads((folder / "scores.json").read_text()), (folder / "README.md").read_text(encoding="utf-8")
    for wire, scores in found["miou"].items():
        each = ", ".join(f"{100 * score:.1f}" for score in scores)
        assert f"| {wire} | {each} | {100 * found['mean_miou'][wire]:.1f} |" in page


def test_the_kills_are_those_of_the_soak_and_no_run_differs():
    folder = ROOT / "experiments" / "reliability"
    found, page = json.loads((folder / "kills.json").read_text()), (folder / "README.md").read_text(encoding="utf-8")
    assert found["kills"] == sum(found["kills_by_phase"].values()) == sum(run["kills"] for run in found["each_run"])
    assert not any(run["differences"] for run in found["each_run"])
    counts = sorted(found["kills_by_phase"].values(), reverse=True)
    assert f"| {' | '.join(map(str, (found['kills'], *counts)))} |" in page
    assert f"{found['runs_equal_to_the_unbroken_one']} of {found['runs']} runs ended as the unbroken one" in page
    assert (
        f"{found['most_steps_taken_again']} steps at most" in page
        and f"{found['mean_steps_taken_again']} in the" in page
    )
