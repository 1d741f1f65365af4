"""Test each optimizer's first three steps against hand computations, clipping, multipliers and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_steps import optimizer_of

from segnet_jax.config.lr_multipliers import NAMES, check_multipliers
from segnet_jax.nn.network_interface import PARTS, convolution_block
from segnet_jax.system.errors import UserError
from segnet_jax.training.optimizer import OPTIMIZERS
from segnet_jax.training.plateau import PlateauState, find_plateau, reduce_on_plateau
from segnet_jax.training.schedules import exponential_range, learning_rate_schedule

RATE, DECAY, MOMENTUM = 0.1, 0.5, 0.8


@pytest.fixture(autouse=True)
def optax_promotion():
    """Allow the mixed dtypes of optax, which combines floats with an integer count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def sgd(g, p, m, step):
    m["trace"] = g + DECAY * p + MOMENTUM * m.get("trace", 0)
    return p - RATE * m["trace"]


def nesterov(g, p, m, step):
    g = g + DECAY * p
    m["trace"] = g + MOMENTUM * m.get("trace", 0)
    return p - RATE * (g + MOMENTUM * m["trace"])


def adamw(g, p, m, step):
    m["first"] = MOMENTUM * m.get("first", 0) + (1 - MOMENTUM) * g
    m["second"] = 0.999 * m.get("second", 0) + 0.001 * g**2
    first, second = m["first"] / (1 - MOMENTUM**step), m["second"] / (1 - 0.999**step)
    return p - RATE * (first / (np.sqrt(second) + 1e-8) + DECAY * p)


def lion(g, p, m, step):
    """Compute Algorithm 2 of Chen et al. 2023, with beta2 0.99."""
    sign = np.sign(MOMENTUM * m.get("mean", 0) + (1 - MOMENTUM) * g)
    m["mean"] = 0.99 * m.get("mean", 0) + 0.01 * g
    return p - RATE * (sign + DECAY * p)


def adafactor(g, p, m, step):
    """Compute Algorithms 4 and 5 of Shazeer & Stern 2018, without first moment: relative steps, clipped to RMS 1."""
    beta = 1 - step**-0.8
    squares = g**2 + 1e-30
    if g.ndim > 1 and min(g.shape[-2:]) >= 128:
        m["rows"] = beta * m.get("rows", 0) + (1 - beta) * squares.mean(-1, keepdims=True)
        m["columns"] = beta * m.get("columns", 0) + (1 - beta) * squares.mean(-2, keepdims=True)
        second = m["rows"] * m["columns"] / m["rows"].mean(-2, keepdims=True)
    else:
        m["second"] = second = beta * m.get("second", 0) + (1 - beta) * squares
    update = g / np.sqrt(second)
    update = update / max(1, np.sqrt((update**2).mean()))
    return p - RATE * (update * max(np.sqrt((p**2).mean()), 1e-3) + DECAY * p)


ORACLES = {
    "sgd": (sgd, {}),
    "nesterov": (nesterov, {"optimizer": "sgd", "nesterov": True}),
    "adamw": (adamw, {}),
    "lion": (lion, {}),
    "adafactor": (adafactor, {}),
}


def test_every_optimizer_has_an_oracle():
    assert ORACLES.keys() == OPTIMIZERS.keys() | {"nesterov"}


@pytest.mark.parametrize("name", ORACLES)
def test_three_steps_equal_those_by_hand(name):
    """Use a kernel with weight decay, large enough for Adafactor's factored moments."""
    oracle, settings = ORACLES[name]
    settings = {"optimizer": name, "learning_rate": RATE, "momentum": MOMENTUM, "weight_decay": DECAY} | settings
    optimizer, random = optimizer_of(**settings), np.random.default_rng(0)
    kernel = random.normal(0, 2, (2, 1, 128, 130)) if name == "adafactor" else random.normal(0, 2, (1, 1, 3, 4))
    params = {"conv": {"kernel": jnp.float32(kernel)}}
    state, expected, moments = optimizer.init(params), kernel, {}
    for step in (1, 2, 3):
        gradient = random.normal(0, step, kernel.shape)
        updates, state = optimizer.update({"conv": {"kernel": jnp.float32(gradient)}}, state, params)
        params = optax.apply_updates(params, updates)
        expected = oracle(gradient, expected, moments, step)
        np.testing.assert_allclose(params["conv"]["kernel"], expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_leaves_biases_and_scales_alone(name):
    params = {"conv": {"bias": jnp.full(3, 2.0)}, "conv_bn": {"scale": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)}}
    gradients = jax.tree.map(lambda leaf: 0.3 * leaf, params)
    with_decay, without = (
        optimizer.update(gradients, optimizer.init(params), params)[0]
        for optimizer in (optimizer_of(optimizer=name, weight_decay=decay) for decay in (0.5, 0.0))
    )
    jax.tree.map(np.testing.assert_array_equal, with_decay, without)


