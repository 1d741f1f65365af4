"""Test the training and evaluation step against hand-written references, on one and on eight devices."""

import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segnet_jax.constants import VOID
from segnet_jax.distributed.data_parallel import (
    AXIS,
    choose_devices,
    parallel_eval_step,
    parallel_train_step,
    replicate,
)
from segnet_jax.metrics.boundary import boundary_counts
from segnet_jax.nn.network_interface import PARTS, convolution_block
from segnet_jax.nn.preprocessing import TORCH, normalize
from segnet_jax.nn.segnet import SegNet
from segnet_jax.training.batch_norm_statistics import average_statistics
from segnet_jax.training.losses import cross_entropy_sum, parse_loss
from segnet_jax.training.optimizer import OPTIMIZERS, OptimizerSettings, build_optimizer
from segnet_jax.training.precision import LossScale
from segnet_jax.training.schedules import learning_rate_schedule
from segnet_jax.training.small_arrays import all_finite
from segnet_jax.training.state import create_state, init_variables
from segnet_jax.training.step_inputs import as_sent
from segnet_jax.training.step_settings import StepSettings
from segnet_jax.training.steps import eval_step, train_steps

CLASSES, SIZE = 5, 16
CONVOLUTION_AND_BATCH_NORM = convolution_block("conv", "encoder", 1)
WEIGHTS = np.array([0.5, 1.0, 2.0, 3.0, 0.25], np.float32)


def make(
    devices,
    *,
    sync=True,
    precision="float32",
    learning_rate=0.05,
    dtype=jnp.float32,
    half_gradients=False,
    loss="ce",
    multi_label=False,
    **network,
):
    devices = choose_devices(str(devices))
    network = {"depth": 2, "width": 0.125} | network
    model = SegNet(CLASSES, sync_axis=AXIS if sync else None, dtype=dtype, **network)
    optimizer, schedule = build_optimizer(OptimizerSettings(learning_rate=learning_rate), model, 100)
    state = create_state(init_variables(model, seed=0), optimizer, precision)
    settings = StepSettings(
        model,
        jnp.asarray(WEIGHTS),
        TORCH,
        optimizer,
        schedule,
        loss=parse_loss(loss, multi_label),
        multi_label=multi_label,
        half_gradients=half_gradients,
    )
    step = partial(train_steps, make_batch=as_sent, settings=settings)
    mapped = parallel_train_step(step, devices)

    def take(state, batch, program=mapped):
        """Run one step on a batch [L,A,B,...], to which the step axis is added."""
        state, metrics = program(state, {name: array[:, None] for name, array in batch.items()}, ())
        return state, {name: values[0] for name, values in metrics.items()}

    take.lower = lambda state, batch: mapped.lower(state, {name: array[:, None] for name, array in batch.items()}, ())
    return model, replicate(state, devices), take, devices


def random_batch(shape, seed=0, void=0.1):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (*shape, SIZE, SIZE)).astype(np.uint8)
    label[rng.random(label.shape) < void] = VOID
    return {"image": rng.integers(0, 256, (*shape, SIZE, SIZE, 3), np.uint8), "label": label}


def assert_trees_close(ours, expected, rtol=1e-5, atol=1e-6):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def loss_by_loop(logits, label):
    total, count = 0.0, 0
    for place in np.ndindex(label.shape):
        if label[place] != VOID:
            scores = logits[place].astype(np.float64)
            log_share = scores[label[place]] - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
            total -= WEIGHTS[label[place]] * log_share
            count += 1
    return total, count


def test_cross_entropy_sum_equals_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 5, 6, CLASSES)).astype(np.float32)
    label = random_batch((2,), void=0.3)["label"][:, :5, :6]
    ours = cross_entropy_sum(jnp.asarray(logits), jnp.asarray(label), jnp.asarray(WEIGHTS))
    np.testing.assert_allclose(ours, loss_by_loop(logits, label)[0], rtol=1e-5)


