"""Test `network_linknet.patch`: the interface, training, freezing, evaluation, export, prediction and FLOP count."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from random_variables import random_variables
from test_train import restored, run

import segnet_jax
from segnet_jax.benchmarks.roofline import work_of
from segnet_jax.nn import NETWORKS, fold_batch_norm
from segnet_jax.nn.network_interface import check_interface, collect_taps

LINKNET = ("--network", "linknet", "--depth", 2, "--epochs", 6)


def command(name, *flags):
    """Run a command as a user does."""
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    args = [sys.executable, "-m", f"segnet_jax.{name}", *map(str, flags)]
    done = subprocess.run(args, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "linknet"
    assert run("--run", folder, *LINKNET) == 0
    return folder


@pytest.mark.parametrize("form", [{}, {"depth": 2, "conv_bias": True}, {"depth": 1, "pooling": "ceil"}], ids=str)
def test_it_implements_the_interface_and_its_folded_form_computes_the_same(form):
    model = NETWORKS["linknet"](7, width=1 / 16, batch_norm_epsilon=0.2, **form)
    check_interface(model)
    variables = random_variables(model)
    image = np.random.default_rng(0).normal(size=(2, 33, 46, 3)).astype(np.float32)
    logits, taps = jax.jit(collect_taps, static_argnums=0)(model, variables, image)
    folded = model.clone(folded=True).apply(fold_batch_norm(variables, model), image, train=False)
    assert logits.shape == (2, 33, 46, 7) and np.ptp(logits) > 0
    np.testing.assert_allclose(folded, logits, atol=1e-4 * np.abs(logits).max())
    assert taps["features1"].shape == (2, 33, 46, 4) and "code1" not in taps


def test_its_flop_by_hand():
    """Compare with a count for one stage of 2 channels at 8x12, a bottleneck at 4x6, and a 1x1 classifier."""
    model = NETWORKS["linknet"](7, depth=1, width=1 / 32)
    full, half = 8 * 12 * 9, 4 * 6 * 9
    forward = full * (3 * 2 + 2 * 2) + half * (2 * 2 + 2 * 2) + full * (2 * 2 + 2 * 2) + 8 * 12 * 2 * 7
    work = work_of(model, 8, 12)
    # Each upsampling's gradient and its own products are sums of scaled pixels, no convolutions.
    assert work.infer_flop == 2 * forward
    assert work.train_flop == 2 * (3 * forward - full * 3 * 2)


def test_it_trains_and_its_loss_falls(trained):
    rows = list(map(json.loads, (trained / "metrics.jsonl").read_text().splitlines()))
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
    assert restored(trained)["params"].keys() >= {"down1_1", "down2_2_bn", "middle_1", "up1_2", "head"}


def test_its_frozen_stages_and_the_parameters_of_another_run_stay(trained, tmp_path):
    folder = tmp_path / "frozen"
    assert run("--run", folder, *LINKNET, "--freeze", 1, "--init", trained, "--weight-decay", 0.1) == 0
    before, after = (restored(path, which)["params"] for path, which in ((trained, "best"), (folder, "newest")))
    same = {layer for layer in before if jax.tree.all(jax.tree.map(np.array_equal, before[layer], after[layer]))}
    assert same == {"down1_1", "down1_1_bn", "down1_2", "down1_2_bn"}


def test_it_evaluates_to_the_scores_of_its_result(trained, tmp_path):
    command("evaluate", trained, "--json", tmp_path / "scores.json")
    found, result = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", trained / "result.json"))
    assert found["miou"] == pytest.approx(result["miou"], abs=0.01) and found["miou"] > 0


def test_it_exports_and_the_weights_start_another_training(trained, tmp_path):
    command("export", trained, "--format", "stablehlo", "safetensors", "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report.keys() == {"stablehlo", "safetensors"}  # written only if each matches the network
    weights = tmp_path / "out" / "network.safetensors"
    assert run("--run", tmp_path / "again", *LINKNET, "--init", weights, "--epochs", 1) == 0


def test_it_predicts_images_of_other_sizes(trained, tmp_path):
    (tmp_path / "photos").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (41, 58, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "photos" / "a.png")
    command("predict", trained, tmp_path / "photos", "--out", tmp_path / "out")
    assert list((tmp_path / "out").rglob("a*.png"))
    assert segnet_jax.load(trained).predict(image).shape == (41, 58)
