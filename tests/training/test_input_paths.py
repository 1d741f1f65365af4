"""Test whole runs with each input path: bit-identical states and scores, and TensorFlow only where needed."""

import json
import os
import pathlib
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import CLASSES, WEIGHTS, assert_trees_close, random_batch
from test_train import SMALL, digest_of, leaves_of, meta_of, run
from xla_flags import QUICK

from segnet_jax import train as command
from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import AXIS, choose_devices, replicate
from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.nn.segnet import SegNet
from segnet_jax.runs import setup, trainer
from segnet_jax.system.command import run_command
from segnet_jax.training import build_steps, step_inputs
from segnet_jax.training.optimizer import OptimizerSettings, build_optimizer
from segnet_jax.training.state import create_state, init_variables
from segnet_jax.training.step_inputs import as_sent
from segnet_jax.training.step_settings import StepSettings

SAMPLE = pathlib.Path(__file__).parents[2] / "data" / "sample"
SMALL_BYTES = (26 + 9) * 24 * 32 * 4
"""Bytes of `SMALL`'s images and labels; the split may take a quarter of a device's memory."""


def only_shards_fit(monkeypatch):
    monkeypatch.setattr(step_inputs, "memory_of", lambda device: SMALL_BYTES)  # a quarter each, double on eight


def confusion_of(folder):
    meta = meta_of(folder)
    return meta["last"]["step"], meta["last"]["confusion"], meta["best"]


@pytest.fixture(scope="module")
def by_host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "host"
    assert run("--run", folder, "--input", "host") == 0
    return folder


@pytest.mark.parametrize("place", ["device", pytest.param("shards", marks=pytest.mark.slow)])
def test_each_input_path_leaves_the_same_state_and_scores(by_host, tmp_path, monkeypatch, capsys, place):
    if place == "shards":
        only_shards_fit(monkeypatch)
    folder = tmp_path / place
    assert run("--run", folder, "--input", "device") == 0
    assert f"\ninput    {place}, " in capsys.readouterr().err
    assert digest_of(folder) == digest_of(by_host) and digest_of(folder)[0] == 6
    assert digest_of(folder, "best") == digest_of(by_host, "best")
    assert confusion_of(folder) == confusion_of(by_host)
    assert np.sum(confusion_of(folder)[1]) > 0