def test_void_pixels_give_no_loss_and_no_gradient_even_where_all_are_void():
    logits = jnp.ones((1, 2, 2, CLASSES)).at[0, 0, 0, 0].set(jnp.inf)
    label = jnp.full((1, 2, 2), VOID, jnp.uint8)
    loss, gradient = jax.value_and_grad(cross_entropy_sum)(logits[:, 1:], label[:, 1:], jnp.asarray(WEIGHTS))
    assert loss == 0 and not gradient.any()


def step_by_hand(model, state, batches):
    """Compute a reference step over accumulated batches, on one device in plain JAX and numpy.

    The gradient is the sum over batches divided by the number of labeled pixels.
    """
    total = sum(loss_by_loop_count(batch["label"]) for batch in batches)
    params, stats = jax.device_get((state.params, state.batch_stats))
    gradient, loss = None, 0.0
    for batch in batches:

        def loss_fn(params, batch=batch, stats=stats):
            image = normalize(jnp.asarray(batch["image"]), TORCH)
            logits, new = model.clone(sync_axis=None).apply(
                {"params": params, "batch_stats": stats}, image, train=True, mutable=["batch_stats"]
            )
            log_share = jax.nn.log_softmax(logits)
            known = (
                jax.nn.one_hot(batch["label"], CLASSES) * WEIGHTS[None, None, None]
            )  # VOID is not a class: a row of zeros
            return -(known * log_share).sum() / total, new["batch_stats"]

        (one_loss, stats), one = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
        loss += one_loss
        gradient = one if gradient is None else jax.tree.map(np.add, gradient, one)
    decayed = jax.tree_util.tree_map_with_path(
        lambda path, g, p: g + 5e-4 * p if path[-1].key == "kernel" else g, gradient, params
    )
    return jax.tree.map(lambda p, g: p - 0.05 * g, params, decayed), stats, loss


def loss_by_loop_count(label):
    return sum(1 for value in label.ravel() if value != VOID)


def test_a_step_of_accumulated_batches_equals_one_made_by_hand():
    model, state, step, _ = make(1)
    batch = random_batch((1, 2, 4))
    batch["label"][0, 1, :3] = VOID  # so that a mean of means would be wrong
    params, stats, loss = step_by_hand(model, state, [jax.tree.map(lambda x, i=i: x[0, i], batch) for i in range(2)])
    state, metrics = step(state, batch)
    assert_trees_close(state.params, params)
    assert_trees_close(state.batch_stats, stats)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert int(state.step) == 1 and 0 < metrics["accuracy"] < 1


@pytest.mark.slow
def test_the_loop_over_accumulated_batches_of_a_gpu_gives_what_the_written_out_one_gives(monkeypatch):
    batch, states = random_batch((1, 3, 2)), {}
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        _, state, step, _ = make(1)
        program = step.lower(state, batch).as_text()
        assert ("stablehlo.while" in program) == (backend == "gpu")
        states[backend] = jax.device_get(step(state, batch))
    assert_trees_close(states["gpu"], states["cpu"])


