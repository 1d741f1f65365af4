"""Test losses, optimizers and schedules in whole runs: resumed bit for bit, logged, and refused if invalid."""

import json

import jax
import numpy as np
import pytest
from test_train import digest_of, meta_of, restored, run

from segnet_jax import api
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.runs import find_lr
from segnet_jax.runs.find_lr import NUM_STEPS, Range, range_test, suggest
from segnet_jax.system.errors import UserError
from segnet_jax.train import train

RECIPES = {
    "lion": "--optimizer lion --learning-rate 0.003 --schedule plateau --plateau-patience 0 --step-factor 0.5 "
    "--clip-gradients 0.5 --lr-mult encoder=0.5 bias=2 --epochs 4 --loss ce(smoothing=0.1)+0.5*dice",
    "adafactor": "--optimizer adafactor --schedule one-cycle --loss focal+lovasz --ema-decay 0.9 --epochs 3",
    "nesterov": "--nesterov --schedule plateau --warmup-epochs 1 --loss ohem+tversky --grad-accum-steps 2 --epochs 5",
    "adamw": "--optimizer adamw --learning-rate 0.003 --schedule one-cycle --clip-gradients 1 --epochs 3",
}


@pytest.fixture(autouse=True)
def optax_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def train_rows(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "train"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in RECIPES])
def test_a_run_stopped_within_an_epoch_resumes_bit_for_bit(name, tmp_path):
    flags = RECIPES[name].split()
    assert run("--run", tmp_path / "unbroken", *flags) == 0
    assert run("--run", tmp_path / "stopped", *flags, "--max-steps", 5) == 0
    assert run("--run", tmp_path / "stopped", *flags) == 0
    assert digest_of(tmp_path / "stopped") == digest_of(tmp_path / "unbroken")
    rows = [
        [(row["step"], row["loss"], row["learning_rate"]) for row in train_rows(tmp_path / folder)]
        for folder in ("unbroken", "stopped")
    ]
    assert rows[0] == rows[1] and np.isfinite([row[1] for row in rows[0]]).all()
    if name == "lion":
        assert {row[2] for row in rows[0]} <= {np.float32(0.003 * 0.5**n) for n in range(4)}


@pytest.mark.slow
def test_a_plateau_is_logged_and_cannot_be_added_to_a_run_or_left_out(tmp_path):
    flags = ("--schedule", "plateau", "--plateau-patience", 0, "--learning-rate", 1e-12, "--epochs", 3)
    assert run("--run", tmp_path / "run", *flags) == 0  # nothing is learnt: after epoch 2 the rate drops
    rates = [row["learning_rate"] for row in train_rows(tmp_path / "run")]
    epochs = np.array([row["loss"] for row in train_rows(tmp_path / "run")]).reshape(3, 3).mean(1)
    drops = np.cumsum([False, *(epochs[i] >= np.min(epochs[:i]) * (1 - 1e-4) for i in (1, 2))])[[0, 0, 1]]
    np.testing.assert_allclose(rates, np.repeat(1e-12 * 0.1**drops, 3), rtol=1e-5)
    with pytest.raises(UserError, match="schedule plateau -> constant; omit these flags, or start a new"):
        run("--run", tmp_path / "run", "--learning-rate", 1e-12, "--epochs", 3, "--plateau-patience", 0, "--override")


@pytest.mark.slow  # config/test_given_class_weights.py reads them
def test_own_class_weights_are_stored_with_the_run_and_change_the_loss(tmp_path):
    for name, weights in (("by-name", ["sky=0", "car=4"]), ("rule", ["none"])):
        assert run("--run", tmp_path / name, "--epochs", 1, "--class-weights", *weights) == 0
    stored = meta_of(tmp_path / "by-name")
    classes = dict(zip(stored["classes"], stored["class_weights"], strict=True))
    assert {name: weight for name, weight in classes.items() if weight != 1} == {
        name: {"sky": 0.0, "car": 4.0}[name.lower()] for name in classes if name.lower() in ("sky", "car")
    }
    assert train_rows(tmp_path / "by-name")[0]["loss"] != train_rows(tmp_path / "rule")[0]["loss"]
    assert 'class_weights = "sky=0 car=4"' in (tmp_path / "by-name" / "config.toml").read_text()


