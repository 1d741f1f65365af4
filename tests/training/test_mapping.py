"""Test the two mappings of a step over devices, `pmap` and `shard_map`, in one process."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segnet_jax.distributed.data_parallel import (
    AXIS,
    AheadOfTime,
    choose_devices,
    parallel_eval_step,
    parallel_train_step,
    replicate,
)
from segnet_jax.nn import SegNet
from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.training.optimizer import OptimizerSettings, build_optimizer
from segnet_jax.training.state import create_state, init_variables
from segnet_jax.training.step_inputs import as_sent
from segnet_jax.training.step_settings import StepSettings
from segnet_jax.training.steps import eval_step, train_steps

DEVICES = 8


def train_and_score(mapping):
    """Train two steps with dropout and evaluate; return state, metrics, sums and predictions as numpy."""
    devices = choose_devices(str(DEVICES), mapping=mapping)
    model = SegNet(3, depth=1, width=0.125, dropout=0.5, sync_axis=AXIS)
    optimizer, schedule = build_optimizer(OptimizerSettings(learning_rate=0.05), model, 5)
    common = {"make_batch": as_sent, "settings": StepSettings(model, jnp.ones(3), TORCH, optimizer, schedule)}
    train = partial(train_steps, **common)
    step = AheadOfTime(parallel_train_step(train, devices), "training", devices)
    score = AheadOfTime(parallel_eval_step(partial(eval_step, **common), devices), "evaluation", devices)

    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (DEVICES, 2, 15, 16, 3), np.uint8),
        "label": rng.choice(np.array([0, 1, 2, 255], np.uint8), (DEVICES, 2, 15, 16)),
    }
    batch = jax.device_put(batch, devices.split)
    state = replicate(create_state(init_variables(model, seed=0), optimizer, "float32"), devices)
    before = state
    for _ in range(2):
        state, metrics = step(state, {name: array[:, None, None] for name, array in batch.items()})
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))  # the memory was taken over
    return jax.device_get((state, metrics, score(state.variables, batch)))


def test_both_mappings_give_the_same_bits():
    by_pmap, by_shard_map = map(train_and_score, ("pmap", "shard_map"))
    for (path, one), two in zip(
        jax.tree_util.tree_leaves_with_path(by_pmap), jax.tree.leaves(by_shard_map), strict=True
    ):
        assert one.shape == two.shape and one.dtype == two.dtype
        assert one.tobytes() == two.tobytes(), jax.tree_util.keystr(path)
    assert by_pmap[2][1]["prediction"].shape == (DEVICES, 2, 15, 16)


@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
def test_a_step_runs_on_as_many_devices_as_are_chosen(mapping):
    devices = choose_devices("3", mapping=mapping)
    step = parallel_eval_step(lambda scale, x, _: (jax.lax.psum(scale * x, AXIS), x + scale), devices)
    total, each = step(np.float32(2), np.arange(3, dtype=np.float32), ())
    assert total == 6 and list(each) == [2, 3, 4]
    assert total.sharding.device_set == each.sharding.device_set == set(devices.local)
