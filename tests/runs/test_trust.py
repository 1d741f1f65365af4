"""Check that a run folder is untrusted: its links are not followed, and nothing in it is read without a size limit."""

import ast
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import socket

import numpy as np
import pytest
from made_runs import CONFIG, make_run

import segnet_jax
from segnet_jax import evaluate, export, predict, report
from segnet_jax.benchmarks.portability.steps import StepConstants
from segnet_jax.config import files
from segnet_jax.config.fields import Config, on_resume
from segnet_jax.config.flags import parse_config
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.reporting import evaluations, figures
from segnet_jax.reporting.metrics_log import MetricsLog, read_metrics
from segnet_jax.reporting.page.render import write_report
from segnet_jax.runs import find_run, outcome, run_folder
from segnet_jax.runs.outcome import check_never_saved
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import NoCheckpoint, UserError
from segnet_jax.system.files import atomic_write_json
from segnet_jax.system.lock import RunLock
from segnet_jax.training import batch_norm_statistics, experiment_check
from segnet_jax.training.checkpoint_folders import CheckpointFolders
from segnet_jax.training.manifest import Damaged, read_manifest, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a run with every kind of file that training writes."""
    folder = make_run(tmp_path_factory.mktemp("made") / "run")
    (folder / "lock").touch()
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    for name in ("samples", "evaluations", "incident", "export"):
        (folder / name).mkdir()
    (folder / "evaluations" / "records.json").write_text("{}")
    for name in ("environment", "outcome", "data"):
        (folder / f"{name}.json").write_text("{}")
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def victim(tmp_path):
    """Yield a folder outside the run with files named like those that commands clean up; check that none changes."""
    folder = tmp_path / "victim"
    for name in (
        ".hidden/kept.txt",
        ".x.1.tmp",
        "newest/.git/kept.txt",
        "images_0000001.npz",
        "kept.txt",
        "1/kept.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("kept")

    def look():
        return {path.relative_to(folder).as_posix(): path.is_dir() or path.read_text() for path in folder.rglob("*")}

    before = look()
    yield folder
    assert look() == before


def replace(path, make):
    """Replace a path by something else."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)
        made.bind(path.name)
        os.chdir(here)


COMMANDS = {
    "evaluate": lambda run: evaluate.evaluate(evaluate.EvaluateOptions(str(run))),
    "predict": lambda run: predict.predict(predict.PredictOptions(str(run), ("data/sample/val/val_00000.png",))),
    "export": lambda run: export.export(export.ExportOptions(str(run))),
    "report": lambda run: report.report(report.ReportOptions((str(run),))),
    "resume": lambda run: parse_config(["--run", str(run), "--resume"], prog="segnet_jax.train", description=""),
}
PLACES = [
    *("config.toml", "lock", "metrics.jsonl", "environment.json", "outcome.json", "overrides.json", "data.json"),
    *("samples", "evaluations", "incident", "export", "checkpoints", "checkpoints/newest", "checkpoints/x"),
    *("evaluations/records.json", "evaluations/step_0000001.json", "samples/latest.png", "export/export.json"),
    *("checkpoints/last.json", "checkpoints/newest/8/manifest.json", "checkpoints/newest/8/state", "anything"),
]


@pytest.mark.parametrize("place", PLACES)
def test_a_link_anywhere_in_a_run_is_named_and_refused_by_every_command(run, victim, place):
    replace(run / place, lambda path: path.symlink_to(victim if "." not in path.name else victim / "kept.txt"))
    for command in COMMANDS.values():
        with pytest.raises(UserError, match=f"{place} is a link"):
            command(run)


@pytest.mark.parametrize("name, make", [("pipe", os.mkfifo), ("socket", a_socket), ("folder", os.mkdir)])
def test_a_config_that_is_not_a_file_is_refused_without_waiting(run, name, make):
    replace(run / "config.toml", make)
    for command in COMMANDS.values():
        with pytest.raises(UserError, match=f"config.toml is a {name}"):
            command(run)


