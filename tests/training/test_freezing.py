"""Test frozen stages: their variables stay bit-identical, and the step computes no gradient for them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_variables import random_variables

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import choose_devices, parallel_train_step, replicate
from segnet_jax.nn.preprocessing import TORCH, normalize
from segnet_jax.runs import config_checks
from segnet_jax.system.errors import UserError
from segnet_jax.training import build_model
from segnet_jax.training.batch_norm_statistics import average_statistics
from segnet_jax.training.state import create_state
from segnet_jax.training.step_inputs import as_sent
from segnet_jax.training.steps import train_steps

CLASSES, SIZE = 4, 16
SMALL = {"init": "none", "depth": 2, "width": 1 / 16, "image_size": (SIZE, SIZE), "class_weights": "none"}
OF_STAGE_1 = {"conv1_1", "conv1_1_bn", "conv1_2", "conv1_2_bn"}
OF_ENCODER = OF_STAGE_1 | {"conv2_1", "conv2_1_bn", "conv2_2", "conv2_2_bn"}


def made(num_devices=1, precision="float32", **changed):
    """Return a state and a function (state, batch) -> state that runs one step."""
    promotion = "standard" if changed.get("optimizer") == "adamw" else "strict"  # optax's AdamW wants it
    config = Config(**SMALL | {"learning_rate": 0.05} | changed)
    devices = choose_devices(str(num_devices))
    model = build_model.build_model(config, CLASSES, precision)
    settings = build_model.step_settings(config, model, jnp.ones(CLASSES), TORCH, steps_per_epoch=10)
    variables = random_variables(model)
    state = replicate(create_state(variables, settings.optimizer, precision, config.ema_decay > 0), devices)
    step = partial(train_steps, make_batch=as_sent, settings=settings)
    mapped = parallel_train_step(step, devices)

    def take(state, batch):
        with jax.numpy_dtype_promotion(promotion):
            new, metrics = mapped(state, {name: array[:, None] for name, array in batch.items()}, ())
        assert metrics["finite"].all()
        return new

    take.lower = lambda state, batch: mapped.lower(state, {name: array[:, None] for name, array in batch.items()}, ())
    return model, state, take, devices


def random_batch(num_devices=1, grad_accum_steps=1, batch_size=2, seed=0):
    random, shape = np.random.default_rng(seed), (num_devices, grad_accum_steps, batch_size, SIZE, SIZE)
    label = random.integers(0, CLASSES, shape).astype(np.uint8)
    return {"image": random.integers(0, 256, (*shape, 3), np.uint8), "label": label}


def changed_layers(before, after):
    """Return the layers of a collection that changed, compared bit for bit."""
    return {
        layer
        for layer, parts in before.items()
        if any(np.asarray(array).tobytes() != np.asarray(after[layer][part]).tobytes() for part, array in parts.items())
    }


@pytest.mark.parametrize(
    "changed, num_devices, grad_accum_steps",
    [
        pytest.param({"ema_decay": 0.9, "weight_decay": 0.1}, 8, 1, id="8 devices, average"),
        pytest.param(
            {"precision": "float16", "dropout": 0.5, "conv_bias": True},
            1,
            2,
            id="float16, accumulated",
            marks=pytest.mark.slow,
        ),
        pytest.param({"sync_batch_norm": False, "ema_decay": 0.9}, 3, 1, id="unsynchronized", marks=pytest.mark.slow),
        pytest.param({"optimizer": "adamw", "bias_lr_mult": 2.0}, 1, 1, id="adamw", marks=pytest.mark.slow),
    ],
)
def test_after_twenty_steps_the_encoder_has_its_first_bits_and_the_decoder_has_not(
    changed, num_devices, grad_accum_steps
):
    _, state, take, _ = made(num_devices, freeze="encoder", **changed)
    first = jax.device_get(state)
    for seed in range(20):
        state = take(state, random_batch(num_devices, grad_accum_steps, seed=seed))
    last = jax.device_get(state)
    trees = [(first.params, last.params), (first.batch_stats, last.batch_stats)]
    if last.ema is not None:
        trees += [(first.ema[name], last.ema[name]) for name in ("params", "batch_stats")]
    for before, after in trees:
        assert before.keys() == after.keys()
        assert changed_layers(before, after) == before.keys() - OF_ENCODER


@pytest.mark.slow
def test_segnet_basic_has_its_stages_frozen_too():
    _, state, take, _ = made(network="segnet-basic", freeze="1", preprocessing="raw")
    first = jax.device_get(state)
    last = jax.device_get(take(state, random_batch()))
    assert changed_layers(first.params, last.params) == first.params.keys() - {"conv1", "conv1_bn"}


@pytest.mark.slow
def test_a_step_is_the_whole_networks_with_running_statistics_in_the_frozen_stages():
    """Compare with `jax.grad` over all parameters of the same network, with frozen layers restored afterwards."""
    model, state, take, _ = made(freeze="1", momentum=0.0, weight_decay=0.0)
    before, batch = jax.device_get(state), random_batch()
    after = take(state, batch)
    image, label = normalize(jnp.asarray(batch["image"][0, 0]), TORCH), batch["label"][0, 0]

    def loss_fn(params):
        variables = {"params": params, "batch_stats": before.batch_stats}
        logits, updated = model.clone(sync_axis=None).apply(variables, image, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), updated["batch_stats"]

    grads, statistics = jax.jit(jax.grad(loss_fn, has_aux=True))(before.params)
    expected = jax.tree.map(lambda param, grad: param - 0.05 * grad, before.params, grads)
    expected |= {layer: before.params[layer] for layer in OF_STAGE_1}
    for tree, ours in ((expected, after.params), (statistics, after.batch_stats)):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, tree)
    for first, last in ((before.params, after.params), (before.batch_stats, after.batch_stats)):
        assert changed_layers(first, last) == first.keys() - OF_STAGE_1


def num_convolutions(lowered):
    return lowered.compile().as_text().count(" convolution(")


@pytest.mark.parametrize(
    "freeze, num_gradients",
    [
        pytest.param("none", 8 + 7, marks=pytest.mark.slow),
        ("encoder", 4 + 3),
        pytest.param("1", 6 + 5, marks=pytest.mark.slow),
    ],
)
def test_the_compiled_step_has_no_convolution_for_the_gradient_of_a_frozen_kernel(freeze, num_gradients):
    """Count the convolutions of the backward pass: one per trained kernel and one per image gradient.

    The image gradient of the first trained convolution is not needed.
    """
    model, state, take, _ = made(freeze=freeze)
    batch = random_batch()
    forward = jax.jit(lambda variables, image: model.apply(variables, image, train=False))
    image = normalize(jnp.asarray(batch["image"][0, 0]), TORCH)
    num_forward = num_convolutions(forward.lower({"params": state.params, "batch_stats": state.batch_stats}, image))
    assert num_forward == 8
    assert num_convolutions(take.lower(state, batch)) - num_forward == num_gradients


def test_the_optimizer_has_no_state_for_frozen_layers():
    _, state, _, _ = made(freeze="encoder")
    layers = {path[-2].key for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if leaf.ndim}
    assert layers == state.params.keys() - OF_ENCODER


def test_recomputed_statistics_leave_those_of_frozen_layers_alone():
    model, state, _, devices = made(3, freeze="1")
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    batches = [jax.device_put(random_batch(3, seed=seed), devices.split) for seed in range(3)]
    found = average_statistics(model, variables, batches, TORCH, devices)
    before = jax.device_get(state.batch_stats)
    assert changed_layers(before, found) == before.keys() - OF_STAGE_1


@pytest.mark.parametrize("freeze, message", [("3", "--freeze 3 exceeds"), ("encoders", "--freeze must be")])
def test_a_stage_that_the_network_does_not_have_is_refused(freeze, message):
    with pytest.raises(UserError, match=message):
        config_checks.check_network(Config(**SMALL, freeze=freeze))
