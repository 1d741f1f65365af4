"""Test checkpoints with valid manifests and invalid content: exit code 3 and one line in every command."""

import json
import shutil

import jax
import numpy as np
import pytest
from made_runs import CONFIG, make_run

import segnet_jax
from segnet_jax.distributed.data_parallel import choose_devices, replicate
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import NoCheckpoint
from segnet_jax.training import build_model
from segnet_jax.training.checkpoint_content import best_evaluation, check_meta
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.manifest import MANIFEST, finalize

EXPERIMENT = {"experiment": CONFIG.experiment(), "config": CONFIG.hash()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run", changed_meta=EXPERIMENT)


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def rewritten(run, change):
    """Change a run's best checkpoint and write a valid manifest."""
    folder = run / "checkpoints" / "best" / "7"
    facts = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    change(folder)
    partial = folder.rename(folder.with_name(".7.partial"))
    finalize(partial, folder, {name: facts[name] for name in ("step", "config", "state")})


def meta_changed(**changes):
    def change(folder):
        meta = json.loads((folder / "meta.json").read_text()) | changes
        (folder / "meta.json").write_text(json.dumps({name: each for name, each in meta.items() if each != "gone"}))

    return change


def text(content):
    return lambda folder: (folder / "meta.json").write_text(content)


METAS = {
    "a list": text("[]"),
    "a number": text("7"),
    "deep": text("[" * 100_000),
    "no JSON": text("{"),
    "empty": text(""),
    "not UTF-8": lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe{}"),
    "gone": lambda folder: (folder / "meta.json").unlink(),
    "no classes": meta_changed(classes="gone"),
    "classes of numbers": meta_changed(classes=list(range(11))),
    "classes with escapes": meta_changed(classes=["\x1b[2J", *"abcdefghij"]),
    "classes that turn the line": meta_changed(classes=["\u202eabc", *"abcdefghij"]),
    "a million classes": meta_changed(classes=[str(i) for i in range(100_000)]),
    "colors of text": meta_changed(colors=["red"] * 11),
    "fewer colors": meta_changed(colors=[[0, 0, 0]]),
    "std of zero": meta_changed(preprocessing={"mean": [0, 0, 0], "std": [0, 0, 0]}),
    "preprocessing of another kind": meta_changed(preprocessing=[1]),
    "another precision": meta_changed(precision="float8"),
    "precision a list": meta_changed(precision=[]),
    "weights that are not finite": meta_changed(class_weights=[float("nan")] * 11),
    "step of text": meta_changed(step="7"),
    "step below 0": meta_changed(step=-1),
}


@pytest.mark.parametrize("name", METAS)
def test_a_strange_description_is_refused(run, name):
    rewritten(run, METAS[name])
    with pytest.raises(NoCheckpoint) as error:
        segnet_jax.load(run)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value) and len(str(error.value)) < 1000


TO_RESUME = {
    "seconds": ["1", -1, float("nan")],
    "class_weights_by": [3, None],
    "data": [[], {"train": 1}, None],
    "global_batch_size": [0, "8"],
    "last": [3, {"step": 1}, {"step": 1, "confusion": [[1]]}, {"step": 1, "confusion": "x"}],
    "best": [[], {"step": -1, "confusion": [[0] * 11] * 11}, {"step": 1, "confusion": [[-1] * 11] * 11}],
}


@pytest.mark.parametrize("name", TO_RESUME)
def test_metadata_for_resuming_is_validated_too(run, name):
    meta = json.loads((run / "checkpoints" / "best" / "7" / "meta.json").read_text())
    valid = meta | {"seconds": 1.0, "class_weights_by": "none", "data": {"train": "0"}, "global_batch_size": 4}
    valid |= {"last": None, "best": {"step": 1, "confusion": [[0] * 11] * 11}}
    assert check_meta(valid, "it", is_resumed=True) == valid
    for value in TO_RESUME[name]:
        with pytest.raises(NoCheckpoint, match=f"{name} is invalid in its metadata"):
            check_meta(valid | {name: value}, "it", is_resumed=True)
    with pytest.raises(NoCheckpoint, match="is missing"):
        check_meta({each: valid[each] for each in valid if each != name}, "it", is_resumed=True)


