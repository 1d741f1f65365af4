"""Test the train command: it writes complete runs, resumes bit-identically, and reports mistakes in one line."""

import csv
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import weight_files
from xla_flags import QUICK

from segnet_jax import train as command
from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_config
from segnet_jax.config.flags import parse_config
from segnet_jax.constants import VOID
from segnet_jax.data.input_pipeline.cache import from_arrays
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.nn.segnet import ENCODERS, SegNet
from segnet_jax.runs.dataset_checks import check_labels
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import Stopped, UserError
from segnet_jax.training import build_steps, initial_weights

SMALL = [
    *("--data", "synthetic", "--scenes", "26", "9", "--image-size", "24", "32", "--init", "none"),
    *("--depth", "1", "--width", "0.0625", "--epochs", "2", "--batch-size-per-device", "1", "--devices", "8"),
    *("--class-weights", "none", "--learning-rate", "0.05"),
]  # three steps an epoch


RESUME = "python -m segnet_jax.train"


def run(*flags):
    return command.train(parse_config([*SMALL, *map(str, flags)], prog="segnet_jax.train", description=""))


def digest_of(folder, which="newest"):
    """Return the step of a run's latest checkpoint and a checksum over its arrays, read with Orbax only."""
    step = latest_of(folder, which)
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored(folder, which)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return step, digest.hexdigest()


def latest_of(folder, which="newest"):
    return max(int(path.name) for path in (folder / "checkpoints" / which).iterdir())


def restored(folder, which="newest"):
    path, orbax = folder / "checkpoints" / which / str(latest_of(folder, which)) / "state", ocp.PyTreeCheckpointer()
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), orbax.metadata(path).item_metadata.tree)
    return orbax.restore(path, args=ocp.args.PyTreeRestore(restore_args=kinds))


def meta_of(folder, which="newest"):
    path = folder / "checkpoints" / which / str(latest_of(folder, which)) / "meta.json"
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert run("--run", folder) == 0
    return folder


def test_a_run_leaves_what_the_design_names(unbroken):
    held = {path.name for path in unbroken.iterdir()}
    assert {"config.toml", "environment.json", "metrics.jsonl", "checkpoints", "progress.png", "samples"} <= held
    assert {"result.json", "first_batch.png"} <= held and any(name.startswith("events.") for name in held)
    assert {path.name for path in (unbroken / "samples").iterdir()} == {
        "step_0000003.png",
        "step_0000006.png",
        "latest.png",
    }
    assert {path.name for path in (unbroken / "evaluations").iterdir()} == {
        "dataset.json",
        "images_0000003.npz",
        "images_0000006.npz",
        "worst.json",
        "step_0000003.json",
        "step_0000006.json",
    }
    rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["kind"] == "val"] == [3, 6]
    found = json.loads((unbroken / "result.json").read_text())
    assert found["split"] == "val" and found["num_images"] == 9 and found["num_steps"] == 6
    best = max((row for row in rows if row["kind"] == "val"), key=lambda row: row["miou"])
    assert (found["miou"], found["step"], found["checkpoint"]) == (best["miou"], best["step"], "best")
    assert sum(row["pixels"] for row in found["per_class"].values()) <= 9 * 24 * 32
    config = read_config(unbroken / "config.toml", Config())
    assert (config.image_size, config.width, config.scenes) == ((24, 32), 0.0625, (26, 9))


def test_the_report_is_that_of_the_finished_run(unbroken):
    page = (unbroken / "report.html").read_text()
    assert "finished after step 6 of 6" in page and page.count('data-step="1"') == 6  # of six images
    per_class = json.loads((unbroken / "result.json").read_text())["per_class"]
    known, *counts = csv.reader((unbroken / "confusion.csv").open())
    assert known[1:] == list(per_class)
    assert [sum(map(int, row[1:])) for row in counts] == [each["pixels"] for each in per_class.values()]
    rights = {name: int(row[place]) for place, (name, row) in enumerate(zip(known[1:], counts, strict=True), start=1)}
    for name, entry in per_class.items():
        assert entry["accuracy"] is None or rights[name] == round(entry["accuracy"] * entry["pixels"])
    worst = json.loads((unbroken / "evaluations" / "worst.json").read_text())
    accuracies = [each["accuracy"] for each in worst["lowest"]]
    assert worst["num_images"] == 9 and len(worst["pictures"]) == 6 and accuracies == sorted(accuracies)


