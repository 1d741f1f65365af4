"""Check that a non-finite step stops training, is reported with its images, and is never saved; its batch is stored."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import latest_of, restored, run

from segnet_jax import evaluate
from segnet_jax.benchmarks import run as benchmarks_run
from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.runs.out_of_memory import memory_advice
from segnet_jax.system.errors import NotFinite, OutOfMemory
from segnet_jax.training import build_steps
from segnet_jax.training import steps as module
from segnet_jax.training.losses import cross_entropy_sum
from segnet_jax.training.manifest import verify
from segnet_jax.training.precision import LossScale
from segnet_jax.training.small_arrays import all_finite

PLAN = Sampler(num_samples=26, global_batch_size=8, seed=0, flip=True, shift=10)


class Poisoned:
    """A wrapped network whose new statistics are NaN if a flag is set."""

    def __init__(self, model, is_bad):
        self._model, self._is_bad = model, is_bad

    def __getattr__(self, name):
        return getattr(self._model, name)

    def apply(self, *args, **settings):
        logits, updated = self._model.apply(*args, **settings)
        return logits, jax.tree.map(lambda leaf: jnp.where(self._is_bad, jnp.nan, leaf), updated)


def poison(monkeypatch, where, bad_step, value=jnp.nan):
    """Inject a NaN into the training step at one place and one step, counted from 1."""
    train_step, is_bad = module.train_step, [False]

    def poisoned(state, batch, settings):
        is_bad[0] = state.step == bad_step - 1
        if where == "batch norm":
            settings = dataclasses.replace(settings, model=Poisoned(settings.model, is_bad[0]))
        if where in losses:
            settings = dataclasses.replace(settings, loss=losses[where])
        result = train_step(state, batch, settings)
        is_bad[0] = False  # evaluation uses some of the patched functions
        return result

    monkeypatch.setattr(module, "train_step", poisoned)
    normalize = module.normalize

    def steep(logits, *args):  # a finite loss: the root of 0 has no finite slope
        return cross_entropy_sum(logits, *args) + jnp.sqrt(jnp.where(is_bad[0], 0.0 * logits.sum(), 1.0)) - 1.0

    losses = {"loss": lambda *args: jnp.where(is_bad[0], value, cross_entropy_sum(*args)), "gradient": steep}
    if where == "input":
        monkeypatch.setattr(module, "normalize", lambda *args: jnp.where(is_bad[0], value, normalize(*args)))


STEPS, PLACES = (1, 2, 4, 6), ("loss", "gradient", "batch norm", "input")
QUICK = {(4, "loss")}  # after a state was saved


@pytest.mark.parametrize(
    "bad_step, where",
    [
        pytest.param(step, place, marks=[] if (step, place) in QUICK else pytest.mark.slow)
        for step in STEPS
        for place in PLACES
    ],
)
def test_the_training_ends_with_the_step_and_its_images_and_the_last_finite_state(
    tmp_path, monkeypatch, where, bad_step
):
    folder = tmp_path / "run"
    with monkeypatch.context() as poisoned:
        poison(poisoned, where, bad_step)
        with pytest.raises(NotFinite) as ended:
            run("--run", folder)
    names = [f"train_{index:05}" for index in PLAN.batch(bad_step - 1).index]
    message = str(ended.value)
    assert ended.value.exit_code == 6 and f"step {bad_step} was not finite" in message
    note = json.loads((folder / "incident" / f"step_{bad_step:07}.json").read_text())
    assert note["step"] == bad_step and len(note["images"]) == 8
    assert [name in message for name in note["images"]] == [True] * 5 + [False] * 3 and "and 3 more" in message
    assert sorted(name.split("_")[-1].lstrip("0") for name in note["images"]) == sorted(
        name.split("_")[-1].lstrip("0") for name in names
    )
    kept = np.load(folder / "incident" / f"step_{bad_step:07}.npz")
    assert kept["image"].shape == (8, 24, 32, 3) and kept["label"].shape == (8, 24, 32)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, bad_step))
    outcome = json.loads((folder / "outcome.json").read_text())
    assert (outcome["exit_code"], outcome["saved"]) == (6, bad_step - 1 or None)
    for path in (folder / "checkpoints").glob("*/[0-9]*"):
        verify(path)
    if bad_step > 1:
        assert latest_of(folder) == bad_step - 1 and all_finite(restored(folder)["params"])
        assert run("--run", folder) == 0  # without the poison it resumes and finishes
        assert latest_of(folder) == 6


def test_a_state_that_is_not_finite_is_never_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("segnet_jax.runs.trainer.is_finite", lambda state: False)
    with pytest.raises(NotFinite):
        run("--run", tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*/[0-9]*"))


def test_float16_gives_up_when_the_loss_scale_cannot_fall_further(tmp_path, monkeypatch):
    create = LossScale.create
    monkeypatch.setattr(LossScale, "create", lambda: create().replace(scale=jnp.float32(4.0)))
    train_step = module.train_step

    def without_loss(state, batch, settings):
        loss = lambda logits, *_: jnp.nan * logits.astype(jnp.float32).sum()  # noqa: E731
        return train_step(state, batch, dataclasses.replace(settings, loss=loss))

    monkeypatch.setattr(module, "train_step", without_loss)
    with pytest.raises(NotFinite, match="step 3 was not finite"):  # 4 -> 2 -> 1
        run("--run", tmp_path / "run", "--precision", "float16")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["skipped"], row["loss_scale"]) for row in rows] == [(1, 1, 2.0), (2, 2, 1.0)]


@pytest.mark.slow
def test_out_of_memory_names_the_batch_and_suggests_flags(tmp_path, monkeypatch):
    build, calls = build_steps.build_train_step, []

    def starved(*args, **settings):
        step = build(*args, **settings)

        def call(*inputs):
            calls.append(1)
            if len(calls) == 5:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")
            return step(*inputs)

        return call

    monkeypatch.setattr(build_steps, "build_train_step", starved)
    folder = tmp_path / "run"
    with pytest.raises(OutOfMemory) as ended:
        run("--run", folder, "--batch-size-per-device", 2, "--devices", 4)
    message = str(ended.value)
    assert ended.value.exit_code == 7 and "out of memory on 4 x cpu, which have" in message
    assert "with --batch-size-per-device 2 at 24x32; try --batch-size-per-device 1 --grad-accum-steps 2" in message
    outcome = json.loads((folder / "outcome.json").read_text())
    assert (outcome["exit_code"], outcome["saved"]) == (7, 3)  # the first epoch's
    advised = ("--batch-size-per-device", 1, "--grad-accum-steps", 2, "--override")
    assert " ".join(map(str, advised)) in message
    assert run("--run", folder, "--devices", 4, *advised, "--max-steps", 3) == 0


def a_gpu(capability):
    return SimpleNamespace(platform="gpu", compute_capability=capability)


@pytest.mark.parametrize(
    "given, device, has_run, expected",
    [
        (
            {"batch_size_per_device": 15, "grad_accum_steps": 2},
            a_gpu("8.0"),
            True,
            "--batch-size-per-device 5 --grad-accum-steps 6 --override, the same global batch, or --input host, or in "
            "a new --run --precision bfloat16 or a smaller --image-size",
        ),
        (
            {"batch_size_per_device": 7, "precision": "float32"},
            a_gpu("7.0"),
            False,
            "--batch-size-per-device 1 --grad-accum-steps 7, the same global batch, or --input host, or --precision "
            "float16 or a smaller --image-size",
        ),
        ({"batch_size_per_device": 1, "input": "host", "precision": "auto"}, a_gpu("9.0"), False, None),
        ({"batch_size_per_device": 1, "input": "host", "precision": "bfloat16"}, a_gpu("7.5"), False, None),
        (
            {"batch_size_per_device": 1, "steps_per_dispatch": 4},
            SimpleNamespace(platform="cpu"),
            False,
            "--input host --steps-per-dispatch 1, or a smaller --image-size",
        ),
    ],
)
def test_what_is_advised_is_the_same_batch_and_what_the_device_and_the_run_can_bear(given, device, has_run, expected):
    config = Config(**{"precision": "float32", **given})
    assert memory_advice(config, device, has_run) == (expected or "a smaller --image-size")


@pytest.mark.parametrize(
    "flags, expected",
    [
        (evaluate.EvaluateOptions, "--batch-size-per-device 2"),
        (
            benchmarks_run.BenchmarkOptions,
            "--batch-size-per-device 2, or --input host, or --precision bfloat16 or a smaller --image-size",
        ),
    ],
)
def test_only_flags_that_the_command_has_are_advised(flags, expected):
    config = Config(batch_size_per_device=5, precision="float32")
    assert memory_advice(config, a_gpu("8.0"), False, flags) == expected