@pytest.mark.slow
def test_a_run_stopped_on_one_input_path_resumes_bit_for_bit_on_another(by_host, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "moved"
    go_on = partial(run, "--run", folder, "--resume")
    assert run("--run", folder, "--input", "host", "--max-steps", 2) == 0
    assert go_on("--input", "device", "--max-steps", 4) == 0
    only_shards_fit(monkeypatch)
    assert go_on("--input", "device") == 0
    placements = [line.split()[1] for line in capsys.readouterr().err.splitlines() if line.startswith("input ")]
    assert placements == ["host,", "device,", "shards,"]
    assert digest_of(folder) == digest_of(by_host) and confusion_of(folder) == confusion_of(by_host)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_three_steps_per_dispatch_log_every_step_and_end_like_single_steps(by_host, tmp_path, monkeypatch):
    resolve = trainer.resolve  # which takes one step a call on a CPU
    monkeypatch.setattr(trainer, "resolve", lambda *args: replace(resolve(*args), steps_per_dispatch=3))
    folder = tmp_path / "three"
    assert run("--run", folder, "--input", "device") == 0
    for (_, ours), (_, expected) in zip(leaves_of(folder), leaves_of(by_host), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    assert [row["step"] for row in rows_of(folder) if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert (folder / "train.log").read_text().count("compiled the training step") == 1
    for ours, expected in zip(rows_of(folder), rows_of(by_host), strict=True):
        assert (ours["kind"], ours["step"]) == (expected["kind"], expected["step"])
        np.testing.assert_allclose(ours["loss"], expected["loss"], rtol=1e-4)


@pytest.mark.parametrize("place, steps", [("device", 3), ("host", 1)])
def test_chosen_steps_per_dispatch_do_not_change_the_placement(tmp_path, monkeypatch, place, steps):
    monkeypatch.setattr(setup, "steps_per_dispatch", lambda config, devices, *lengths: 3)
    small = {"image_size": (32, 48), "batch_size_per_device": 1, "devices": "1"}
    config = Config(data=str(SAMPLE), init="none", input=place, **small)
    resolved = setup.resolve(config)
    assert resolved.steps_per_dispatch == 3
    loaded = setup.load_data(resolved, TORCH, np.ones(len(resolved.dataset.classes), np.float32))
    assert (loaded.placement, loaded.steps_per_dispatch) == (place, steps)


def test_several_steps_per_dispatch_from_the_host_are_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", *SMALL, "--steps-per-dispatch", "3", "--input", "host"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        run_command(command.main)
    assert left.value.code == 2
    error = "error: --steps-per-dispatch 3 works with --input device only, got --input host\n"
    assert capsys.readouterr().err == error
    assert not list(tmp_path.iterdir())


WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None  # to import either is an ImportError
folder, *flags = sys.argv[1:]
for place in ("device", "auto"):
    sys.argv = ["train", *flags, "--input", place, "--run", f"{folder}/{place}"]
    try:
        runpy.run_module("segnet_jax.train", run_name="__main__")
    except SystemExit as left:
        print("left with", left.code)
"""


@pytest.mark.slow  # test_rooms.py: TensorFlow is imported inside functions only
def test_a_folder_of_images_is_trained_on_without_tensorflow(tmp_path):
    flags = [
        *("--data", str(SAMPLE), "--image-size", "24", "32", "--init", "none", "--depth", "1", "--width", "0.0625"),
        *("--epochs", "1", "--max-steps", "2", "--batch-size-per-device", "1", "--devices", "1"),
    ]
    environment = os.environ | {"XLA_FLAGS": QUICK}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path), *flags],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.stdout.splitlines() == ["left with 0", "left with 0"] and done.returncode == 0, done.stderr
    assert done.stderr.count("\ninput    device, ") == 2 and "Traceback" not in done.stderr
    assert digest_of(tmp_path / "device") == digest_of(tmp_path / "auto")


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", [pytest.param("cpu", marks=pytest.mark.slow), "gpu"]
)  # on the CPU written out, elsewhere as a loop
def test_three_steps_in_one_dispatch_equal_three_dispatches(monkeypatch, backend):
    devices = choose_devices("2")
    model = SegNet(CLASSES, depth=1, width=0.0625, sync_axis=AXIS)
    settings = OptimizerSettings(learning_rate=0.05, schedule="poly")  # another rate each step
    optimizer, schedule = build_optimizer(settings, model, 5)
    first = create_state(init_variables(model, seed=0), optimizer, "float32")
    take = build_steps.build_train_step(
        step_inputs.Input(lambda: None, as_sent),
        devices,
        StepSettings(model, jnp.asarray(WEIGHTS), TORCH, optimizer, schedule),
    )
    batches = random_batch((2, 3, 1, 2))  # [L,K,A,B]

    state, singly = replicate(first, devices), []
    for k in range(3):
        state, metrics = take(state, jax.tree.map(lambda array, k=k: array[:, k : k + 1], batches))
        singly.append(jax.device_get(metrics))
    expected = jax.device_get(state), {name: np.concatenate([each[name] for each in singly]) for name in singly[0]}

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    state = replicate(first, devices)
    assert ("while" in take.program(state, batches).as_text()) == (backend == "gpu")
    together = jax.device_get(take(state, batches))
    assert_trees_close(together, expected, rtol=1e-6, atol=1e-6)
    assert int(together[0].step) == 3 and together[1]["loss"].shape == (3,)
    np.testing.assert_allclose(together[1]["learning_rate"], [schedule(step) for step in range(3)], rtol=1e-6)
    assert len(set(expected[1]["loss"].tolist())) == 3