@pytest.mark.parametrize("stop_at", [2, pytest.param(3, marks=pytest.mark.slow)])  # within an epoch, and at its edge
def test_stopping_and_resuming_gives_the_unbroken_run_bit_identically(unbroken, tmp_path, stop_at):
    folder = tmp_path / "broken"
    assert run("--run", folder, "--max-steps", stop_at) == 0
    assert digest_of(folder)[0] == stop_at and not (folder / "result.json").exists()
    assert command.train(parse_config(["--run", str(folder), "--resume"], prog="segnet_jax.train", description="")) == 0
    assert digest_of(folder) == digest_of(unbroken)
    assert digest_of(folder, "best") == digest_of(unbroken, "best")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]

    def numbers(rows):
        clock = {"seconds", "images_per_second", "time"}
        return [{name: value for name, value in row.items() if name not in clock} for row in rows]

    assert numbers(rows) == numbers(kept)
    ours, theirs = (json.loads((path / "result.json").read_text()) for path in (folder, unbroken))
    assert (ours["miou"], ours["step"], ours["per_class"]) == (theirs["miou"], theirs["step"], theirs["per_class"])


@pytest.mark.slow
def test_a_resumed_run_may_be_cut_over_other_devices_with_the_same_global_batch(unbroken, tmp_path):
    folder = tmp_path / "moved"
    assert run("--run", folder, "--max-steps", 2) == 0
    assert run("--run", folder, "--resume", "--devices", 2, "--batch-size-per-device", 4) == 0
    for (_, ours), (_, expected) in zip(*map(leaves_of, (folder, unbroken)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def leaves_of(folder):
    return jax.tree_util.tree_leaves_with_path(restored(folder)["params"])


def test_resuming_refuses_another_experiment(unbroken, tmp_path):
    with pytest.raises(UserError, match=r"with changed settings: learning_rate 0.05 -> 0.1"):
        run("--run", unbroken, "--resume", "--learning-rate", "0.1")
    assert run("--run", unbroken, "--resume") == run("--run", unbroken) == 0  # finished
    folder = tmp_path / "stopped"
    assert run("--run", folder, "--max-steps", 1) == 0
    with pytest.raises(UserError, match="global batch size 8 -> 4"):
        run("--run", folder, "--resume", "--devices", "4")
    (folder / "config.toml").write_text((folder / "config.toml").read_text().replace("[26, 9]", "[27, 9]"))
    with pytest.raises(UserError, match="data of train changed"):
        command.train(parse_config(["--run", str(folder), "--resume"], prog="p", description=""))


def test_a_run_never_writes_into_another(unbroken, tmp_path):
    def files():
        return {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.name != "lock"}

    before = files()
    assert run("--run", unbroken) == 0  # the same command again finds it finished
    with pytest.raises(UserError, match="with changed settings: seed 0 -> 1"):
        run("--run", unbroken, "--seed", 1)
    assert files() == before
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        run("--run", tmp_path)


def test_ctrl_c_saves_the_step_and_says_how_to_resume(tmp_path, monkeypatch, capfd):
    build, steps = build_steps.build_train_step, []

    def interrupted(*args, **settings):
        step = build(*args, **settings)

        def call(*args):
            steps.append(1)
            if len(steps) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return step(*args)

        return call

    monkeypatch.setattr(build_steps, "build_train_step", interrupted)
    folder = tmp_path / "interrupted"
    with pytest.raises(Stopped) as left:
        run("--run", folder)
    assert left.value.exit_code == 130 and digest_of(folder)[0] == 2
    assert f"Step 2 is saved and verified; resume with: {RESUME} --run {folder} --resume" in str(left.value)
    assert "stopping: the step is finished and saved first; Ctrl-C again exits immediately" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


MISTAKES = {
    "a mistyped flag": (["--learning-rat", "1"], "nearest: --learning-rate"),
    "a rate out of range": (["--learning-rate", "1e3"], "--learning-rate must be between 1e-12 and 10, got 1000"),
    "a rate that is no number": (["--learning-rate", "abc"], "--learning-rate"),
    "a negative rate": (["--learning-rate", "-1"], "--learning-rate must be between"),
    "a rate of nan": (["--learning-rate", "nan"], "--learning-rate must be between"),
    "no epochs": (["--epochs", "0"], "--epochs must be between 1"),
    "an image size of 0": (["--image-size", "0", "32"], "--image-size must be between 1 and 16384, got 0 32"),
    "one number of an image size": (["--image-size", "32"], "--image-size"),
    "devices that are not there": (["--devices", "9"], "9 devices requested, but only 8 found (cpu); use --devices 8"),
    "devices that are no number": (["--devices", "many"], "--devices must be a positive number"),
    "more devices than images": (
        ["--batch-size-per-device", "9"],
        "26 training images are fewer than the global batch",
    ),
    "an unknown protocol": (
        ["--protocol", "camvit"],
        "unknown protocol 'camvit'; known: bayesian-segnet",
    ),
    "a missing data folder": (["--data", "no/such/folder"], "no folder no/such/folder"),
    "a missing weight file": (["--init", "no.pth", "--width", "1"], "weight file no.pth does not exist"),
    "weights for another width": (["--init", "vgg16"], "--init vgg16 needs --width 1, got 0.0625"),
    "weights of another encoder": (["--init", "vgg19", "--width", "1"], "does not fit --encoder vgg16"),
    "an image smaller than the poolings need": (["--depth", "5"], "--image-size 24 32 is too small for 5 poolings"),
    "resuming nothing": (["--resume"], "--resume needs the run"),
    "resuming a run that is not there": (["--resume", "--run", "no/run"], "no run no/run"),
    "a missing config": (["--config", "no.toml"], "cannot read the config no.toml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_line_with_exit_code_2(mistake, monkeypatch, capsys, tmp_path):
    flags, message = MISTAKES[mistake]
    monkeypatch.setattr(sys, "argv", ["train", *SMALL, *flags])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "jit", None)  # nothing may be compiled
    with pytest.raises(SystemExit) as left:
        run_command(command.main)
    assert left.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("devices", "data", "plan"))]
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]
    assert not list(tmp_path.iterdir())