@pytest.mark.parametrize(
    "name", ["lock", "metrics.jsonl", "evaluations/records.json", "checkpoints/newest/8/meta.json"]
)
def test_a_pipe_in_a_run_is_refused_and_not_waited_for(run, name):
    replace(run / name, os.mkfifo)
    for command in COMMANDS.values():
        with pytest.raises(UserError, match="is a pipe"):
            command(run)


def test_the_folder_that_the_user_names_may_be_a_link(run, tmp_path):
    (tmp_path / "latest").symlink_to(run)
    assert files.read_run(tmp_path / "latest") == CONFIG
    assert report.report(report.ReportOptions((str(tmp_path / "latest"),))) == 0
    assert (run / "report.html").is_file()


# --- each writer alone, without an earlier check of the run ---


def test_cleanup_and_pruning_remove_nothing_behind_a_link(run, victim):
    for place in ("checkpoints/x", "checkpoints/statistics", "y"):
        (run / place).symlink_to(victim)
    replace(run / "checkpoints" / "best", lambda path: path.symlink_to(victim))
    shelf = CheckpointFolders(run / "checkpoints", 1)
    for act in (shelf.clean_up, shelf.prune, lambda: shelf.delete_after(0), lambda: shelf.find_latest("best")):
        with pytest.raises(UserError, match="is a link"):
            act()
    run_folder.clean_up(run)  # which reads only the run's folders


@pytest.mark.parametrize("which", ["newest", "damaged"])
def test_nothing_is_moved_through_a_link(run, victim, which):
    replace(run / "checkpoints" / which, lambda path: path.symlink_to(victim))
    (run / "checkpoints" / "best" / "7" / "meta.json").write_text("damaged")
    with pytest.raises(UserError, match=f"{which} is a link"):
        CheckpointFolders(run / "checkpoints", 1).find_latest("newest" if which == "newest" else "best")


def test_a_lock_that_is_a_link_or_has_another_name_is_not_emptied(run, tmp_path):
    mine = tmp_path / "thesis.txt"
    mine.write_text("kept")
    replace(run / "lock", lambda path: path.symlink_to(mine))
    with pytest.raises(UserError, match="lock is a link"):
        RunLock(run)
    replace(run / "lock", lambda path: path.hardlink_to(mine))
    with RunLock(run), pytest.raises(Exception, match="in use"):
        RunLock(run)
    assert mine.read_text() == "kept"


def test_a_lock_of_ours_is_signed_and_emptied(run):
    with RunLock(run):
        assert json.loads((run / "lock").read_text())["pid"] == os.getpid()
    assert (run / "lock").read_bytes() == b""


WRITERS = {
    "metrics.jsonl": lambda run: MetricsLog(run, resume_step=1),
    "evaluations": lambda run: evaluations.write_evaluation(
        run, 1, classes=CAMVID, confusion=np.zeros((11, 11)), loss=1.0, pictures=[]
    ),
    "samples": lambda run: figures.prediction_pictures(
        None, *[np.zeros((1, 8, 8), np.uint8)] * 2, ["a"], CAMVID, run / "samples", 1, "val"
    ),
    "incident": lambda run: outcome.write_incident(run, 1, {}, {}, [], CAMVID),
    "checkpoints": lambda run: batch_norm_statistics.save_statistics(
        run / "checkpoints", "1" * 64, {"a": {"b": np.zeros(1)}}, {}
    ),
    "checkpoints/statistics": lambda run: batch_norm_statistics.save_statistics(
        run / "checkpoints", "1" * 64, {"a": np.zeros(1)}, {}
    ),
}


@pytest.mark.parametrize("place", WRITERS)
def test_nothing_is_written_through_a_link(run, victim, place):
    replace(run / place, lambda path: path.symlink_to(victim / "kept.txt" if "." in place else victim))
    with pytest.raises(UserError, match="is a link"):
        WRITERS[place](run)


def test_a_report_leaves_out_what_is_a_link_and_says_so(run, victim):
    for place in ("metrics.jsonl", "evaluations", "incident", "outcome.json"):
        replace(run / place, lambda path: path.symlink_to(victim if "." not in path.name else victim / "kept.txt"))
    write_report(run)
    assert (run / "report.html").read_text().count("is a link") >= 4


