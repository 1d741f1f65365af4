"""Test the EMA of the variables against numpy, and saved states without one."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from test_steps import CLASSES, WEIGHTS, assert_trees_close, random_batch

from segnet_jax.distributed.data_parallel import AXIS, choose_devices, parallel_train_step, replicate
from segnet_jax.nn.batch_norm import BatchNormReLU
from segnet_jax.nn.network_interface import LayerSpec, convolution_block
from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.optimizer import OptimizerSettings, build_optimizer
from segnet_jax.training.precision import LossScale
from segnet_jax.training.state import create_state, init_variables
from segnet_jax.training.step_inputs import as_sent
from segnet_jax.training.step_settings import StepSettings
from segnet_jax.training.steps import train_steps

DECAY = 0.22  # above the warm-up's first two decays, 1/10 and 2/11, and below the third, 3/12


class Tiny(nn.Module):
    """A convolution, BatchNorm and a classifier: the smallest network for a step, which compiles in a second."""

    num_classes: int = CLASSES
    dropout: float = 0.0
    sync_axis: str | None = AXIS
    dtype: jnp.dtype = jnp.float32
    frozen_stages: int = 0

    @nn.compact
    def __call__(self, image, *, train, keys=None):
        x = nn.Conv(4, (3, 3), use_bias=False, dtype=self.dtype, name="conv")(image)
        axis_name = self.sync_axis if train else None
        x = BatchNormReLU(axis_name=axis_name, momentum=0.9, epsilon=1e-5, name="conv_bn")(x, train=train)
        return nn.Conv(CLASSES, (1, 1), dtype=self.dtype, name="head")(x).astype(jnp.float32)

    @property
    def layers(self):
        return (*convolution_block("conv", "encoder", 1), LayerSpec("head", "convolution", "head"))


@cache
def make(count, precision="float32", average=DECAY):
    devices = choose_devices(str(count))
    model = Tiny(dtype=jnp.float16 if precision == "float16" else jnp.float32)
    optimizer, schedule = build_optimizer(OptimizerSettings(learning_rate=0.05), model, 100)
    state = create_state(init_variables(model, seed=0), optimizer, precision, has_ema=average > 0)
    settings = StepSettings(model, jnp.asarray(WEIGHTS), TORCH, optimizer, schedule, ema_decay=average)
    step = parallel_train_step(partial(train_steps, make_batch=as_sent, settings=settings), devices)
    return partial(replicate, state, devices), step, devices


def trained_of(state):
    return jax.device_get({"params": state.params, "batch_stats": state.batch_stats})


def batches_for(count):
    """Return the batches of four steps with eight images, split over the devices: [L,K,A,B,...]."""
    cut = [random_batch((count, 1, 1, 8 // count), seed) for seed in range(4)]
    return [
        {name: array[..., :6, :6, :] if name == "image" else array[..., :6, :6] for name, array in batch.items()}
        for batch in cut
    ]


@pytest.mark.parametrize("count", [1, 8])
def test_the_ema_equals_numpys_over_the_states_after_each_step(count):
    start, step, _ = make(count)
    state = start()
    mean = trained_of(state)
    for number, batch in enumerate(batches_for(count)):
        state, _ = step(state, batch, ())
        decay = [1 / 10, 2 / 11, DECAY, DECAY][number]
        mean = jax.tree.map(lambda m, new, decay=decay: decay * m + (1 - decay) * new, mean, trained_of(state))
        assert_trees_close(jax.device_get(state.ema), mean, rtol=1e-5, atol=1e-7)
    assert_trees_close(jax.device_get(state.variables), mean, rtol=1e-5, atol=1e-7)  # which are scored


def test_an_ema_does_not_change_the_steps_and_is_the_same_on_eight_devices():
    after = {}
    for count, average in ((1, DECAY), (1, 0.0), (8, DECAY)):
        start, step, _ = make(count, average=average)
        state = start()
        for batch in batches_for(count):
            state, _ = step(state, batch, ())
        after[count, average] = jax.device_get(state)
    one, without, eight = after.values()
    assert without.ema is None
    assert_trees_close(trained_of(one), trained_of(without), rtol=1e-6, atol=1e-7)
    assert_trees_close(eight.ema, one.ema)


def test_a_skipped_or_non_finite_step_does_not_change_the_ema():
    (start, step, devices), (batch, *_) = make(1, precision="float16"), batches_for(1)
    state, _ = step(start(), batch, ())  # so that EMA and parameters differ
    huge = LossScale(jnp.float32(2.0**50), jnp.int32(0))
    state = replicate(state.replace(loss_scale=huge), devices)
    before = jax.device_get(state)
    after = jax.device_get(step(state, batch, ())[0])
    assert int(after.skipped) - int(before.skipped) == 1
    assert_trees_close(after.ema, before.ema, rtol=0, atol=0)

    start, step, devices = make(1)
    state = start()
    kernel = state.params["conv"]["kernel"].at[0].set(jnp.nan)
    state = replicate(state.replace(params=state.params | {"conv": {"kernel": kernel}}), devices)
    before = jax.device_get(state)
    after = jax.device_get(step(state, batch, ())[0])
    assert not after.finite
    assert_trees_close(after.ema, before.ema, rtol=0, atol=0)


def test_an_ema_is_saved_and_restored_and_no_file_mentions_one_without_it(tmp_path):
    for average in (0.0, DECAY):
        folder = tmp_path / str(average)
        start, _, devices = make(1, average=average)
        state = start()
        state = state.replace(ema=state.ema and jax.tree.map(lambda leaf: leaf + 1, state.ema))
        with Checkpoints(folder, devices) as checkpoints:
            checkpoints.save("newest", 1, state, {"best": None})
            checkpoints.wait()
            restored = checkpoints.restore("newest", 1, jax.eval_shape(lambda state=state: state))
        assert_trees_close(jax.device_get(restored), jax.device_get(state), rtol=0, atol=0)
        kept = ocp.PyTreeCheckpointer().metadata(folder / "newest" / "1" / "state").item_metadata.tree
        # As before the EMA existed, so that old and new versions restore each other's checkpoints.
        parts = {"step", "skipped", "finite", "params", "batch_stats", "opt_state", "loss_scale"}
        assert set(kept) == parts | ({"ema"} if average else set())
