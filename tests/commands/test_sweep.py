"""Test sweeps: the runs of a file, faults that stop only their run, resuming, and the table."""

import json
import subprocess
import sys

import pytest

from segnet_jax.sweep import run_all as module
from segnet_jax.sweep.plan import read_plan
from segnet_jax.sweep.run_all import markdown, rows_of, train_all
from segnet_jax.system.errors import Stopped, UserError

SMALL = """
[base]
data = "synthetic"
scenes = [8, 4]
image_size = [24, 32]
depth = 1
width = 0.0625
init = "none"
class_weights = "none"
epochs = 1
devices = "1"
"""
GRID = """
[grid]
learning_rate = [0.1, 0.05]
image_size = [[24, 32], [48, 64]]
"""
NAMED = """
[runs.ce]
[runs.dice]
loss = "ce + 0.5*dice"
"""


RESULT = {"miou": 0.5, "mean_accuracy": 0.6, "global_accuracy": 0.75, "step": 2, "seconds": 90.0}
RESULT |= {"split": "val", "num_images": 4, "per_class": {"Sky": {"iou": 0.5}}}


def plan_of(folder, text):
    file = folder / "losses.toml"
    file.write_text(text)
    return read_plan(str(file), str(folder / "out"))


def test_named_runs_and_every_combination_of_the_grid_are_runs_in_order(tmp_path):
    names = [f"{loss},learning_rate={rate}" for loss in ("ce", "dice") for rate in ("0.1", "0.05")]
    text = SMALL + NAMED + GRID.replace("image_size = [[24, 32], [48, 64]]\n", "")
    plan = plan_of(tmp_path, text)
    assert [run.name for run in plan.runs] == names
    last = plan.runs[-1]
    assert (last.config.loss, last.config.learning_rate, last.config.scenes) == ("ce + 0.5*dice", 0.05, (8, 4))
    assert last.folder == tmp_path / "out" / names[-1]
    grid = plan_of(tmp_path, SMALL.replace("image_size = [24, 32]\n", "") + GRID)
    assert grid.runs[1].name == "learning_rate=0.1,image_size=48x64" and grid.runs[1].config.image_size == (48, 64)


