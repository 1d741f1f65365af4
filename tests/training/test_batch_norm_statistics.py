"""Test precise batch-norm statistics: compared with numpy, saved next to the checkpoint, evaluated and used."""

import csv
import dataclasses
import json
import re
import shutil
import tomllib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_device_resident import random_samples
from test_evaluate import evaluate
from test_train import digest_of, latest_of, restored, run

import segnet_jax
from segnet_jax import train
from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.data.input_pipeline.cache import from_arrays
from segnet_jax.data.synthetic.street_scenes import street_scenes
from segnet_jax.distributed.data_parallel import AXIS, choose_devices, replicate
from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.nn.segnet import SegNet
from segnet_jax.runs import trainer
from segnet_jax.runs.result import result_variables
from segnet_jax.system.errors import Stopped
from segnet_jax.training import batch_norm_statistics
from segnet_jax.training.batch_norm_statistics import pool_moments, precise_statistics
from segnet_jax.training.restore_network import restore
from segnet_jax.training.state import init_variables

RECIPE = "--ema-decay 0.7 --batch-norm recompute --devices 2 --batch-size-per-device 4 --seed 5".split()
RULES = {"running", "recompute"}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert run("--run", folder, *RECIPE) == 0
    assert latest_of(folder, "best") < latest_of(folder)  # the seed is chosen so that their statistics differ
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Train a run and remove the newest fields from its config, as if by an older version."""
    folder = tmp_path_factory.mktemp("runs") / "old"
    assert run("--run", folder) == 0
    text = (folder / "config.toml").read_text()
    text = re.sub(r"^(scale|color|ema_decay|batch_norm) = .*\n", "", text, flags=re.MULTILINE)
    assert not {"scale", "color", "ema_decay", "batch_norm"} & tomllib.loads(text).keys()
    (folder / "config.toml").write_text(text)
    return folder


def manifest_of(folder, which):
    return json.loads((folder / "checkpoints" / which / str(latest_of(folder, which)) / "manifest.json").read_text())


def kept_of(folder, which):
    return folder / "checkpoints" / "statistics" / manifest_of(folder, which)["state"][:16]


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def first_layer_by_numpy(images, kernel, preprocessing, seed, batch_size):
    """Return the first convolution's mean and variance averaged over batches, in the sampler's order."""
    order = np.argsort(np.random.Philox(key=[seed, 0]).random_raw((1, len(images)))[0], kind="stable")
    kernel, moments = np.float64(kernel), []
    height, width = images.shape[1:3]
    for first in range(0, len(images) - batch_size + 1, batch_size):
        image = images[order[first : first + batch_size]].astype(np.float64)
        image = (image - preprocessing.mean) / preprocessing.std
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
        outputs = sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))
        moments.append((outputs.mean((0, 1, 2)), outputs.var((0, 1, 2))))
    return np.mean(moments, axis=0)


@pytest.mark.parametrize("count", [1, 3, 8])  # eight images cannot be split over three devices: two are used
def test_the_statistics_are_those_of_numpy_on_any_devices(count):
    config = Config(seed=3, grad_accum_steps=2, depth=1, width=1 / 16)
    samples = random_samples(27, 8, 10)  # three batches of eight, and three images left over
    model = SegNet(3, depth=1, width=1 / 16, sync_axis=AXIS)
    devices = choose_devices(str(count))
    variables = replicate(init_variables(model, seed=0), devices)
    found = precise_statistics(config, 16, model, variables, samples, TORCH, devices)
    kernel = np.asarray(variables["params"]["conv1_1"]["kernel"])
    mean, var = first_layer_by_numpy(samples.images, kernel, TORCH, seed=3, batch_size=8)
    np.testing.assert_allclose(found["conv1_1_bn"]["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["conv1_1_bn"]["var"], var, rtol=1e-4)


def test_without_synchronized_statistics_the_batches_are_those_of_single_devices():
    config = Config(seed=3, batch_size_per_device=4, depth=1, width=1 / 16, sync_batch_norm=False)
    samples, model = random_samples(24, 8, 10), SegNet(3, depth=1, width=1 / 16)
    variables = replicate(init_variables(model, seed=0), devices := choose_devices("2"))
    found = precise_statistics(config, 8, model, variables, samples, TORCH, devices)
    kernel = np.asarray(variables["params"]["conv1_1"]["kernel"])
    mean, var = first_layer_by_numpy(samples.images, kernel, TORCH, seed=3, batch_size=4)
    np.testing.assert_allclose(found["conv1_1_bn"]["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["conv1_1_bn"]["var"], var, rtol=1e-4)


def convolution_inputs_by_numpy(images, params, batch_size, chunk_size):
    """Return the inputs of each BatchNorm of a one-stage SegNet over all images, by name: float64 [N,H,W,C].

    Whole batches in Philox's order, then chunks of the rest; each is normalized by its own statistics.
    """
    order = np.argsort(np.random.Philox(key=[3, 0]).random_raw((1, len(images)))[0], kind="stable")
    whole = len(images) // batch_size * batch_size
    parts = [order[i : i + batch_size] for i in range(0, whole, batch_size)]
    parts += [order[i : i + chunk_size] for i in range(whole, len(images), chunk_size)]
    seen = {}

    def block(x, name):
        kernel = np.float64(params[name]["kernel"])
        height, width = x.shape[1:3]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))
        seen.setdefault(name, []).append(x)
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return np.maximum((x - mean) / np.sqrt(var + 1e-5), 0)  # scale 1 and shift 0

    for part in parts:
        x = (images[part].astype(np.float64) - TORCH.mean) / TORCH.std
        x = block(block(x, "conv1_1"), "conv1_2")
        n, height, width, channels = x.shape
        windows = x.reshape(n, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3).reshape(n, -1, 4, channels)
        first = windows.argmax(2, keepdims=True) == np.arange(4)[:, None]
        cells = np.where(first, windows, 0).reshape(n, height // 2, width // 2, 2, 2, channels)
        block(block(cells.swapaxes(2, 3).reshape(x.shape), "conv1_2_D"), "conv1_1_D")
    return {name: np.concatenate(each) for name, each in seen.items()}


@pytest.mark.parametrize(
    ("count", "sync", "batch_size"),
    [(1, True, 8), pytest.param(3, True, 8, marks=pytest.mark.slow), (8, True, 8), (2, False, 3)],
)
def test_population_statistics_are_those_of_all_pixels_of_the_training_set(count, sync, batch_size):
    """Check 27 images of very different brightness in batches of eight: the last three are processed as two and one."""
    config = Config(
        seed=3, grad_accum_steps=2, batch_size_per_device=2 if sync else 3, batch_norm_variance="population"
    )
    config = dataclasses.replace(config, sync_batch_norm=sync)
    noise = np.random.default_rng(1).integers(0, 60, (27, 8, 10, 3))
    images = (noise + np.random.default_rng(2).integers(0, 196, (27, 1, 1, 3))).astype(np.uint8)
    samples = from_arrays(images, np.zeros((27, 8, 10), np.uint8))
    settings = {"depth": 1, "width": 1 / 16, "final_batch_norm": True}
    model = SegNet(3, sync_axis=AXIS if sync else None, **settings)
    variables, passed = replicate(init_variables(model, seed=0), devices := choose_devices(str(count))), []
    recomputed = partial(precise_statistics, model=model, variables=variables, samples=samples, preprocessing=TORCH)
    global_batch_size = 2 * batch_size * (1 if sync else count)  # of two accumulated batches
    found = recomputed(config, global_batch_size, devices=devices, on_images=passed.append)
    assert sum(passed) == 27
    whole, chunk = (8, 2) if sync else (3, 3)  # not synchronized: three images of each device, and of what is left
    seen = convolution_inputs_by_numpy(images, variables["params"], whole, chunk)
    assert {f"{name}_bn" for name in seen} == found.keys() and all(len(each) == 27 for each in seen.values())
    for name, values in seen.items():
        statistics = found[f"{name}_bn"]
        np.testing.assert_allclose(statistics["mean"], values.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(statistics["var"], values.var((0, 1, 2)), rtol=1e-4)
        assert {array.dtype for array in statistics.values()} == {np.dtype(np.float32)}
    if count == 1:  # the mean of the batches' variances lacks the variance of their means
        config = dataclasses.replace(config, batch_norm_variance="batches")
        by_batch = recomputed(config, global_batch_size, devices=devices)
        assert (found["conv1_1_bn"]["var"] > 1.05 * by_batch["conv1_1_bn"]["var"]).any()


def test_moments_of_unequal_parts_pool_to_those_of_the_whole():
    values = np.random.default_rng(0).normal(50, [1, 3], (100, 2)) + np.arange(100)[:, None] // 40
    parts = [values[:7], values[7:60], values[60:]]
    moments = [{"mean": part.mean(0), "var": part.var(0)} for part in parts]
    pooled = pool_moments([7, 53, 40], moments)
    np.testing.assert_allclose(pooled["mean"], values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(pooled["var"], values.var(0), rtol=1e-6)


def test_statistics_computed_differently_replace_the_saved_ones(tmp_path):
    ways = [("batches", 1.0), ("batches", 2.0), ("population", 3.0)]
    kept = []
    for way, value in ways:
        batch_stats = {"a_bn": {"mean": np.full(2, value, np.float32)}}
        batch_norm_statistics.save_statistics(tmp_path, "0" * 64, batch_stats, {"variance": way})
        kept.append(float(batch_norm_statistics.load_statistics(tmp_path, "0" * 64, batch_stats)["a_bn"]["mean"][0]))
    assert kept == [1.0, 1.0, 3.0]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["newest", "best"])
def test_the_statistics_of_a_run_are_those_of_its_averaged_parameters(unbroken, which):
    split = street_scenes(26, 9, 24, 32, seed=5).splits["train"]
    images = np.stack([split.read(index)[0] for index in range(26)])
    average = restored(unbroken, which)["ema"]
    mean, var = first_layer_by_numpy(images, average["params"]["conv1_1"]["kernel"], TORCH, seed=5, batch_size=8)
    found = load_file(kept_of(unbroken, which) / "batch_stats.safetensors")
    np.testing.assert_allclose(found["conv1_1_bn/mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["conv1_1_bn/var"], var, rtol=1e-4)
    assert not np.allclose(average["batch_stats"]["conv1_1_bn"]["mean"], mean, rtol=1e-2)


@pytest.mark.slow
def test_the_result_has_both_scores_and_the_recomputed_one_is_the_main_one(unbroken, tmp_path):
    found = result_of(unbroken)
    both = found["batch_norm"]
    assert both.keys() == RULES
    assert both["recompute"] == {name: found[name] for name in ("miou", "mean_accuracy", "global_accuracy")}
    rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    assert both["running"]["miou"] == max(row["miou"] for row in rows if row["kind"] == "val")
    assert both["running"] != both["recompute"]
    for flags, expected in (((), "recompute"), (("--batch-norm", "running"), "running")):
        assert evaluate(unbroken, "--json", tmp_path / "scores.json", "--devices", 1, *flags) == 0
        summary = json.loads((tmp_path / "scores.json").read_text())
        assert summary["miou"] == pytest.approx(both[expected]["miou"], abs=1e-3)
        assert set(summary.get("batch_norm", {})) == (RULES if expected == "recompute" else set())


def test_the_report_shows_the_recomputed_scores_throughout(unbroken):
    found = result_of(unbroken)
    assert "precise batch-norm statistics" in (unbroken / "report.html").read_text()
    names, *rows = csv.reader((unbroken / "confusion.csv").open())
    counts = np.array([row[1:] for row in rows], int)
    assert counts.tolist() == found["confusion"] and names[1:] == list(found["per_class"])
    assert np.trace(counts) / counts.sum() == pytest.approx(found["batch_norm"]["recompute"]["global_accuracy"])


def test_a_run_with_running_statistics_is_scored_with_both_too(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    shutil.rmtree(folder / "checkpoints" / "statistics")
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('batch_norm = "recompute"', 'batch_norm = "running"'))
    flags = (
        "--batch-norm",
        "recompute",
        "--devices",
        8,
        "--batch-size-per-device",
        1,
        "--json",
        tmp_path / "scores.json",
    )
    assert evaluate(folder, *flags) == 0
    summary = json.loads((tmp_path / "scores.json").read_text())
    assert summary["batch_norm"] == result_of(unbroken)["batch_norm"]
    assert summary["miou"] == summary["batch_norm"]["recompute"]["miou"]


@pytest.mark.slow
def test_stopping_and_resuming_gives_the_unbroken_run_bit_for_bit(unbroken, tmp_path):
    folder = tmp_path / "broken"
    assert run("--run", folder, *RECIPE, "--max-steps", 2) == 0
    assert not (folder / "checkpoints" / "statistics").exists()
    again = parse_config(["--run", str(folder), "--resume"], prog="segnet_jax.train", description="")
    assert train.train(again) == 0
    for which in ("newest", "best"):
        assert digest_of(folder, which) == digest_of(unbroken, which)
        ours, theirs = (kept_of(each, which) / "batch_stats.safetensors" for each in (folder, unbroken))
        assert ours.read_bytes() == theirs.read_bytes()
    assert result_of(folder)["batch_norm"] == result_of(unbroken)["batch_norm"]


@pytest.mark.slow
def test_a_run_killed_before_its_statistics_computes_them_when_resumed(unbroken, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    shutil.copytree(unbroken, folder)
    shutil.rmtree(folder / "checkpoints" / "statistics")
    (folder / "result.json").unlink()

    def asked_to_leave(*_):
        raise Stopped(143)

    with monkeypatch.context() as killed:
        killed.setattr("segnet_jax.training.batch_norm_statistics.average_statistics", asked_to_leave)
        with pytest.raises(Stopped, match="Step 6 is saved and verified; resume with"):
            run("--run", folder, *RECIPE)
    assert run("--run", folder, *RECIPE) == 0
    assert result_of(folder)["batch_norm"] == result_of(unbroken)["batch_norm"]
    assert digest_of(folder) == digest_of(unbroken)


@pytest.mark.slow
def test_if_the_best_checkpoint_is_damaged_during_training_the_result_has_running_statistics(
    unbroken, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "broken"

    def break_the_best(*args):
        best = folder / "checkpoints" / "best" / str(latest_of(folder, "best"))
        (best / "meta.json").write_bytes((best / "meta.json").read_bytes()[:-1])
        return result_variables(*args)

    monkeypatch.setattr(trainer, "result_variables", break_the_best)
    assert run("--run", folder, *RECIPE) == 0
    summary, whole = result_of(folder), result_of(unbroken)
    assert summary["miou"] == whole["batch_norm"]["running"]["miou"] and summary["step"] == whole["step"]
    assert not {"boundary_f1", "batch_norm"} & summary.keys() and "boundary_f1" in whole
    assert "is damaged: the result has no boundary F1 and uses the running" in "".join(capsys.readouterr())
    assert kept_of(folder, "newest").is_dir()


@pytest.mark.slow
def test_an_old_run_is_scored_with_both_and_nothing_in_it_changes(old, tmp_path):
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    summary = {}
    for devices, batch in ((8, 1), (3, 2), (1, 4)):
        path = tmp_path / f"{devices}.json"
        flags = ("--batch-norm", "recompute", "--devices", devices, "--batch-size-per-device", batch, "--json", path)
        assert evaluate(old, *flags) == 0
        summary[devices] = json.loads(path.read_text())
    for each in summary.values():  # neither depends on the devices; a pixel at the edge of two classes may
        assert each["batch_norm"].keys() == RULES
        assert each["batch_norm"]["running"]["miou"] == pytest.approx(result_of(old)["miou"], abs=1e-3)
        assert np.abs(np.subtract(each["confusion"], summary[8]["confusion"])).sum() <= 8
    assert summary[8]["batch_norm"]["running"]["miou"] == result_of(old)["miou"]
    assert summary[8]["miou"] == summary[8]["batch_norm"]["recompute"]["miou"] != result_of(old)["miou"]
    assert evaluate(old, "--json", tmp_path / "plain.json") == 0
    assert "batch_norm" not in json.loads((tmp_path / "plain.json").read_text())
    assert before == {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}


def test_a_loaded_network_has_the_recomputed_statistics_and_the_averaged_parameters(unbroken):
    network = segnet_jax.load(unbroken, precision="float32")
    found = load_file(kept_of(unbroken, "best") / "batch_stats.safetensors")
    batch_stats: dict = {}
    for name, array in found.items():
        layer, statistic = name.split("/")
        batch_stats.setdefault(layer, {})[statistic] = jnp.asarray(array)
    params = jax.tree.map(jnp.asarray, restored(unbroken, "best")["ema"]["params"])
    expected = fold_batch_norm({"params": params, "batch_stats": batch_stats}, network.model)
    for ours, theirs in zip(jax.tree.leaves(network.variables), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("damage", ["gone", "cut off", "of another state"])
def test_damaged_statistics_are_reported_and_the_running_ones_used(unbroken, tmp_path, damage, logged):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    kept = kept_of(folder, "best")
    match damage:
        case "gone":
            shutil.rmtree(kept.parent)
        case "cut off":
            path = kept / "batch_stats.safetensors"
            path.write_bytes(path.read_bytes()[:-1])
        case "of another state":
            shutil.rmtree(kept)
            batch_norm_statistics.save_statistics(
                folder / "checkpoints", "0" * 64, {"a": {"mean": np.zeros(1, np.float32)}}, {}
            )
            kept.with_name("0" * 16).rename(kept)
    loaded = restore(str(folder), files.read_run(folder), "best", choose_devices("1"), "float32")
    assert logged[-1].endswith("has no precise batch-norm statistics: the running statistics are used")
    running = restored(folder, "best")["ema"]["batch_stats"]
    for ours, theirs in zip(jax.tree.leaves(loaded.variables["batch_stats"]), jax.tree.leaves(running), strict=True):
        np.testing.assert_array_equal(ours, theirs)