def test_the_command_trains_on_eight_fake_devices(tmp_path):
    flags = [
        *SMALL,
        "--fake-devices",
        "8",
        "--max-steps",
        "1",
        "--grad-accum-steps",
        "2",
        "--run",
        str(tmp_path / "eight"),
    ]
    environment = os.environ | {"XLA_FLAGS": QUICK}
    done = subprocess.run(
        [sys.executable, "-m", "segnet_jax.train", *flags], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "devices  8 x cpu, float32" in done.stderr and "1 steps of 16 images" in done.stderr
    assert "oneDNN" not in done.stderr and "Traceback" not in done.stderr
    assert digest_of(pathlib.Path(tmp_path / "eight"))[0] == 1


def test_trained_weights_go_into_the_encoder_with_their_preprocessing_and_calibrated_statistics(tmp_path, monkeypatch):
    convs = weight_files.shrink(monkeypatch, ENCODERS)  # a VGG of few channels, for speed
    weight_files.write_npz(tmp_path / "vgg.npz", weight_files.own_names(convs))
    folder = tmp_path / "run"
    flags = ("--init", tmp_path / "vgg.npz", "--width", 1, "--learning-rate", 1e-12, "--max-steps", 1, "--run", folder)
    assert run(*flags) == 0
    meta, state = meta_of(folder), restored(folder)
    assert meta["preprocessing"] == {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    for name in ("conv1_1", "conv1_2"):
        np.testing.assert_allclose(state["params"][name]["kernel"], convs[name][0], atol=1e-6)
    # Calibrated before the first step: its running mean keeps 0.9 of the images' own, nowhere near the initial 0.
    mean = np.abs(state["batch_stats"]["conv1_1_bn"]["mean"])
    assert (mean > 0.1).all() and (state["batch_stats"]["conv1_1_bn"]["var"] > 1).all()


def test_the_statistics_are_calibrated_on_as_many_images_however_many_batches_a_step_accumulates(monkeypatch):
    seen = []

    def look(model, variables, batches, *_):
        seen.extend(batch["image"][0, 0].shape[0] for batch in batches)  # the first of the accumulated batches
        return {}

    monkeypatch.setattr(initial_weights, "average_statistics", look)
    monkeypatch.setattr("segnet_jax.weights.insert_vgg.insert_encoder", lambda params, stats, *_, **__: (params, stats))
    model = SegNet(3, depth=1, width=1 / 16)
    for grad_accum_steps in (1, 8):
        config = Config(batch_size_per_device=4, grad_accum_steps=grad_accum_steps)
        batch = {"image": np.zeros((1, grad_accum_steps, 4, 2, 2, 3), np.uint8)}
        initial_weights.first_variables(
            config, model, object(), None, lambda step, batch=batch: batch, choose_devices("1")
        )
        assert sum(seen) == 64
        seen.clear()


def test_labels_without_training_signal_are_reported(logged):
    two = ClassTable(("sky", "road"), ((1, 1, 1), (2, 2, 2)))
    sky, road, void = (np.full((2, 2), value, np.uint8) for value in (0, 1, VOID))

    def read_of(*labels):
        return from_arrays(np.zeros((len(labels), 2, 2, 3), np.uint8), np.stack(labels))

    check_labels(two, train=read_of(sky, void), val=read_of(sky, road))
    assert logged == [
        "warning: 1 of 2 train labels are entirely void",
        "warning: no train pixel of road, which the scores report as absent",
        "warning: only val labels contain road, which therefore cannot be learned",
    ]
    with pytest.raises(UserError, match="all 2 val labels are entirely void"):
        check_labels(two, train=read_of(sky, road), val=read_of(void, void))


def test_help_shows_an_example_and_every_field(capsys):
    with pytest.raises(SystemExit) as left:
        parse_config(["--help-all"], prog="segnet_jax.train", description=command.DESCRIPTION)
    text = capsys.readouterr().out.replace("[no-]", "")
    assert left.value.code == 0 and "python -m segnet_jax.train --protocol demo" in text
    assert all(f"--{name.replace('_', '-')}" in text for name in vars(Config()) if name != "own")