@pytest.mark.parametrize("void_heavy", [pytest.param(False, marks=pytest.mark.slow), True])
def test_eight_devices_of_four_images_take_the_same_steps_as_one_of_32(void_heavy):
    results = {}
    for count in (1, 8):
        _, state, step, _ = make(count)
        for number in range(5):
            batch = random_batch((1, 1, 32), seed=number)
            if void_heavy:
                batch["label"][:, :, 12:16, 1:] = VOID  # the fourth device keeps one row an image
            batch = jax.tree.map(lambda x, count=count: x.reshape(count, 1, 32 // count, *x.shape[3:]), batch)
            state, metrics = step(state, batch)
        results[count] = jax.device_get((state, metrics))
    assert_trees_close(results[8], results[1])


@pytest.mark.slow  # nn/test_segnet_basic.py tests the masks
def test_dropout_drops_the_same_on_two_devices_as_on_one_and_otherwise_in_each_step():
    results, losses = {}, []
    batch = random_batch((1, 1, 8))
    for count in (1, 2):
        _, state, step, _ = make(count, depth=3, width=1 / 16, dropout=0.5, learning_rate=1e-12)
        for _ in range(2):
            inputs = jax.tree.map(lambda x, count=count: x.reshape(count, 1, 8 // count, *x.shape[3:]), batch)
            state, metrics = step(state, inputs)
            losses.append(float(metrics["loss"]))
        results[count] = jax.device_get(state.batch_stats)
    assert_trees_close(results[2], results[1])
    np.testing.assert_allclose(losses[2:], losses[:2], rtol=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3  # nothing was learnt between them


@pytest.mark.slow
def test_without_synchronized_batch_norm_devices_still_agree_on_one_state():
    _, state, step, _ = make(8, sync=False)
    state, _ = step(state, random_batch((8, 1, 2)))
    for leaf in jax.tree.leaves(state):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 8 and all(np.array_equal(shards[0], shard, equal_nan=True) for shard in shards)


def optimizer_of(layers=CONVOLUTION_AND_BATCH_NORM, **settings):
    """Return an optimizer for a network with these layers."""
    model = types.SimpleNamespace(layers=layers, frozen_stages=0)
    return build_optimizer(OptimizerSettings(**settings), model, 2)[0]


def test_l2_pulls_on_kernels_alone():
    params = {
        "conv": {"kernel": jnp.ones(3), "bias": jnp.ones(3)},
        "conv_bn": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
    }
    optimizer = optimizer_of(learning_rate=1.0, momentum=0.0, weight_decay=0.5)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.5)
    assert not any(leaf.any() for leaf in jax.tree.leaves((updates["conv"]["bias"], updates["conv_bn"])))


def test_caffes_factors_double_the_rate_of_convolutions_biases_and_decay_batch_norms_scale():
    params = {
        "conv": {"kernel": jnp.full(3, 2.0), "bias": jnp.ones(3)},
        "conv_bn": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
    }
    optimizer = optimizer_of(learning_rate=0.1, weight_decay=0.5, decay_scale=True, bias_lr_mult=2.0)
    state, gradients = optimizer.init(params), jax.tree.map(jnp.ones_like, params)
    for momentum in (1.0, 1.9):  # the second update has the first one's 0.9 besides
        updates, state = optimizer.update(gradients, state, params)
        np.testing.assert_allclose(updates["conv"]["kernel"], -0.1 * (1 + 0.5 * 2) * momentum, rtol=1e-6)
        np.testing.assert_allclose(updates["conv"]["bias"], -0.2 * momentum, rtol=1e-6)
        np.testing.assert_allclose(updates["conv_bn"]["scale"], -0.1 * 1.5 * momentum, rtol=1e-6)
        np.testing.assert_allclose(updates["conv_bn"]["bias"], -0.1 * momentum, rtol=1e-6)


def test_matlabs_l2_pulls_on_kernels_and_batch_norms_scale_and_offset_and_on_no_bias():
    params = {
        "conv": {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)},
        "conv_bn": {"scale": jnp.full(3, 3.0), "bias": jnp.full(3, -4.0)},
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    expected = {"kernel": -0.1 * 0.5 * 2, "scale": -0.1 * 0.5 * 3, "bias": -0.1 * 0.5 * -4}
    for scale, shift in ((False, False), (True, False), (False, True), (True, True)):
        optimizer = optimizer_of(learning_rate=0.1, weight_decay=0.5, decay_scale=scale, decay_shift=shift)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        np.testing.assert_allclose(updates["conv"]["kernel"], expected["kernel"], rtol=1e-6)
        np.testing.assert_array_equal(updates["conv"]["bias"], 0)
        np.testing.assert_allclose(updates["conv_bn"]["scale"], expected["scale"] * scale, rtol=1e-6)
        np.testing.assert_allclose(updates["conv_bn"]["bias"], expected["bias"] * shift, rtol=1e-6)


@pytest.fixture
def optax_promotion():
    """Allow the mixed dtypes of optax: AdamW and the cosine schedule combine floats with an integer count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_adamw_takes_the_step_of_its_paper_and_decays_kernels_alone(optax_promotion):
    """Compare two steps with Algorithm 2 of Loshchilov & Hutter, computed by hand."""
    params = {"conv": {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)}}
    optimizer = optimizer_of(optimizer="adamw", learning_rate=0.1, momentum=0.8, weight_decay=0.5)
    state, first, second = optimizer.init(params), 0.0, 0.0
    for number, gradient in enumerate((0.3, -0.1), start=1):
        updates, state = optimizer.update(
            jax.tree.map(lambda leaf, g=gradient: jnp.full_like(leaf, g), params), state, params
        )
        first, second = 0.8 * first + 0.2 * gradient, 0.999 * second + 0.001 * gradient**2
        step = first / (1 - 0.8**number) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
        np.testing.assert_allclose(updates["conv"]["bias"], -0.1 * step, rtol=1e-4)
        np.testing.assert_allclose(updates["conv"]["kernel"], -0.1 * (step + 0.5 * 2), rtol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_encoders_multiplier_multiplies_every_update_of_an_encoder_layer_and_no_other(name, optax_promotion):
    layers = (*convolution_block("first", "encoder", 1), *convolution_block("second", "decoder"))
    params = {layer.name: dict.fromkeys(PARTS[layer.kind], jnp.ones(2)) for layer in layers}
    settings = {"layers": layers, "optimizer": name, "learning_rate": 0.1, "weight_decay": 0.5}
    plain, scaled = optimizer_of(**settings), optimizer_of(**settings, encoder_lr_mult=0.1)
    gradients = jax.tree.map(lambda leaf: 3 * jnp.ones_like(leaf), params)
    expected, found = (each.update(gradients, each.init(params), params)[0] for each in (plain, scaled))
    for layer in layers:
        factor = 0.1 if layer.section == "encoder" else 1.0
        jax.tree.map(
            lambda a, b, f=factor: np.testing.assert_allclose(a, f * b, rtol=1e-6),
            found[layer.name],
            expected[layer.name],
        )


def test_learning_rates_match_hand_computed_schedules():
    make_schedule = partial(learning_rate_schedule, peak=0.8, total_steps=8)
    rates = {
        "constant": ([0, 7], [0.8, 0.8]),
        "step": ([0, 2, 3, 6], [0.8, 0.8, 0.4, 0.2]),
        "poly": ([0, 4, 8], [0.8, 0.2, 0.0]),
        "cosine": ([0, 2, 4, 8], [0.8, 0.4 * (1 + 0.5**0.5), 0.4, 0.0]),
    }
    for name, (steps, expected) in rates.items():
        schedule = make_schedule(name, drop_every=3, drop_factor=0.5, power=2.0)
        np.testing.assert_allclose([schedule(step) for step in steps], expected, rtol=1e-6, atol=1e-7)
    warm = make_schedule("cosine", warmup_steps=4)
    np.testing.assert_allclose([warm(step) for step in range(5)], [0.2, 0.4, 0.6, 0.8, 0.8], rtol=1e-6)
    np.testing.assert_allclose([warm(6), warm(8)], [0.4, 0.0], atol=1e-7)


def test_a_float16_overflow_skips_the_step_halves_the_scale_and_training_continues():
    _, state, step, devices = make(2, precision="float16", dtype=jnp.float16, learning_rate=0.02)
    huge = 2.0**50  # no float16 gradient survives this factor
    state = replicate(state.replace(loss_scale=LossScale(jnp.float32(huge), jnp.int32(7))), devices)
    before = jax.device_get(state)
    batch = random_batch((2, 1, 4))
    state, metrics = step(state, batch)
    after = jax.device_get(state)
    assert_trees_close(
        (after.params, after.batch_stats, after.opt_state),
        (before.params, before.batch_stats, before.opt_state),
        rtol=0,
        atol=0,
    )
    assert (int(after.step), int(after.skipped), int(metrics["skipped"])) == (1, 1, 1)
    assert float(after.loss_scale.scale) == huge / 2 and int(after.loss_scale.good_steps) == 0

    losses = []
    while int(state.step) < 60:
        skipped_before = int(state.skipped)
        state, metrics = step(state, batch)
        if int(state.skipped) == skipped_before:
            losses.append(float(metrics["loss"]))
    assert 20 < len(losses) and losses[-1] < 0.9 * losses[0] and np.isfinite(losses).all()
    assert float(state.loss_scale.scale) == huge / 2.0 ** int(state.skipped)


@pytest.mark.slow
def test_gradients_summed_in_16_bits_make_the_same_step_but_for_their_rounding():
    steps = {}
    for half in (False, True):
        _, state, step, _ = make(8, half_gradients=half)
        before = jax.device_get(state.params)
        after = jax.device_get(step(state, random_batch((8, 1, 4)))[0].params)
        steps[half] = np.concatenate(
            [np.ravel(b - a) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
        )
    difference = np.linalg.norm(steps[True] - steps[False]) / np.linalg.norm(steps[False])
    assert 0 < difference < 2**-7  # bfloat16 has eight bits


def test_the_loss_scale_doubles_after_2000_finite_steps_and_never_falls_below_one():
    scale = LossScale(jnp.float32(8.0), jnp.int32(1998))
    scale = scale.adjust(jnp.array(True))
    assert (float(scale.scale), int(scale.good_steps)) == (8.0, 1999)
    scale = scale.adjust(jnp.array(True))
    assert (float(scale.scale), int(scale.good_steps)) == (16.0, 0)
    assert float(LossScale(jnp.float32(1.0), jnp.int32(3)).adjust(jnp.array(False)).scale) == 1.0


def test_one_infinity_anywhere_is_not_finite():
    tree = {"a": jnp.ones(3), "b": jnp.array([1.0, jnp.inf])}
    assert not all_finite(tree) and not all_finite({"a": jnp.array(jnp.nan)}) and all_finite({"a": jnp.ones(3)})


def test_evaluation_counts_all_devices_and_leaves_out_void():
    model, state, _, devices = make(4)
    step = parallel_eval_step(
        partial(eval_step, make_batch=as_sent, settings=StepSettings(model, jnp.asarray(WEIGHTS), TORCH)),
        devices,
    )
    batch = random_batch((4, 3), void=0.4)
    sums, seen = step(state.variables, batch, ())
    flat = jax.tree.map(lambda x: x.reshape(12, *x.shape[2:]), batch)
    logits = np.asarray(model.apply(jax.device_get(state.variables), normalize(flat["image"], TORCH), train=False))
    assert np.array_equal(np.asarray(seen["prediction"]).reshape(flat["label"].shape), logits.argmax(-1))
    expected = np.zeros((12, CLASSES, CLASSES), int)
    for image, (label, predictions) in enumerate(zip(flat["label"], logits.argmax(-1), strict=True)):
        for known, predicted in zip(label.ravel(), predictions.ravel(), strict=True):
            if known != VOID:
                expected[image, known, predicted] += 1
    assert np.array_equal(np.asarray(sums["confusions"]).reshape(expected.shape), expected)
    boundaries = boundary_counts(flat["label"], np.asarray(seen["prediction"]).reshape(flat["label"].shape), CLASSES)
    assert np.array_equal(np.asarray(sums["boundaries"]).reshape(boundaries.shape), boundaries)
    np.testing.assert_allclose(sums["loss"], loss_by_loop(logits, flat["label"])[0], rtol=1e-5)


def test_calibration_averages_the_batches_own_statistics():
    model, state, _, devices = make(2)
    batches = [random_batch((2, 1, 3), seed=number) for number in range(2)]
    ours = average_statistics(model, state.variables, batches, TORCH, devices)
    kernel = np.asarray(state.params["conv1_1"]["kernel"])
    means, variances = [], []
    for batch in batches:  # the first layer by hand: all six images of a batch at once
        image = normalize(jnp.asarray(batch["image"].reshape(6, SIZE, SIZE, 3)), TORCH)
        conv = np.asarray(
            jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
        means.append(conv.mean((0, 1, 2)))
        variances.append(conv.var((0, 1, 2)))
    np.testing.assert_allclose(ours["conv1_1_bn"]["mean"], np.mean(means, 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours["conv1_1_bn"]["var"], np.mean(variances, 0), rtol=1e-4)
    assert jax.tree.structure(ours) == jax.tree.structure(state.batch_stats)
