"""Test `loss_boundary.patch`: value and gradient against numpy, and training on one and on eight devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import run

from segnet_jax.constants import VOID
from segnet_jax.training.losses import num_valid, parse_loss

CLASS_WEIGHTS = np.array([0.5, 1.0, 2.0])


def by_hand(logits, label, weight):
    """Compute the loss in float64 by a loop over pixels and their neighbors."""
    total = 0.0
    for image, row, column in zip(*np.nonzero(label != VOID), strict=True):
        known, factor = label[image, row, column], 1.0
        for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= y < label.shape[1] and 0 <= x < label.shape[2] and label[image, y, x] not in (known, VOID):
                factor = 1 + weight
        scores = logits[image, row, column]
        total += CLASS_WEIGHTS[known] * factor * (np.log(np.exp(scores).sum()) - scores[known])
    return total / (label != VOID).sum()


@pytest.mark.parametrize("formula, weight", [("boundary", 4), ("boundary(weight=1.5)", 1.5), ("boundary(weight=0)", 0)])
def test_value_and_gradient_are_those_of_numpy(formula, weight):
    random, weights = np.random.default_rng(0), jnp.float32(CLASS_WEIGHTS)
    label = random.choice(np.array([0, 0, 1, 2, VOID], np.uint8), (2, 4, 5))
    logits = random.normal(size=(2, 4, 5, 3))
    loss = parse_loss(formula)

    def mean(logits):
        return loss.mean(loss.sums(logits, label, weights), num_valid(label).astype(jnp.float32), weights)

    value, gradient = jax.value_and_grad(mean)(jnp.float32(logits))
    assert float(value) == pytest.approx(by_hand(logits, label, weight), rel=1e-5)
    for place in np.ndindex(logits.shape):
        change = np.zeros(logits.shape)
        change[place] = 1e-6
        slope = (by_hand(logits + change, label, weight) - by_hand(logits - change, label, weight)) / 2e-6
        assert float(gradient[place]) == pytest.approx(slope, abs=1e-5)
    assert not gradient[label == VOID].any()


def test_a_training_minimizes_it_alike_on_one_and_eight_devices(tmp_path):
    losses = {}
    for devices, images in ((1, 8), (8, 1)):
        folder = tmp_path / str(devices)
        flags = (
            "--devices",
            devices,
            "--batch-size-per-device",
            images,
            "--loss",
            "boundary + 0.5*dice",
            "--epochs",
            4,
        )
        assert run("--run", folder, *flags) == 0
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        losses[devices] = [row["loss"] for row in rows if row["kind"] == "train"]
        assert json.loads((folder / "result.json").read_text())["miou"] > 0
    assert len(losses[1]) == 12
    np.testing.assert_allclose(losses[1], losses[8], rtol=1e-3)
    assert np.mean(losses[1][-3:]) < np.mean(losses[1][:3])