def test_a_temporary_name_that_is_a_link_is_replaced_and_not_followed(run, victim):
    (run / f".outcome.json.{os.getpid()}.tmp").symlink_to(victim / "kept.txt")
    atomic_write_json(run / "outcome.json", {"a": 1})
    assert json.loads((run / "outcome.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\0b"])
def test_a_name_that_leads_outside_is_refused(run, name):
    with pytest.raises(UserError, match="inside"):
        untrusted_files.read_bytes(run, name)


# --- sizes ---


def test_a_huge_file_is_refused_before_it_is_read(run):
    for name in ("config.toml", "overrides.json", "metrics.jsonl", "checkpoints/newest/8/manifest.json"):
        (run / name).unlink(missing_ok=True)
        with open(run / name, "wb") as file:
            file.truncate(3 * 2**30)
    with pytest.raises(UserError, match="config.toml has 3,221,225,472 bytes, over the limit of 65,536"):
        files.read_run(run)
    with pytest.raises(UserError, match="overrides.json has 3,221,225,472 bytes"):
        experiment_check.overrides(run)
    with pytest.raises(UserError, match="metrics.jsonl has 3,221,225,472 bytes"):
        read_metrics(run / "metrics.jsonl")
    with pytest.raises(Damaged, match="manifest.json has 3,221,225,472 bytes"):
        read_manifest(run / "checkpoints" / "newest" / "8")


def test_a_checkpoint_with_a_file_that_its_manifest_does_not_list_is_damaged(run):
    (run / "checkpoints" / "newest" / "8" / "state" / "more").write_text("x")
    with pytest.raises(Damaged, match="state/more is not listed in manifest.json"):
        verify(run / "checkpoints" / "newest" / "8")


# --- one experiment ---


def config_of(run, **changes):
    (run / "config.toml").write_text(dataclasses.replace(CONFIG, **changes).to_toml())
    return files.read_run(run)


META = {"step": 8, "config": CONFIG.hash(), "experiment": CONFIG.experiment()}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": 1}, "seed 0 -> 1"),
        ({"width": 0.125, "depth": 2}, "depth 1 -> 2, width 0.0625 -> 0.125"),
        ({"image_size": (48, 32)}, r"image_size \(24, 32\) -> \(48, 32\)"),
    ],
)
def test_an_edited_config_is_refused_with_its_fields(run, changes, message):
    config = config_of(run, **changes)
    for override in (None, False, True):
        with pytest.raises(UserError, match=f"settings that differ from the run's config: {message}"):
            experiment_check.check_experiment(run, META, config, override)


def test_an_edited_recipe_needs_override_to_resume_and_is_a_warning_elsewhere(run, logged):
    config = config_of(run, learning_rate=0.5)
    with pytest.raises(UserError, match="learning_rate 0.001 -> 0.5.*--override"):
        experiment_check.check_experiment(run, META, config, False)
    for override in (None, True):
        experiment_check.check_experiment(run, META, config, override)
    assert len(logged) == 2 and all("learning_rate 0.001 -> 0.5" in each for each in logged)


def test_a_key_overridden_after_a_checkpoint_was_saved_is_not_a_difference(run):
    run_folder.record_overrides(run, dataclasses.replace(CONFIG, learning_rate=0.5), 8)
    run_folder.record_overrides(run, dataclasses.replace(CONFIG, learning_rate=0.25), 9)
    experiment_check.check_experiment(run, META, files.read_run(run), False)
    with pytest.raises(UserError, match="learning_rate 0.001 -> 0.5"):  # saved after the first change, yet without it
        experiment_check.check_experiment(run, META | {"step": 9}, files.read_run(run), False)


def test_a_checkpoint_that_contradicts_itself_is_refused(run):
    with pytest.raises(UserError, match="is inconsistent"):
        experiment_check.check_experiment(run, META | {"config": "0" * 64}, CONFIG)