@pytest.mark.slow  # the curve and its end are tested below
def test_a_range_test_draws_the_loss_and_creates_no_run(tmp_path, logged):
    assert run("--run", tmp_path / "range", "--find-lr", "--steps-per-dispatch", 3, "--input", "device") == 0
    assert sorted(path.name for path in (tmp_path / "range").iterdir()) == ["find_lr.json", "find_lr.png"]
    assert (tmp_path / "range" / "find_lr.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((tmp_path / "range" / "find_lr.json").read_text())
    assert 20 < len(found["rates"]) == len(found["losses"]) <= NUM_STEPS and np.all(np.diff(found["rates"]) > 0)
    assert 1e-5 < found["steepest"] <= found["lowest"] < 10
    assert any("suggestion: --learning-rate" in line for line in logged)


def test_the_suggestion_is_where_a_known_curve_falls_fastest():
    rates = np.logspace(-6, 1, 100)
    losses = 2 - np.tanh(np.log10(rates) + 3) + np.where(rates > 0.1, (np.log10(rates) + 1) ** 2, 0)
    found = suggest(Range(rates, losses, losses))
    assert found.steepest == pytest.approx(1e-3, rel=0.2) and 0.05 < found.lowest < 0.5
    assert suggest(Range(rates, rates, rates)).steepest is None
    with pytest.raises(UserError, match="not finite even in the first steps"):
        suggest(Range(rates[:1], rates[:1], rates[:1]))


@pytest.mark.parametrize("last", [(np.nan, False), (100.0, True)])
def test_a_range_test_ends_where_the_loss_diverges(last):
    losses = [(np.inf, True), *[(3.0 - 0.1 * step, True) for step in range(10)], last, *[(100.0, True)] * 50]

    def step(number, _):
        loss, finite = losses[number]
        return number + 1, {"loss": [loss], "finite": [finite], "learning_rate": [10.0**number]}

    found = range_test(step, range(len(losses)), 0)
    assert len(found.losses) in ((10,) if np.isnan(last[0]) else range(11, 14))  # the first was skipped
    np.testing.assert_allclose(found.smoothed[:2], [3.0, (3.0 * 0.09 + 2.9 * 0.1) / 0.19])


def test_a_range_test_resumes_nothing_and_runs_in_one_process(tmp_path):
    with pytest.raises(UserError, match="--find-lr starts from the initial weights"):
        find_lr.find_lr(Config(find_lr=True, resume=True, run=str(tmp_path)))
    with pytest.raises(UserError, match="--find-lr runs in one process, got --coordinator"):
        find_lr.find_lr(Config(find_lr=True, coordinator="a:1", process_id=0, num_processes=2))
    with pytest.raises(UserError, match="find_lr works only on the command line"):
        api.train(find_lr=True, data="synthetic")


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--optimizer", "lyon"], ["got lyon", "nearest: lion"]),
        (["--optimizer", "adafactr"], ["nearest: adafactor"]),
        (["--schedule", "one_cycle"], ["nearest: one-cycle"]),
        (["--output", "sigmoidal"], ["nearest: sigmoid"]),
        (["--class-weights", "matlap"], ["got 'matlap'", "nearest: matlab"]),
        (["--lr-mult", "encoders=2"], ["nearest: encoder"]),
        (["--clip-gradients", "-1"], ["--clip-gradients must be between 0"]),
        (["--plateau-patience", "-1"], ["--plateau-patience must be between 0"]),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(flags, parts):
    with pytest.raises(UserError) as error:
        train(parse_config(flags, prog="segnet_jax.train", description=""))
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


def test_the_state_of_a_plateau_is_in_the_checkpoint(tmp_path):
    flags = ("--schedule", "plateau", "--epochs", 2, "--max-steps", 2)
    assert run("--run", tmp_path / "run", *flags) == 0
    leaves = jax.tree_util.tree_leaves_with_path(restored(tmp_path / "run")["opt_state"])
    plateau = {
        str(path[-1]): np.asarray(leaf) for path, leaf in leaves if "num_bad" in str(path) or "total" in str(path)
    }
    assert len(plateau) == 2 and any(each.dtype == np.float32 and each > 0 for each in plateau.values())