@pytest.mark.parametrize(
    "text, message",
    [
        (SMALL, "describes no runs in"),
        ("[bas]\n[grid]\nseed = [1]\n", "unknown table 'bas' in .*nearest: base"),
        (SMALL + "[grid]\nsede = [1]\n", "unknown setting 'sede' in .*nearest: seed"),
        (SMALL + "[grid]\nseed = 1\n", r"seed in \[grid\] of .* must be a list"),
        (SMALL + "[grid]\nseed = []\n", r"seed in \[grid\] of .* must be a list"),
        (SMALL + "[runs]\nseed = 1\n", r"must contain tables \[runs.NAME\], got 'seed'"),
        (SMALL + '[runs."../x"]\nseed = 1\n', r"must contain tables \[runs.NAME\], got '../x'"),
        (SMALL + '[runs.".."]\nseed = 1\n', r"must contain tables \[runs.NAME\], got '..'"),
        (SMALL + '[runs."."]\nseed = 1\n', r"must contain tables \[runs.NAME\], got '.'"),
        (SMALL + '[grid]\nnetwork = ["mine:Net"]\n', "network 'mine:Net' is custom code, .* named on a command line"),
        (SMALL + '[grid]\naugment = ["mine:f"]\n', "augment 'mine:f' is custom code, .* named on a command line"),
        (SMALL + 'lr_mult = ["--network=mine:Net"]\n[grid]\nseed = [1]\n', "lr_mult in .* must not begin with -"),
        (SMALL + 'lr_mult = {"--network=mine:N" = 1}\n[grid]\nseed = [1]\n', "lr_mult in .* must not begin with -"),
        (SMALL + '[grid]\nlogger = [["wandb"]]\n', "logger in .* applies to a single start"),
        (SMALL + "folds = 3\n[grid]\nseed = [1]\n", "folds without fold trains several runs: add fold"),
        (SMALL + "[grid]\nseed = [1, 1]\n", "contains a run twice"),
        (
            SMALL.replace("synthetic", "s3://b/x") + "[grid]\nseed = [1]\n",
            "data in .* is the address s3://b/x, but addresses",
        ),
        (SMALL + '[grid]\ninit = ["hf://a/b"]\n', "init in .* is the address hf://a/b, but addresses"),
        (SMALL + '[grid]\nloss = ["dise"]\noptimizer = ["adm"]\n', "run .* of .*must be one of .*nearest: adamw"),
        (SMALL + "[grid]\nlearning_rate = [0.1, 99]\n", "run learning_rate=99 of .*--learning-rate must be between"),
        (SMALL + '[grid]\nrun = ["a"]\n', "run in .* applies to a single start"),
        (SMALL + '[grid]\nown = [["loss=os.system"]]\n', "own in .* applies to a single start"),
        (SMALL + "[grid]\nseed = [1]\n[runs.a]\nseed = 2\n", r"seed is both in \[grid\] and in \[runs.a\]"),
        (SMALL + "[grid]\nseed = [1", "is not a valid TOML file"),
        (SMALL + "[grid]\n" + "".join(f"{k} = {list(range(1, 40))}\n" for k in ("seed", "epochs")), "1521 runs"),
    ],
)
def test_a_wrong_file_is_answered_before_anything_is_trained(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        plan_of(tmp_path, text)


@pytest.mark.parametrize(
    "line", ['network = "mine:Net"', 'augment = "mine:f"', "max_steps = 3", "folds = 2", 'init = "gs://bucket/x"']
)
def test_a_config_file_that_a_sweep_names_may_do_no_more_than_the_sweep(tmp_path, line):
    (tmp_path / "c.toml").write_text(line)
    with pytest.raises(
        UserError, match=f"{line.split()[0]}.*(single start|may only be|custom code|command line|several runs)"
    ):
        plan_of(
            tmp_path, SMALL.replace('init = "none"', "") + f'config = "{tmp_path / "c.toml"}"\n[grid]\nseed = [1]\n'
        )


def test_every_fold_may_be_a_run_of_the_grid(tmp_path):
    plan = plan_of(tmp_path, SMALL + "folds = 2\n[grid]\nfold = [1, 2]\n")
    assert [(run.config.folds, run.config.fold) for run in plan.runs] == [(2, 1), (2, 2)]


def test_an_address_of_the_command_line_is_for_every_run(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text(SMALL + "[grid]\nseed = [1, 2]\n")
    given = {"data": "", "init": "hf://someone/street"}
    plan = read_plan(str(file), "", given)
    assert [run.config.init for run in plan.runs] == ["hf://someone/street"] * 2
    assert all("--init hf://someone/street" in " ".join(run.words) for run in plan.runs)
    assert plan.runs[0].config.data == "synthetic"
    with pytest.raises(UserError, match="--seed is for every run, but .* varies seed"):
        read_plan(str(file), "", {"seed": "3"})


def test_names_of_runs_fit_into_a_file_name_in_any_language(tmp_path):
    name = "\u00e4" * 90
    plan = plan_of(
        tmp_path, SMALL + f'[runs]\n"{name}" = {{init = "{"x" * 50}"}}\n[grid]\nloss = ["{"ce + " * 30}ce"]\n'
    )
    assert len(plan.runs[0].name.encode()) <= 200 and plan.runs[0].name.startswith(name)


def test_a_linked_run_folder_is_refused_and_its_target_left_alone(tmp_path, trained):
    plan = plan_of(tmp_path, SMALL + NAMED)
    mine = tmp_path / "mine"
    (tmp_path / "out").mkdir()
    mine.mkdir()
    (mine / "config.toml").write_text(plan.runs[1].config.to_toml())
    (mine / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "out" / "dice").symlink_to(mine)
    assert [row["status"] for row in rows_of(plan, {})] == ["waiting", "unfinished"]  # and not its result
    with pytest.raises(UserError, match="out/dice is a link"):
        train_all(plan)
    assert trained[0] == [] and sorted(path.name for path in mine.iterdir()) == ["config.toml", "result.json"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.toml is not a file: pass the TOML file"):
        read_plan(str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match="no home folder is known"):
        read_plan("~no-such-user/a.toml")


@pytest.fixture
def trained(monkeypatch):
    """Replace training by writing a config and a result, or failing with the exit code in the run's name."""
    seen, codes = [], {}

    def train(run, stop):
        seen.append(run.name)
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "config.toml").write_text(run.config.to_toml())
        if not codes.get(run.name):
            (run.folder / "result.json").write_text(json.dumps(RESULT))
        return codes.get(run.name, 0)

    monkeypatch.setattr(module, "_train", train)
    return seen, codes


def test_a_failed_run_does_not_stop_the_others_and_the_same_command_trains_only_it(tmp_path, trained, capsys):
    plan, (seen, codes) = plan_of(tmp_path, SMALL + NAMED + "[runs.last]\nseed = 3\n"), trained
    codes["dice"] = 7
    assert train_all(plan) == 7 and seen == ["ce", "dice", "last"]
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]
    assert [row["status"] for row in rows] == ["finished", "failed, exit code 7", "finished"]
    assert "2 of 3 runs finished" in capsys.readouterr().out
    seen.clear()
    codes.clear()
    assert train_all(plan) == 0 and seen == ["dice"]
    text = (tmp_path / "out" / "sweep.md").read_text()
    assert "| dice | ce + 0.5*dice | 0 | finished | val | 50.0 % | 60.0 % | 75.0 % | 2 | 1.5 |" in text


def test_a_changed_file_trains_a_finished_run_again_which_train_then_refuses(tmp_path, trained):
    train_all(plan_of(tmp_path, SMALL + NAMED))
    trained[0].clear()
    changed = plan_of(tmp_path, SMALL.replace("epochs = 1", "epochs = 2") + NAMED)
    assert [row["status"] for row in rows_of(changed, {})] == ["unfinished", "unfinished"]


def test_a_signal_stops_after_the_run_that_is_training(tmp_path, trained, monkeypatch):
    plan = plan_of(tmp_path, SMALL + NAMED)
    train = module._train

    def train_and_stop(run, stop):
        stop.exit_code = 143
        return train(run, stop)

    monkeypatch.setattr(module, "_train", train_and_stop)
    with pytest.raises(Stopped, match="stopped with 1 of 2 runs finished"):
        train_all(plan)


def test_a_damaged_result_is_trained_again_and_never_counted(tmp_path, trained, monkeypatch, capsys, caplog):
    plan = plan_of(tmp_path, SMALL + NAMED)
    assert train_all(plan) == 0
    damaged = tmp_path / "out" / "ce" / "result.json"
    damaged.write_text('{"miou": "x"}')
    assert [row["status"] for row in rows_of(plan, {})] == ["unfinished", "finished"]
    train = module._train
    monkeypatch.setattr(module, "_train", lambda run, stop: 0)  # it leaves the result as it is
    assert train_all(plan) == 1 and "1 of 2 runs finished" in capsys.readouterr().out
    assert "result.json is damaged (it has no" in caplog.text and "the run is resumed now" in caplog.text
    monkeypatch.setattr(module, "_train", train)
    assert train_all(plan) == 0 and json.loads(damaged.read_text()) == RESULT


def test_scores_of_test_images_are_named_and_warned_of_once(tmp_path, trained, monkeypatch, caplog):
    plan = plan_of(tmp_path, SMALL + NAMED)
    train_all(plan)
    assert "test images" not in caplog.text
    for run in plan.runs:
        (run.folder / "result.json").write_text(json.dumps(RESULT | {"split": "test"}))
    assert train_all(plan) == 0 and caplog.text.count("are of the test images") == 1
    assert "| finished | test | 50.0 % |" in (tmp_path / "out" / "sweep.md").read_text()


def test_a_vertical_line_in_a_value_does_not_break_the_table():
    assert markdown([{"run": "a|b", "miou": None, "seconds": 60.0}]).splitlines()[2] == "| a\\|b |  | 1.0 |"


@pytest.mark.slow  # the stand-ins above
def test_three_real_runs_of_which_one_fails(tmp_path):
    text = SMALL + "[runs.a]\n[runs.bad]\nbatch_size_per_device = 100\n[runs.c]\nseed = 1\n"
    file = tmp_path / "three.toml"
    file.write_text(text)
    command = [sys.executable, "-m", "segnet_jax.sweep", str(file), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 2, done.stderr
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]
    assert [row["status"] for row in rows] == ["finished", "failed, exit code 2", "finished"]
    assert rows[0]["miou"] == json.loads((tmp_path / "out" / "a" / "result.json").read_text())["miou"]