def test_an_older_versions_checkpoint_with_only_the_hash_is_reported(run, logged):
    experiment_check.check_experiment(run, {"step": 8, "config": CONFIG.hash()}, CONFIG)
    assert not logged
    experiment_check.check_experiment(run, {"step": 8, "config": "0" * 64}, CONFIG)
    assert len(logged) == 1 and "not compared" in logged[0]


def test_commands_that_read_a_checkpoint_compare_its_experiment(tmp_path):
    run = make_run(tmp_path / "run", changed_meta={"experiment": CONFIG.experiment(), "config": CONFIG.hash()})
    config_of(run, seed=3)
    for name in ("evaluate", "predict"):
        with pytest.raises(UserError, match="seed 0 -> 3"):
            COMMANDS[name](run)
    with pytest.raises(UserError, match="seed 0 -> 3"):
        StepConstants.from_run(str(run), CONFIG, 1)  # of `portability lower`


def calls_of(function):
    """Return the names of all functions and methods called in a function."""
    called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {each.attr if isinstance(each, ast.Attribute) else getattr(each, "id", "") for each in called}


def test_every_function_that_reads_metadata_validates_it_and_compares_the_experiment():
    readers = {}
    for path in pathlib.Path(segnet_jax.__file__).parent.rglob("*.py"):
        if path.parent.name == "training" and path.name.startswith("checkpoint"):
            continue  # where reading is defined
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and (called := calls_of(function)) & {"read_meta", "meta"}:
                readers[f"{path.parent.name}/{path.name}:{function.name}"] = called
    assert len(readers) >= 4
    for name, called in readers.items():
        # best_evaluation validates the one entry that is read of an older checkpoint of the run that is resumed
        assert {"check_meta", "check_experiment"} <= called or "best_evaluation" in called, name


def test_a_run_whose_checkpoints_are_gone_is_not_restarted(tmp_path, logged):
    def metrics(step):
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": step}) + "\n")

    check_never_saved(tmp_path, CONFIG, 3)
    assert not logged
    metrics(3)  # a kill may precede the first save
    check_never_saved(tmp_path, CONFIG, 3)
    assert "has taken 3 steps but saved none of them: it starts again at step 0" in logged[0]
    metrics(4)
    with pytest.raises(NoCheckpoint, match="has taken 4 steps, but has no checkpoint"):
        check_never_saved(tmp_path, CONFIG, 3)
    (tmp_path / "checkpoints").mkdir()  # the first save had started
    check_never_saved(tmp_path, CONFIG, 3)


# --- keys of one start ---

OF_A_START = {
    "find_lr": "true",
    "coordinator": '"192.0.2.1:1234"',
    "process_id": "1",
    "num_processes": "2",
    "run": '"elsewhere"',
    "resume": "false",
    "override": "true",
    "max_steps": "1",
    "profile": "5",
    "logger": '["wandb"]',
    "upload": '"s3://street/runs"',
}


def test_these_are_all_keys_of_one_start():
    assert OF_A_START.keys() == {name for name in Config.__dataclass_fields__ if on_resume(name) == "of this start"}


@pytest.mark.parametrize("key", OF_A_START)
def test_a_key_of_one_start_is_refused_in_a_run(run, key):
    with open(run / "config.toml", "a") as file:
        file.write(f"{key} = {OF_A_START[key]}\n")
    for command in COMMANDS.values():
        if command is not COMMANDS["report"]:  # which warns and continues
            with pytest.raises(UserError, match=f"config.toml sets {key}, which may only be given on the command line"):
                command(run)


def test_an_automatically_resumed_run_is_checked_too(run, tmp_path, monkeypatch, logged):
    monkeypatch.chdir(tmp_path)
    os.mkdir("runs")
    shutil.move(run, "runs/synthetic-1")
    (tmp_path / "runs/synthetic-1/checkpoints/x").symlink_to(tmp_path)
    with contextlib.ExitStack() as stack:
        found = find_run.find(CONFIG, stack)
    assert not found.run and "checkpoints/x is a link" in logged[0]
