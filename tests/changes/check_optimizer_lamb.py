"""Test `optimizer_lamb.patch`: three steps by hand, and a training run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from test_steps import optimizer_of
from test_train import run


def test_three_steps_by_hand_and_no_decay_of_biases():
    """Compare with Algorithm 2 of You et al. 2020 with beta1 0.8, beta2 0.999 and epsilon 1e-6."""
    params = {"conv": {"kernel": jnp.float32([2, -1, 3]), "bias": jnp.float32([2, -1, 3])}}
    optimizer = optimizer_of(optimizer="lamb", learning_rate=0.1, momentum=0.8, weight_decay=0.5)
    state, first, second = optimizer.init(params), 0.0, 0.0
    expected = {"kernel": np.array([2.0, -1, 3]), "bias": np.array([2.0, -1, 3])}
    for step, gradient in enumerate(([0.3, 0.1, -2], [-0.1, 0.4, 1], [0.2, 0.2, 0.2]), start=1):
        gradients = jax.tree.map(lambda _, g=gradient: jnp.float32(g), params)
        with jax.numpy_dtype_promotion("standard"):  # needed by optax
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        gradient = np.array(gradient)
        first, second = 0.8 * first + 0.2 * gradient, 0.999 * second + 0.001 * gradient**2
        for part, decay in (("kernel", 0.5), ("bias", 0.0)):
            direction = first / (1 - 0.8**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-6)
            direction = direction + decay * expected[part]
            expected[part] = expected[part] - 0.1 * direction * (
                np.linalg.norm(expected[part]) / np.linalg.norm(direction)
            )
            np.testing.assert_allclose(params["conv"][part], expected[part], rtol=1e-4)


def test_a_training_lowers_the_loss_with_the_multipliers_of_every_optimizer(tmp_path):
    flags = (
        "--optimizer",
        "lamb",
        "--learning-rate",
        0.03,
        "--epochs",
        6,
        "--bias-lr-mult",
        2,
        "--lr-mult",
        "encoder=0.5",
    )
    with jax.numpy_dtype_promotion("standard"):
        assert run("--run", tmp_path / "run", *flags) == 0
    rows = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 18 and np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
    assert 'optimizer = "lamb"' in (tmp_path / "run" / "config.toml").read_text()