@pytest.mark.parametrize("norm, factor", [(10.0, 1.0), (5.0, 1.0), (2.5, 0.5)])
def test_gradients_are_scaled_to_the_norm_over_all_parameters(norm, factor):
    params = {"conv": {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}}
    optimizer = optimizer_of(learning_rate=1.0, momentum=0.0, clip_gradients=norm)
    gradients = {"conv": {"kernel": jnp.float32([3]), "bias": jnp.float32([-4])}}  # of norm 5
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["conv"]["kernel"], -3 * factor, rtol=1e-6)
    np.testing.assert_allclose(updates["conv"]["bias"], 4 * factor, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_multipliers_scale_the_updates_of_their_section_and_role_and_are_multiplied(name):
    layers = (
        *convolution_block("first", "encoder", 1),
        *convolution_block("second", "decoder"),
        *convolution_block("last", "head")[:1],
    )
    params = {layer.name: dict.fromkeys(PARTS[layer.kind], jnp.ones(2)) for layer in layers}
    gradients = jax.tree.map(lambda leaf: 3 * leaf, params)
    settings = {"layers": layers, "optimizer": name, "learning_rate": 0.1, "weight_decay": 0.5}
    multipliers = {"encoder": 0.1, "head": 10, "bias": 2, "scale": 0.5, "shift": 0}
    texts = tuple(f"{key}={factor:g}" for key, factor in multipliers.items())
    plain, scaled = (
        optimizer.update(gradients, optimizer.init(params), params)[0]
        for optimizer in (optimizer_of(**settings), optimizer_of(**settings, lr_mult=texts))
    )
    for layer in layers:
        for part, role in PARTS[layer.kind].items():
            factor = multipliers.get(layer.section, 1) * multipliers.get(role, 1)
            np.testing.assert_allclose(scaled[layer.name][part], factor * plain[layer.name][part], rtol=1e-6)


@pytest.mark.parametrize(
    "given, parts",
    [
        (["encode=0.1"], ["got 'encode=0.1'", "nearest: encoder"]),
        (["head"], ["a factor from 0 to 100 for head", "got ''"]),
        (["head=ten"], ["got 'ten'"]),
        (["head=101"], ["from 0 to 100", "got '101'"]),
        (["head=nan"], ["got 'nan'"]),
        (["head=1", "head=2"], ["head twice"]),
    ],
)
def test_wrong_multipliers_are_refused(given, parts):
    with pytest.raises(UserError) as error:
        check_multipliers(given)
    assert all(part in str(error.value) for part in parts), str(error.value)
    check_multipliers([f"{name}=0.5" for name in NAMES])


def test_one_cycle_is_that_of_pytorch_and_starts_and_ends_low():
    torch = pytest.importorskip("torch")
    for total in (10, 37, 200):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=total)
        ours = learning_rate_schedule("one-cycle", peak=0.4, total_steps=total)
        for step in range(total):
            assert float(ours(step)) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-4, abs=1e-7)
            optimizer.step()
            theirs.step() if step + 1 < total else None


def test_one_cycle_by_hand():
    ours = learning_rate_schedule("one-cycle", peak=1.0, total_steps=21, warmup_steps=11)
    rates = [float(ours(step)) for step in (0, 5, 10, 15, 20)]
    np.testing.assert_allclose(rates, [0.04, 0.52, 1.0, (1 + 4e-6) / 2, 4e-6], rtol=1e-4)
    for total in (1, 2, 3):
        rates = [float(learning_rate_schedule("one-cycle", peak=1.0, total_steps=total)(step)) for step in range(total)]
        assert np.isfinite(rates).all() and max(rates) <= 1


def test_a_range_grows_by_one_factor():
    rates = [float(exponential_range(1e-4, 1.0, 5)(step)) for step in range(5)]
    np.testing.assert_allclose(rates, [1e-4, 1e-3, 1e-2, 1e-1, 1.0], rtol=1e-4)


def scales_of(losses, *, factor, patience, steps_per_epoch):
    """Return the factor that each step's update was multiplied by."""
    transformation, scales = reduce_on_plateau(factor, patience, steps_per_epoch), []
    state = transformation.init({})
    for loss in losses:
        updates, state = transformation.update({"a": jnp.ones(2)}, state, value=jnp.float32(loss))
        scales.append(float(updates["a"][0]))
    assert all(np.isfinite(each) for each in state)
    return scales


def test_the_rate_drops_on_a_plateau_of_hand_worked_epochs():
    losses = [4, 2, 3, 3, 3.5, 2.5, 1, 1, 1, 3, 1, 1]  # epochs of two steps: 3, 3, 3, 1, 2, 1
    scales = scales_of(losses, factor=0.5, patience=1, steps_per_epoch=2)
    assert scales == [1] * 6 + [0.5] * 6  # after the third; in the sixth 1 is no improvement, for the second time
    scales = scales_of([*losses, 1], factor=0.5, patience=1, steps_per_epoch=2)
    assert scales[-1] == 0.25


def test_a_plateau_equals_pytorchs():
    torch = pytest.importorskip("torch")
    random, factor, patience = np.random.default_rng(3), 0.3, 2
    epochs = np.round(2 + np.exp(-np.arange(40) / 5) + random.normal(0, 0.05, 40), 3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=patience, eps=0)
    expected = []
    for loss in epochs:
        expected += [optimizer.param_groups[0]["lr"]] * 3
        theirs.step(loss)
    ours = scales_of(np.repeat(epochs, 3), factor=factor, patience=patience, steps_per_epoch=3)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert len(set(expected)) > 3


def test_a_plateau_is_found_in_an_optimizers_state_and_scales_every_optimizer():
    params = {"conv": {"kernel": jnp.ones(3)}}
    for name in OPTIMIZERS:
        optimizer = optimizer_of(
            optimizer=name, schedule="plateau", plateau_patience=0, step_factor=0.5, weight_decay=0
        )
        state = optimizer.init(params)
        assert isinstance(find_plateau(state), PlateauState)
        for _ in range(4):  # two epochs of two steps; the second does not improve
            _, state = optimizer.update(params, state, params, value=jnp.float32(1))
        assert float(find_plateau(state).scale) == 0.5
    assert find_plateau(optimizer_of().init(params)) is None
