"""Test that an exported folder gives the predictions and scores of its run, and is refused if incomplete or unsafe."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from made_runs import make_run
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

import segnet_jax
from segnet_jax import evaluate, export, predict
from segnet_jax.config.flags import parse_flags
from segnet_jax.data.input_pipeline.cache import streamed
from segnet_jax.runs.load_dataset import open_data
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import UserError
from segnet_jax.training.network_source import NETWORK_FIELDS, READING_FIELDS

NETWORK = "network.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run", fit="letterbox", image_size=(24, 40), dropout=0.5)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "street"
    options = export.ExportOptions(str(run), format=("safetensors",), out=str(out), images=1)
    assert export.export(options) == 0
    return out


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for number, size in enumerate([(24, 40), (50, 31)]):
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def options_of(options, *flags):
    return parse_flags(options, [str(flag) for flag in flags], prog="p", description="")


def rewritten(folder, target, change):
    """Copy an exported folder with changed metadata."""
    target.mkdir()
    with safe_open(folder / NETWORK, "np") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, target / NETWORK, metadata)
    return target


@pytest.mark.slow
def test_load_and_predict_give_the_class_ids_of_the_run(run, folder, images, tmp_path):
    first, second = segnet_jax.load(run), segnet_jax.load(folder)
    assert (first.classes, first.step, first.preprocessing) == (second.classes, second.step, second.preprocessing)
    for source in (run, folder):
        flags = (source, images, "--out", tmp_path / source.name, "--devices", 1, "--samples", 2)
        assert predict.predict(options_of(predict.PredictOptions, *flags)) == 0
    for path in sorted(images.iterdir()):
        np.testing.assert_array_equal(first.predict(path), second.predict(path))
        ids = [np.asarray(Image.open(tmp_path / source.name / path.name)) for source in (run, folder)]
        np.testing.assert_array_equal(*ids)


def test_evaluate_gives_the_scores_of_the_run_and_needs_a_dataset(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(tmp_path / "cache"))
    data = _dataset(run, tmp_path / "data")
    flags = ("--data", data, "--no-boundary", "--devices", 1)
    scores = [
        evaluate.evaluate_to_json(options_of(evaluate.EvaluateOptions, source, *flags)) for source in (run, folder)
    ]
    for key in ("miou", "global_accuracy", "loss", "step", "checkpoint", "dataset"):
        assert scores[0][key] == scores[1][key]
    np.testing.assert_array_equal(scores[0]["confusion"], scores[1]["confusion"])
    assert "differences" in scores[0] and "differences" not in scores[1]  # how it was trained is unknown
    with pytest.raises(UserError, match="is an exported network, which does not name a dataset: add --data"):
        evaluate.evaluate(options_of(evaluate.EvaluateOptions, folder))
    with pytest.raises(UserError, match="recompute is not available for .*: it was exported, without its training"):
        evaluate.evaluate(options_of(evaluate.EvaluateOptions, folder, *flags, "--batch-norm", "recompute"))


def _dataset(run, folder):
    """Write rendered scenes as a dataset folder with the run's classes, and return it."""
    dataset = open_data(segnet_jax.load(run).config)
    for split in ("train", "val"):
        samples = streamed(dataset.splits[split], (24, 40))
        for kind, index in (("images", 0), ("labels", 1)):
            (folder / kind / split).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(samples.read(number)[index]).save(folder / kind / split / f"{split}{number}.png")
    names = "".join(f"{name}\n" for name in dataset.classes.names)
    (folder / "codes.txt").write_text(names)
    return folder


