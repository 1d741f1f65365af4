"""Test that training ends after `--patience` evaluations without improvement, also when resumed."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
from test_train import digest_of, meta_of
from test_train import run as run_of_seed

from segnet_jax.config.fields import Config
from segnet_jax.config.files import protocol_names, read_protocol
from segnet_jax.runs.config_checks import check_selection
from segnet_jax.runs.session import is_finished, stops_early
from segnet_jax.system.errors import NoCheckpoint, Stopped, UserError
from segnet_jax.training import build_steps
from segnet_jax.training.checkpoint_content import check_meta

PATIENCE, EPOCHS = 2, 20


def run(*flags):
    return run_of_seed("--seed", 5, "--epochs", EPOCHS, "--patience", PATIENCE, *flags)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert run("--run", folder) == 0
    return folder


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_training_stops_after_the_first_evaluations_in_a_row_without_a_better_one(unbroken):
    scores = [row["miou"] for row in rows_of(unbroken) if row["kind"] == "val"]
    best = max(range(len(scores)), key=lambda index: (scores[index], -index))
    assert len(scores) == best + 1 + PATIENCE < EPOCHS
    for seen in range(1, len(scores)):  # not before
        first_best = max(range(seen), key=lambda index: (scores[index], -index))
        assert seen - 1 - first_best < PATIENCE
    steps = 3 * len(scores)
    assert max(row["step"] for row in rows_of(unbroken)) == steps
    found = result_of(unbroken)
    assert (found["num_steps"], found["stopped_early"], found["step"]) == (steps, True, 3 * (best + 1))
    assert found["miou"] == scores[best]
    assert (unbroken / "samples" / f"step_{steps:07}.png").exists()  # the last evaluation is drawn
    assert f"stopped early after step {steps}" in (unbroken / "report.html").read_text()


def test_a_finished_run_is_not_trained_further_unless_patience_is_overridden(unbroken, tmp_path, capsys):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    before, steps = (folder / "result.json").read_bytes(), result_of(folder)["num_steps"]
    assert run("--run", folder) == 0
    assert f"is finished: it stopped early, after step {steps}" in capsys.readouterr().err
    assert (folder / "result.json").read_bytes() == before
    with pytest.raises(UserError, match="patience 2 -> 0.*--override"):
        run("--run", folder, "--patience", 0)
    assert run("--run", folder, "--patience", 0, "--override", "--epochs", steps // 3 + 1) == 0
    found = result_of(folder)
    assert found["num_steps"] == steps + 3 and "stopped_early" not in found


@pytest.mark.parametrize(
    "back", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)]
)  # within the last epoch, at an evaluation, within the epoch before
def test_a_resumed_run_keeps_the_count_and_stops_at_the_same_step(unbroken, tmp_path, back):
    folder, steps = tmp_path / "run", result_of(unbroken)["num_steps"]
    assert run("--run", folder, "--max-steps", steps - back) == 0
    assert meta_of(folder)["evaluations_since_best"] == (PATIENCE - 1 if back < 4 else PATIENCE - 2)
    assert run("--run", folder) == 0
    assert digest_of(folder) == digest_of(unbroken)
    assert result_of(folder)["per_class"] == result_of(unbroken)["per_class"]
    assert meta_of(folder)["evaluations_since_best"] == meta_of(unbroken)["evaluations_since_best"] == PATIENCE


@pytest.mark.slow  # runs/test_resume.py does it without patience
def test_a_run_stopped_before_its_result_was_written_takes_no_further_step(unbroken, tmp_path, monkeypatch):
    folder, steps = tmp_path / "run", result_of(unbroken)["num_steps"]
    evaluator = build_steps.build_evaluator
    assert run("--run", folder, "--max-steps", steps - 1) == 0

    def stopped_at_the_second(*args, **settings):
        score, times = evaluator(*args, **settings), []

        def scored(*given, **named):
            times.append(1)
            if len(times) == 2:  # of the result
                os.kill(os.getpid(), signal.SIGTERM)
            return score(*given, **named)

        return scored

    with monkeypatch.context() as stopped:
        stopped.setattr(build_steps, "build_evaluator", stopped_at_the_second)
        with pytest.raises(Stopped, match=f"Step {steps} is saved"):
            run("--run", folder)
    assert not (folder / "result.json").exists()
    assert run("--run", folder) == 0
    assert digest_of(folder) == digest_of(unbroken)
    assert max(row["step"] for row in rows_of(folder)) == steps


def test_patience_begins_with_the_first_best_evaluation_and_0_is_off():
    setup = SimpleNamespace(config=SimpleNamespace(patience=2), total_steps=9)
    meta = {"last": {"step": 3}, "evaluations_since_best": 1}
    assert not stops_early(setup, meta) and not is_finished(setup, meta)
    meta["evaluations_since_best"] = 2
    assert stops_early(setup, meta) and is_finished(setup, meta)
    setup.config.patience = 0
    assert not stops_early(setup, meta) and not is_finished(setup, meta)
    assert is_finished(setup, meta | {"last": {"step": 9}})


def test_checkpoints_of_older_versions_begin_at_zero_and_an_invalid_count_is_refused(unbroken):
    meta = meta_of(unbroken)
    del meta["evaluations_since_best"]
    assert check_meta(meta, "it", True)["evaluations_since_best"] == 0
    for count in (-1, 1.5, "2", None):
        with pytest.raises(NoCheckpoint, match="evaluations_since_best is invalid"):
            check_meta(meta | {"evaluations_since_best": count}, "it", True)


def test_patience_is_off_by_default_and_in_every_protocol():
    assert Config().patience == 0
    assert {read_protocol(name, Config()).patience for name in protocol_names()} == {0}


def test_test_images_never_stop_a_training():
    with pytest.raises(UserError, match="no validation images for early stopping, got --patience 3"):
        check_selection(Config(split_rule="trainval", result_checkpoint="last", patience=3))
