"""Test what may change when a run is resumed: each key is free, needs --override, or is rejected with old -> new."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from test_train import SMALL, digest_of, latest_of, meta_of
from test_train import run as run_of_seed

from segnet_jax.config import files
from segnet_jax.config.fields import Config, on_resume
from segnet_jax.config.flags import parse_config
from segnet_jax.runs import find_run
from segnet_jax.runs.session import best_intact
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import DiskFull, NoCheckpoint, Stopped, UserError
from segnet_jax.system.lock import RunLock
from segnet_jax.training import build_steps
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.manifest import verify

OTHERS = {  # another value for each field
    "protocol": "demo",
    "data": "synthetic",
    "split_rule": "matlab",
    "leave_out": "0016E5",
    "leave_out_train": 30,
    "folds": 5,
    "fold": 2,
    "scenes": (241, 60),
    "image_size": (180, 240),
    "fit": "crop",
    "images": "*.jpg",
    "map": ("255=1",),
    "labels_start_at": 1,
    "label_files": "*a*",
    "label_suffix": "_mask",
    "labels_as": "colors",
    "threshold": 128,
    "mask_order": ("road", "car"),
    "unmasked": "void",
    "multi_label": True,
    "mostly_void": True,
    "image_range": (0, 4095),
    "channels": 4,
    "image_bits": "16",
    "follow_links": True,
    "unknown_color": "ignore",
    "exif": "apply",
    "resize_labels": "nearest",
    "val_fraction": 0.3,
    "flip": False,
    "shift": 11,
    "scale": (0.5, 2.0),
    "color": 0.25,
    "blur": 0.5,
    "rotate": 10.0,
    "shear": 5.0,
    "vertical_flip": True,
    "crop": (180, 240),
    "class_mix": 0.5,
    "augment": "mine:jitter",
    "upload": "s3://street/runs",
    "network": "segnet-basic",
    "encoder": "vgg19",
    "depth": 4,
    "width": 0.5,
    "stage_convolutions": (2, 2, 2, 2, 2),
    "stage_channels": (64, 64, 64, 64, 64),
    "kernel_size": 5,
    "pooling": "ceil",
    "upsampling": "learnt",
    "encoder_addition": True,
    "decoder": "single-channel",
    "dropout": 0.5,
    "conv_bias": True,
    "final_batch_norm": True,
    "batch_norm_momentum": 0.99,
    "batch_norm": "recompute",
    "batch_norm_variance": "population",
    "batch_norm_epsilon": 1e-4,
    "batch_norm_bias": 1e-3,
    "sync_batch_norm": False,
    "init": "none",
    "init_batch_norm": "preserve",
    "freeze": "encoder",
    "preprocessing": "raw",
    "epochs": 101,
    "steps": 7,
    "batch_size_per_device": 2,
    "grad_accum_steps": 2,
    "loss": "dice",
    "output": "sigmoid",
    "optimizer": "adamw",
    "nesterov": True,
    "clip_gradients": 5.0,
    "lr_mult": ("head=10",),
    "plateau_patience": 3,
    "learning_rate": 2e-3,
    "encoder_lr_mult": 0.1,
    "schedule": "poly",
    "warmup_epochs": 1.0,
    "step_epochs": 31,
    "step_factor": 0.2,
    "poly_power": 1.0,
    "momentum": 0.8,
    "weight_decay": 1e-4,
    "decay_scale": True,
    "decay_shift": True,
    "bias_lr_mult": 2.0,
    "ema_decay": 0.99,
    "class_weights": "none",
    "seed": 1,
    "precision": "bfloat16",
    "devices": "2",
    "fake_devices": 2,
    "input": "host",
    "steps_per_dispatch": 2,
    "half_gradients": True,
    "deterministic": True,
    "coordinator": "a:1",
    "process_id": 1,
    "num_processes": 2,
    "heartbeat": 31,
    "find_lr": True,
    "max_steps": 5,
    "evaluate_every": 2,
    "checkpoint_every": 2,
    "keep_checkpoints": 3,
    "on_disk_full": "wait",
    "result_checkpoint": "last",
    "best_metric": "global_accuracy",
    "patience": 3,
    "mapping": "shard_map",
    "swa_epochs": 3,
    "swa_learning_rate": 0.01,
    "log_norms": True,
    "profile": 5,
    "logger": ("wandb",),
}
WHICH = ("newest", "best")
NOT_OF_THE_TRAINING = {"run", "resume", "override"}  # which run to resume, and how


def test_every_key_is_classed_and_tried():
    fields = {field.name for field in dataclasses.fields(Config)}
    assert OTHERS.keys() == fields - NOT_OF_THE_TRAINING - {"own"} and len(fields) > 45
    assert {on_resume(name) for name in fields} == {"free", "of this start", "override", "refused"}
    assert {on_resume(name) for name in NOT_OF_THE_TRAINING} == {"of this start"}
    # Changes of the state or sampling are refused; changes of training settings need --override.
    assert {name for name in OTHERS if on_resume(name) == "refused"} == {
        *("protocol", "split_rule", "scenes", "image_size", "encoder", "depth", "width", "pooling", "conv_bias"),
        *("final_batch_norm", "init", "preprocessing", "seed", "precision", "ema_decay", "leave_out"),
        *("leave_out_train", "folds", "fold", "stage_convolutions", "stage_channels", "kernel_size"),
        *("network", "upsampling", "encoder_addition", "decoder", "batch_norm_bias", "bias_lr_mult"),
        *("init_batch_norm", "freeze", "optimizer", "encoder_lr_mult", "output", "clip_gradients", "lr_mult"),
        "swa_epochs",
        *("fit", "images", "map", "labels_start_at", "unknown_color", "exif", "resize_labels", "val_fraction"),
        *("label_files", "label_suffix", "labels_as", "threshold", "mostly_void", "image_range", "follow_links"),
        *("channels", "image_bits", "mask_order", "unmasked", "multi_label"),
    }


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("again", ["--resume", "the same command"])
def test_each_changed_key_is_reported_with_old_and_new(tmp_path, name, again, monkeypatch):
    monkeypatch.setattr(find_run, "check_upload", lambda address: None)  # which writes to the bucket
    old = Config()
    (tmp_path / "config.toml").write_text(old.to_toml())
    given = {name: OTHERS[name], "run": str(tmp_path), "resume": again == "--resume"}
    new = dataclasses.replace(old, **given)
    message = f"with changed settings: {name} {getattr(old, name)} -> {OTHERS[name]};"

    def outcome(config):
        with contextlib.ExitStack() as stack:
            try:
                return find_run.find(config, stack)
            except UserError as error:
                return str(error)

    expected = dataclasses.replace(new, resume=True)
    match on_resume(name):
        case "refused":
            assert message in outcome(new) and message in outcome(dataclasses.replace(new, override=True))
        case "override":
            assert message in outcome(new) and "add --override" in outcome(new)
            assert outcome(dataclasses.replace(new, override=True)) == dataclasses.replace(expected, override=True)
        case _:
            assert outcome(new) == expected


def run(*flags):
    return run_of_seed("--seed", 5, *flags)  # of which the best is that of step 3, not the last


@pytest.fixture(scope="module")
def stopped_at_2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    assert run("--run", folder, "--max-steps", 2) == 0
    return folder


@pytest.fixture
def folder(stopped_at_2, tmp_path):
    """Copy a run that was stopped after its second step."""
    return shutil.copytree(stopped_at_2, tmp_path / "run")


@pytest.mark.slow
def test_an_overridden_run_resumes_with_the_change_and_records_it(folder):
    changed = ("--learning-rate", 0.01, "--class-weights", "auto-present")
    with pytest.raises(
        UserError, match=r"learning_rate 0.05 -> 0.01, class_weights none -> auto-present; .*--override"
    ):
        run("--run", folder, *changed)
    assert run("--run", folder, *changed, "--override", "--max-steps", 4) == 0
    assert run("--run", folder, *changed) == 0  # recorded in the run: the same command resumes
    found = json.loads((folder / "result.json").read_text())
    assert found["overrides"] == [
        {
            "step": 2,
            "changes": {
                "learning_rate": {"old": 0.05, "new": 0.01},
                "class_weights": {"old": "none", "new": "auto-present"},
            },
        }
    ]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows if row["kind"] == "train"] == pytest.approx([0.05] * 2 + [0.01] * 4)
    weights = meta_of(folder)["class_weights"]
    assert len(set(np.round(weights, 6))) > 3  # counted, no longer all one


@pytest.mark.slow
def test_a_run_that_was_stopped_while_its_last_step_was_scored_is_finished_by_the_next_start(
    folder, unbroken, monkeypatch, capsys
):
    evaluator = build_steps.build_evaluator

    def stopped_at_the_second(*args, **settings):
        score, times = evaluator(*args, **settings), []

        def scored(*given):
            times.append(1)
            if len(times) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return score(*given)

        return scored

    with monkeypatch.context() as stopped:
        stopped.setattr(build_steps, "build_evaluator", stopped_at_the_second)
        with pytest.raises(Stopped, match="Step 6 is saved"):
            run("--run", folder)
    assert meta_of(folder)["last"]["step"] == 3
    assert run("--run", folder) == 0
    assert is_as_unbroken(folder, unbroken)
    before = (folder / "result.json").read_bytes(), (folder / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    assert run("--run", folder) == 0
    assert "is finished: all 6 steps are done" in capsys.readouterr().err
    assert before == ((folder / "result.json").read_bytes(), (folder / "result.json").stat().st_mtime_ns)


def test_fewer_epochs_than_were_taken_are_refused_and_change_nothing(folder):
    assert run("--run", folder, "--max-steps", 5) == 0
    before = (folder / "config.toml").read_text()
    for _ in range(2):
        with pytest.raises(
            UserError, match="taken 5 steps, but --epochs 1 is only 3: use at least --epochs 2 with --override, or"
        ):
            run("--run", folder, "--epochs", 1, "--override")
    assert (folder / "config.toml").read_text() == before and not (folder / "overrides.json").exists()


def test_a_finished_run_resumed_for_more_epochs_has_no_result_until_it_ends_again(unbroken, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    before = (folder / "result.json").read_bytes()
    with pytest.raises(UserError, match="has taken 6 steps, but --epochs 1 is only 3"):
        run("--run", folder, "--epochs", 1, "--override")
    assert (folder / "result.json").read_bytes() == before
    assert run("--run", folder, "--epochs", 3, "--override", "--max-steps", 7) == 0
    assert not (folder / "result.json").exists() and (folder / "result_before.json").read_bytes() == before
    assert run("--run", folder, "--epochs", 3) == 0
    assert json.loads((folder / "result.json").read_text())["num_steps"] == 9
    assert (folder / "result_before.json").read_bytes() == before


def test_a_run_stopped_before_its_first_checkpoint_restarts_in_its_folder(folder):
    whole = digest_of(folder)
    for path in sorted((folder / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(NoCheckpoint, match="was saved at step 2, but has no checkpoint"):
        run("--run", folder, "--max-steps", 2)
    (folder / "outcome.json").unlink()  # as a kill leaves it
    assert run("--run", folder, "--max-steps", 2) == 0
    assert digest_of(folder) == whole
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


def test_a_run_without_an_intact_checkpoint_is_never_restarted(folder):
    (folder / "checkpoints" / "newest" / "2" / "manifest.json").unlink()
    for _ in range(2):
        with pytest.raises(NoCheckpoint):
            run("--run", folder)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["damaged", "last.json", "newest"]


@pytest.fixture(scope="module")
def unbroken(stopped_at_2, tmp_path_factory):
    """Resume the stopped run to its end."""
    folder = shutil.copytree(stopped_at_2, tmp_path_factory.mktemp("runs") / "unbroken")
    assert run("--run", folder) == 0
    assert latest_of(folder, "best") == 3
    return folder


def is_as_unbroken(folder, unbroken):
    results = [json.loads((each / "result.json").read_text()) for each in (folder, unbroken)]
    scores = [(each["miou"], each["step"], each["state"], each["per_class"]) for each in results]
    return scores[0] == scores[1] and all(digest_of(folder, which) == digest_of(unbroken, which) for which in WHICH)


def flip_a_bit(path):
    """Flip a bit in place, so that every hard link to the file changes."""
    with open(path, "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))


@pytest.mark.slow  # a best that is the newest too is quicker
def test_a_run_broken_twice_between_its_best_and_its_newest_resumes(folder, unbroken, monkeypatch):
    save = Checkpoints.save

    def full_after_the_best(self, which, step, *args):
        if which == "newest":
            raise DiskFull("no room")
        save(self, which, step, *args)

    with monkeypatch.context() as full:
        full.setattr(Checkpoints, "save", full_after_the_best)
        with pytest.raises(DiskFull, match="Step 2 is saved"):
            run("--run", folder)
    assert (latest_of(folder, "best"), latest_of(folder)) == (3, 2)
    assert run("--run", folder, "--max-steps", 2) == 0  # resumed at step 2, stopped before the next best
    assert json.loads((folder / "checkpoints" / "last.json").read_text()) == {"newest": 2}
    assert run("--run", folder) == 0
    assert is_as_unbroken(folder, unbroken)


def test_one_bit_under_both_names_of_a_step_costs_that_step_alone(folder, unbroken, capsys):
    assert run("--run", folder, "--max-steps", 3) == 0
    best, newest = (folder / "checkpoints" / which / "3" for which in ("best", "newest"))
    array = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    assert array.samefile(best / array.relative_to(newest))
    flip_a_bit(array)
    assert run("--run", folder) == 0
    assert "resuming after step 2" in capsys.readouterr().err
    assert is_as_unbroken(folder, unbroken)


def test_a_best_that_is_the_newest_too_is_made_again_from_that(folder, unbroken, capsys):
    assert run("--run", folder, "--max-steps", 3) == 0
    flip_a_bit(folder / "checkpoints" / "best" / "3" / "meta.json")
    assert run("--run", folder, "--max-steps", 3) == 0
    printed = capsys.readouterr().err
    assert "best checkpoint of step 3 is damaged" in printed and "is lost" not in printed
    verify(folder / "checkpoints" / "best" / "3")
    assert run("--run", folder) == 0
    assert is_as_unbroken(folder, unbroken)


@pytest.mark.slow  # a best that is the newest too is quicker
def test_without_its_only_best_a_run_resumes_with_a_warning_and_a_restored_copy_is_used(folder, unbroken, capsys):
    assert run("--run", folder, "--max-steps", 4) == 0
    best = folder / "checkpoints" / "best" / "3"
    copy = shutil.copytree(best, folder.with_name("copy"))
    score = next(row["miou"] for row in rows_of(folder) if row["kind"] == "val")
    flip_a_bit(best / "meta.json")
    assert run("--run", folder, "--max-steps", 5) == 0
    printed = capsys.readouterr().err
    warning = f"warning: the best checkpoint (step 3, miou {score:.4f}) is lost: the next evaluated checkpoint replaces"
    assert warning in printed
    assert "resuming after step 4" in printed and f"copy it back to {best}, and resume" in printed
    lost = shutil.copytree(folder, folder.with_name("lost"))
    shutil.copytree(copy, best)
    assert run("--run", folder) == 0
    assert is_as_unbroken(folder, unbroken)
    assert run("--run", lost) == 0  # without it, the result is that of the next evaluation, and says so
    result, scored = json.loads((lost / "result.json").read_text()), rows_of(lost)[-1]
    assert (result["step"], result["miou"]) == (6, scored["miou"]) and result["miou"] < score
    verify(lost / "checkpoints" / "best" / "6")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "of_newest, whole, last, expected",
    [  # correct pixels of ten, by step: best in the newest checkpoint, latest intact best, last evaluation
        ((90, 9), (90, 9), (90, 9), (90, 9)),
        ((90, 9), (45, 5), (100, 4), (45, 5)),
        ((90, 9), (45, 5), (100, 6), (100, 6)),  # the newest is better than what is left
        ((90, 9), None, (100, 6), (100, 6)),
        ((100, 9), (45, 5), (100, 9), (100, 9)),  # only the newest is incomplete: nothing is lost
        ((90, 9), None, (90, 9), None),  # and nothing else was scored
        (None, None, None, None),
        (None, (45, 5), None, (45, 5)),  # put back
    ],
)
def test_the_best_is_the_best_of_what_is_whole(of_newest, whole, last, expected, logged):
    def scored(step_and_right):
        step, right = step_and_right or (None, 0)
        return step and {"step": step, "confusion": [[right, 10 - right], [0, 10]]}

    held = SimpleNamespace(
        latest_best=lambda until: whole and whole[0],
        read_meta=lambda which, step: {"best": scored(whole)},
        folders=SimpleNamespace(path=lambda which, step: f"{which}/{step}", root="checkpoints"),
    )
    meta = {"best": scored(of_newest), "last": scored(last)}
    assert best_intact(held, 100, meta, "miou") == scored(expected)
    assert len(logged) == (of_newest is not None and expected != of_newest)


@pytest.mark.slow  # the tests above name the run
def test_without_a_name_the_same_command_resumes_its_newest_unfinished_run(stopped_at_2, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stopped_at_2, tmp_path / "runs" / "synthetic-1")
    assert run("--max-steps", 2, "--seed", 1) == 0  # a different experiment: a different run
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["synthetic-1", "synthetic-2"]
    assert run("--seed", 1) == 0
    assert "resuming runs/synthetic-2, an unfinished run of the same command" in capsys.readouterr().err
    assert (tmp_path / "runs" / "synthetic-2" / "result.json").exists()
    assert run("--max-steps", 1, "--seed", 1) == 0  # it is finished: a new one
    with RunLock(tmp_path / "runs" / "synthetic-3"):
        assert run("--max-steps", 1, "--seed", 1) == 0  # another process trains in it: another new one
    assert sorted(path.name for path in (tmp_path / "runs").iterdir())[2:] == ["synthetic-3", "synthetic-4"]


def found_without_a_name(config, logged):
    """Return the run that the command resumes, or "", and its log lines."""
    logged.clear()
    with contextlib.ExitStack() as stack:
        return find_run.find(config, stack).run, list(logged)


def test_runs_on_own_images_are_named_after_their_folder_and_others_after_the_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol, name in (("scratch", "photos-1"), ("finetune", "photos-2"), ("", "photos-3"), ("demo", "demo-1")):
        with contextlib.ExitStack() as stack:
            folder = find_run.claim_folder(Config(data="my/photos", protocol=protocol), stack)
        assert str(folder) == f"runs/{name}"


def test_of_several_runs_the_newest_unfinished_one_of_the_same_command_is_resumed(tmp_path, monkeypatch, logged):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos [2024]").mkdir()
    config = Config(data="photos [2024]")

    def make(number, of=config):
        folder = tmp_path / "runs" / f"photos [2024]-{number}"
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(of.to_toml())
        return folder

    assert found_without_a_name(config, logged) == ("", [])
    for number in (1, 2, 9):
        make(number)
    make(10, dataclasses.replace(config, seed=1))
    (make(11) / "result.json").write_text("{}")
    damaged = make(12)
    (damaged / "config.toml").write_bytes(b"seed = ")
    (tmp_path / "runs" / "photos [2024]-13").mkdir()  # no run
    (tmp_path / "runs" / "photos 2-14").mkdir()  # names that the run's name would match as a pattern
    for seed, expected in ((0, 9), (1, 10)):  # two requeued in turn both resume
        run, lines = found_without_a_name(dataclasses.replace(config, seed=seed), logged)
        assert run == f"runs/photos [2024]-{expected}"
        assert len(lines) == 2 and lines[0].startswith("warning: runs/photos [2024]-12 is skipped: ")
        assert "config.toml" in lines[0] and lines[1].startswith(f"resuming {run}, an unfinished run of the same")
    with RunLock(tmp_path / "runs" / "photos [2024]-9"):
        assert found_without_a_name(config, logged)[0] == "runs/photos [2024]-2"
    assert found_without_a_name(dataclasses.replace(config, seed=2), logged)[0] == ""


def refusing(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_run_is_reported_in_one_line_or_skipped(folder, monkeypatch, number, logged):
    monkeypatch.chdir(folder.parent)
    open_file, refuse = untrusted_files.open_file, refusing(number)

    def refuse_the_lock(root, name, *args, **settings):
        return (refuse if name == "lock" else open_file)(root, name, *args, **settings)

    monkeypatch.setattr(untrusted_files, "open_file", refuse_the_lock)
    config = dataclasses.replace(files.read_run(folder), run=str(folder))
    with pytest.raises(UserError, match=f"cannot train in {folder}: {os.strerror(number)}; use another --run"):
        found_without_a_name(config, logged)
    (folder.parent / "runs").mkdir()
    folder.rename(folder.parent / "runs" / "synthetic-1")
    run, (line,) = found_without_a_name(dataclasses.replace(config, run=""), logged)
    assert run == "" and line.startswith("warning: runs/synthetic-1 is skipped: cannot train in")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_on_a_disk_without_locks_a_named_run_resumes_with_a_warning(folder, monkeypatch, number, logged):
    monkeypatch.chdir(folder.parent)
    config = dataclasses.replace(files.read_run(folder), run=str(folder))
    with RunLock(folder):
        signed = (folder / "lock").read_bytes()
    monkeypatch.setattr("segnet_jax.system.lock.fcntl.flock", refusing(number))
    run, (line,) = found_without_a_name(config, logged)
    why = f"the file system of {folder} does not support locks ({os.strerror(number)})"
    assert run == str(folder) and line == f"warning: {why}: check that no other process trains in it"
    (folder / "lock").write_bytes(signed)  # as after a kill, or while the other process trains
    assert f"check that process {os.getpid()} on " in found_without_a_name(config, logged)[1][0]
    (folder.parent / "runs").mkdir()
    folder.rename(folder.parent / "runs" / "synthetic-1")
    (folder.parent / "runs" / "synthetic-1" / "lock").write_bytes(signed)
    run, (line,) = found_without_a_name(dataclasses.replace(config, run=""), logged)
    assert run == "" and line.endswith(
        f"does not support locks ({os.strerror(number)}): to resume this run, name it with --run"
    )
    assert (folder.parent / "runs" / "synthetic-1" / "lock").read_bytes() == signed


def test_float16_runs_resume_only_in_float16(tmp_path):
    config = parse_config(
        [*SMALL, "--run", str(tmp_path / "run"), "--max-steps", "1", "--precision", "float16"], prog="p", description=""
    )
    from segnet_jax.train import train

    assert train(config) == 0
    path = tmp_path / "run" / "config.toml"
    path.write_text(path.read_text().replace('precision = "float16"', 'precision = "auto"'))  # as on another device
    with pytest.raises(UserError, match="cannot be resumed: precision float16 -> float32"):
        train(parse_config(["--run", str(tmp_path / "run"), "--resume"], prog="p", description=""))