def test_the_code_of_the_card_runs(folder, images, capsys):
    page = (folder / "README.md").read_text()
    (code,) = re.findall("```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) == 5
    exec(code.replace("FOLDER", str(folder)).replace("street.jpg", str(images / "0.png")), {})
    assert set(eval(capsys.readouterr().out)) <= set(segnet_jax.load(folder).class_names)
    assert "rendered by segnet_jax" in page and str(folder.parent) not in page


def test_an_exported_folder_can_be_exported_again(folder, tmp_path):
    flags = (folder, "--data", "synthetic", "--format", "safetensors", "--images", 1, "--out", tmp_path / "again")
    assert export.export(options_of(export.ExportOptions, *flags)) == 0
    tensors = []
    for path in (folder, tmp_path / "again"):
        with safe_open(path / NETWORK, "np") as file:
            tensors.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    assert tensors[0].keys() == tensors[1].keys()
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_fields_of_an_export_hold_no_path_and_start_nothing():
    harmful = {"coordinator", "run", "data", "init", "follow_links", "images", "label_files", "resume", "override"}
    assert not harmful & {*NETWORK_FIELDS, *READING_FIELDS}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda meta, _: meta.update(network='{"coordinator": "there:1"}'), "sets coordinator, which an exported"),
        (lambda meta, _: meta.update(reading='{"follow_links": true}'), "sets follow_links, which an exported"),
        (lambda meta, _: meta.update(reading='{"run": "/tmp/x"}'), "sets run, which an exported"),
        (lambda meta, _: meta.update(reading='{"fits": 1}'), "unknown key 'fits'"),
        (lambda meta, _: meta.update(reading='{"fit": "x"}'), "fit in .* must be one of"),
        (lambda meta, _: meta.update(network='{"image_size": [9999999, 24]}'), "--image-size must be between"),
        (lambda meta, _: meta.update(network='{"depth": 2}'), "do not fit the network that it describes"),
        (lambda meta, _: meta.update(classes=json.dumps(["\x1b[2J", *"ABCDEFGHIJ"])), "unique printable names"),
        (lambda meta, _: meta.update(colors="[[0, 0, 999]]"), "has a class color that"),
        (lambda meta, _: meta.pop("colors"), "does not state the color and the weight of each class"),
        (lambda meta, _: meta.update(colors="[[0, 0, 9]]"), "does not state the color and the weight of each class"),
        (lambda meta, _: meta.update(class_weights="[1, -1]"), "has a class weight that"),
        (lambda meta, _: meta.update(class_weights="[1]"), "does not state the color and the weight of each class"),
        (lambda meta, _: meta.pop("network"), "has no valid network in its metadata"),
        (lambda _, tensors: tensors.pop("conv1_1.weight"), "do not fit the network that it describes"),
        (lambda _, tensors: tensors["conv1_1.weight"].fill(np.inf), "not finite"),
    ],
)
def test_a_folder_that_is_not_whole_or_sets_too_much_is_refused(folder, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        segnet_jax.load(rewritten(folder, tmp_path / "changed", change))


def test_a_link_a_pipe_and_a_damaged_label_rule_are_refused(folder, tmp_path):
    for name, make in {"link": lambda path: path.symlink_to(folder / NETWORK), "pipe": os.mkfifo}.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name / NETWORK)
        with pytest.raises(untrusted_files.Refused):
            segnet_jax.load(tmp_path / name)
    changed = rewritten(folder, tmp_path / "changed", lambda meta, _: meta.update(labels='{"names": 1}'))
    with pytest.raises(UserError, match="label rule in .* is damaged"):
        evaluate.evaluate(options_of(evaluate.EvaluateOptions, changed, "--data", "synthetic"))


@pytest.mark.parametrize("name", ["nowhere", "n" * 300, "file", "empty"])
def test_what_is_no_folder_with_a_network_is_refused_as_no_run(name, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="^no run "):
        segnet_jax.load(tmp_path / name)


def test_only_the_exported_checkpoint_can_be_chosen(folder):
    assert segnet_jax.load(folder, checkpoint="best").step == 7
    with pytest.raises(UserError, match="contains step 7, the best, not the newest checkpoint"):
        segnet_jax.load(folder, checkpoint="newest")


def test_a_file_of_an_older_version_is_loaded(folder, tmp_path):
    def change(meta, _):
        for name in ("reading", "labels", "class_weights"):
            meta.pop(name, None)

    assert segnet_jax.load(rewritten(folder, tmp_path / "old", change)).config.fit == "stretch"
    shutil.rmtree(tmp_path / "old")
