"""Test `loss_dice.patch`: the Dice loss and its gradient against numpy, and training on one and on eight devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import run

from segnet_jax.constants import VOID
from segnet_jax.training.losses import dice_sum

WEIGHTS = np.array([0.5, 1.0, 2.0])


def dice_by_hand(logits, label):
    """Compute the Dice loss in float64 with loops over images and classes."""
    total = 0.0
    for scores, known in zip(logits.astype(np.float64), label, strict=True):
        shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        valid, found, weights = known != VOID, 0.0, 0.0
        for class_id in np.unique(known[valid]):
            actual, predicted = known[valid] == class_id, shares[valid][:, class_id]
            dice = 2 * (predicted * actual).sum() / (predicted.sum() + actual.sum())
            found, weights = found + WEIGHTS[class_id] * dice, weights + WEIGHTS[class_id]
        total += (1 - found / weights) * valid.sum() if valid.any() else 0.0
    return total


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    label = random.choice(np.array([0, 1, 2, VOID], np.uint8), (3, 4, 5))
    label[0][label[0] == 1] = 0  # an image without class 1
    label[2] = VOID
    return random.normal(size=(3, 4, 5, 3)).astype(np.float32), label


def test_the_sum_and_its_gradient_are_those_of_numpy(batch):
    logits, label = batch
    loss, gradient = jax.value_and_grad(dice_sum)(jnp.asarray(logits), jnp.asarray(label), jnp.float32(WEIGHTS))
    assert float(loss) == pytest.approx(dice_by_hand(logits, label), rel=1e-5)
    for place in np.ndindex(logits.shape):
        change = np.zeros(logits.shape)
        change[place] = 1e-4
        slope = (dice_by_hand(logits + change, label) - dice_by_hand(logits - change, label)) / 2e-4
        assert float(gradient[place]) == pytest.approx(slope, abs=1e-4)
    assert np.abs(gradient[:2][label[:2] != VOID]).max() > 0.01
    assert not gradient[label == VOID].any()


def test_perfect_and_wrong_predictions_and_images_one_by_one(batch):
    logits, label = batch
    weights = jnp.float32(WEIGHTS)
    hot = 100 * np.eye(3, dtype=np.float32)[np.where(label == VOID, 0, label)]
    assert float(dice_sum(jnp.asarray(hot), jnp.asarray(label), weights)) == pytest.approx(0, abs=1e-3)
    wrong = float(dice_sum(jnp.asarray(-hot), jnp.asarray(label), weights))
    assert wrong == pytest.approx((label != VOID).sum(), rel=1e-3)
    one_by_one = sum(float(dice_sum(logits[i : i + 1], label[i : i + 1], weights)) for i in range(3))
    assert float(dice_sum(jnp.asarray(logits), jnp.asarray(label), weights)) == pytest.approx(one_by_one, rel=1e-5)


def test_training_minimizes_it_equally_on_one_and_eight_devices(tmp_path):
    losses = {}
    for devices, images in ((1, 8), (8, 1)):
        folder = tmp_path / str(devices)
        flags = ("--devices", devices, "--batch-size-per-device", images, "--loss", "dice", "--epochs", 4)
        assert run("--run", folder, *flags) == 0
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        losses[devices] = [row["loss"] for row in rows if row["kind"] == "train"]
        assert json.loads((folder / "result.json").read_text())["miou"] > 0
    assert len(losses[1]) == 12 and all(0 < loss < 1 for loss in losses[1])
    np.testing.assert_allclose(losses[1], losses[8], rtol=1e-3)
    assert np.mean(losses[1][-3:]) < np.mean(losses[1][:3])