@pytest.mark.parametrize(
    "meta", [[], {}, {"best": 3}, {"best": {"step": 1}}, {"best": {"step": 1, "confusion": [[1, 2]]}}]
)
def test_the_best_evaluation_is_validated_too(meta):
    with pytest.raises(NoCheckpoint, match="its best evaluation is invalid"):
        best_evaluation(meta, "it")
    best = {"step": 1, "confusion": [[1, 2], [3, 4]]}
    assert best_evaluation({"best": best}, "it") == best and best_evaluation({"best": None}, "it") is None


def another_state(run, change, **settings):
    """Replace the state of the best checkpoint and keep its metadata."""
    import dataclasses

    from random_variables import random_variables

    from segnet_jax.training.state import create_state

    config = dataclasses.replace(CONFIG, **settings)
    devices = choose_devices("1")
    model = build_model.build_model(config, 11, "float32")
    optimizer, _ = build_model.build_optimizer(config, model, steps_per_epoch=1)
    state = change(create_state(random_variables(model, 7), optimizer, "float32"))
    meta = json.loads((run / "checkpoints" / "best" / "7" / "meta.json").read_text())
    shutil.rmtree(run / "checkpoints" / "best")
    with Checkpoints(run / "checkpoints", devices) as checkpoints:
        checkpoints.save("best", 7, replicate(state, devices), meta)


def with_leaf(name, value):
    def change(state):
        stats = jax.tree.map(np.array, state.batch_stats)
        next(iter(stats.values()))[name][0] = value
        return state.replace(batch_stats=stats)

    return change


STATES = {
    "mean is NaN": (with_leaf("mean", np.nan), {}, "mean.* is not finite"),
    "variance is infinite": (with_leaf("var", np.inf), {}, "var.* is not finite"),
    "variance below 0": (with_leaf("var", -1.0), {}, "has a negative variance"),
    "a wider network": (lambda state: state, {"width": 0.5}, "is larger than|does not contain the state"),
    "a narrower network": (lambda state: state, {"width": 1 / 32}, "does not contain the state"),
    "a deeper network": (lambda state: state, {"depth": 2}, "is larger than|does not contain the state"),
    "no statistics": (lambda state: state.replace(batch_stats={}), {}, "does not contain the state"),
    "foreign names": (lambda state: state.replace(params={"x": state.params}), {}, "does not contain the state"),
}


@pytest.mark.parametrize("name", STATES)
def test_an_invalid_state_is_refused(run, name):
    change, settings, message = STATES[name]
    another_state(run, change, **settings)
    with pytest.raises(NoCheckpoint, match=message):
        segnet_jax.load(run)


def test_without_a_state_nothing_is_read(run):
    rewritten(run, lambda folder: shutil.rmtree(folder / "state"))
    with pytest.raises(NoCheckpoint, match="does not contain a state"):
        segnet_jax.load(run)


def test_no_checksum_of_a_huge_checkpoint_is_computed(run):
    folder = run / "checkpoints" / "best" / "7"
    manifest = json.loads((folder / MANIFEST).read_text())
    with open(folder / "state" / "more", "wb") as file:
        file.truncate(2**40)
    from segnet_jax.training.manifest import _sum_of

    manifest.pop("sha256")
    manifest["files"]["state/more"] = {"bytes": 2**40, "sha256": "0" * 64}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"sha256": _sum_of(manifest)}))
    with pytest.raises(NoCheckpoint, match="no intact best checkpoint in"):
        segnet_jax.load(run)


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_commands_exit_with_3_and_one_line(run, command, monkeypatch, capsys):
    import importlib

    rewritten(run, METAS["classes with escapes"])
    more = ["data/sample/val/val_00000.png"] if command == "predict" else []
    monkeypatch.setattr("sys.argv", [command, str(run), *more])
    module = importlib.import_module(f"segnet_jax.{command}")
    with pytest.raises(SystemExit) as left:
        run_command(module.main)
    printed = capsys.readouterr().err
    assert left.value.code == 3 and printed.splitlines()[-1].startswith("error: the best checkpoint of")
    assert printed.count("error:") == 1 and "\x1b" not in printed
