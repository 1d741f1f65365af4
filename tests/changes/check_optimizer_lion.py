"""Test `optimizer_lion.patch`: two steps by hand, and a training run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from test_steps import optimizer_of
from test_train import run


def test_two_steps_by_hand_and_no_decay_of_biases():
    """Compare with Algorithm 2 of Chen et al. 2023 for beta1 = 0.8 and beta2 = 0.99."""
    params = {"conv": {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)}}
    optimizer = optimizer_of(optimizer="lion", learning_rate=0.1, momentum=0.8, weight_decay=0.5)
    state, mean = optimizer.init(params), 0.0
    for gradient in (0.3, -0.1):
        gradients = jax.tree.map(lambda leaf, g=gradient: jnp.full_like(leaf, g), params)
        with jax.numpy_dtype_promotion("standard"):  # needed by optax
            updates, state = optimizer.update(gradients, state, params)
        sign = np.sign(0.8 * mean + 0.2 * gradient)
        mean = 0.99 * mean + 0.01 * gradient
        np.testing.assert_allclose(updates["conv"]["bias"], -0.1 * sign, rtol=1e-5)
        np.testing.assert_allclose(updates["conv"]["kernel"], -0.1 * (sign + 0.5 * 2), rtol=1e-5)


def test_training_with_it_lowers_the_loss_with_every_optimizers_multipliers(tmp_path):
    flags = (
        "--optimizer",
        "lion",
        "--learning-rate",
        0.003,
        "--epochs",
        6,
        "--bias-lr-mult",
        2,
        "--encoder-lr-mult",
        0.5,
    )
    with jax.numpy_dtype_promotion("standard"):
        assert run("--run", tmp_path / "run", *flags) == 0
    rows = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 18 and np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
    assert 'optimizer = "lion"' in (tmp_path / "run" / "config.toml").read_text()
