"""Several classes per pixel: losses, counts and scores against loops in numpy, with void; one and eight devices."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_losses import mean_loss
from test_steps import assert_trees_close, make, random_batch

from segnet_jax.constants import VOID
from segnet_jax.distributed.data_parallel import AXIS, choose_devices, parallel_eval_step
from segnet_jax.metrics.bootstrap import intervals
from segnet_jax.metrics.boundary import boundary_counts
from segnet_jax.metrics.boundary_matching import count_pairs
from segnet_jax.metrics.co_occurrence import co_occurrences, count_co_occurrences
from segnet_jax.metrics.confusion import scores
from segnet_jax.nn.label_bits import MAX_CLASSES, classes_above_half, count_bits, pack, unpack
from segnet_jax.system.errors import UserError
from segnet_jax.training.losses import LOSSES, multi_label, num_valid, parse_loss

CLASSES = 4
WEIGHTS = np.array([0.5, 1.0, 2.0, 0.25])


def sets_of(label):
    """Return bool [...,C] by a loop over pixels, False where void."""
    found = np.zeros((*label.shape, CLASSES), bool)
    for place in np.ndindex(label.shape):
        value = int(label[place])
        for c in range(CLASSES):
            found[(*place, c)] = value != VOID and value // 2**c % 2 == 1
    return found


# --- oracles of the losses, float64 ---


def cross_entropy(logits, label, smoothing=0.0):
    total = 0.0
    has = sets_of(label)
    for place in np.ndindex(label.shape):
        if label[place] != VOID:
            p, t = 1 / (1 + np.exp(-logits[place])), has[place] * (1 - smoothing) + smoothing / 2
            total -= np.mean(WEIGHTS * (t * np.log(p) + (1 - t) * np.log(1 - p)))
    return total / (label != VOID).sum()


def focal(logits, label, gamma=2.0):
    p = 1 / (1 + np.exp(-logits))
    right = np.where(sets_of(label), p, 1 - p)[label != VOID]
    return (WEIGHTS * (1 - right) ** gamma * -np.log(right)).mean(-1).sum() / (label != VOID).sum()


def tversky(logits, label, alpha=0.3, beta=0.7):
    p, t = (1 / (1 + np.exp(-logits)))[label != VOID], sets_of(label)[label != VOID]
    total = weights = 0.0
    for c in np.flatnonzero(t.any(0)):
        hits = p[t[:, c], c].sum()
        index = hits / (hits + alpha * p[~t[:, c], c].sum() + beta * (1 - p[t[:, c], c]).sum())
        total, weights = total + WEIGHTS[c] * (1 - index), weights + WEIGHTS[c]
    return total / weights


ORACLES = {
    "ce": cross_entropy,
    "ce(smoothing=0.2)": lambda *args: cross_entropy(*args, 0.2),
    "focal": focal,
    "focal(gamma=0.5)": lambda *args: focal(*args, 0.5),
    "dice": lambda *args: tversky(*args, 0.5, 0.5),
    "tversky": tversky,
    "ce + 0.5*dice": lambda *args: cross_entropy(*args) + 0.5 * tversky(*args, 0.5, 0.5),
}


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    label = random.choice(np.array([0, 1, 2, 3, 5, 7, VOID], np.uint8), (3, 4, 5))  # class 3 has no pixel
    label[1] = VOID
    label[2, 1:] = 0
    return random.normal(0, 1.5, (3, 4, 5, CLASSES)), label


def test_every_loss_has_an_oracle_and_the_parameters_of_its_namesake():
    assert {formula.split("(")[0] for formula in ORACLES if "+" not in formula} == multi_label.LOSSES.keys()
    for name, loss in multi_label.LOSSES.items():
        assert inspect.signature(loss).parameters == inspect.signature(LOSSES[name]).parameters


@pytest.mark.parametrize("formula", ORACLES)
def test_value_and_gradient_are_those_of_numpy_with_void_pixels(formula, batch):
    logits, label = batch
    loss, gradient = jax.value_and_grad(mean_loss, argnums=1)(
        parse_loss(formula, multi_label=True), jnp.float32(logits), jnp.asarray(label)
    )
    oracle = ORACLES[formula]
    assert float(loss) == pytest.approx(oracle(logits, label), rel=1e-5)
    expected = np.zeros(logits.shape)
    for place in np.ndindex(logits.shape):
        change = np.zeros(logits.shape)
        change[place] = 1e-6
        expected[place] = (oracle(logits + change, label) - oracle(logits - change, label)) / 2e-6
    np.testing.assert_allclose(gradient, expected, atol=2e-6)
    assert np.abs(gradient).max() > 1e-3 and not gradient[label == VOID].any()


@pytest.mark.parametrize("formula", ORACLES)
def test_perfect_wrong_and_unlabeled_predictions_give_finite_values_and_gradients(formula, batch):
    label = batch[1]
    hot = np.where(sets_of(label), 200.0, -200.0).astype(np.float32)
    loss = parse_loss(formula, multi_label=True)
    for logits in (hot, -hot):
        value, gradient = jax.value_and_grad(mean_loss, argnums=1)(loss, jnp.asarray(logits), jnp.asarray(label))
        assert np.isfinite(value) and np.isfinite(gradient).all()
        if "smoothing" not in formula:
            assert (value < 1e-6) if logits is hot else (value > 0.4)
    void = jnp.full_like(label, VOID)
    assert loss.mean(loss.sums(jnp.asarray(hot), void, jnp.float32(WEIGHTS)), 1, jnp.float32(WEIGHTS)) == 0


def test_losses_of_one_class_per_pixel_are_refused():
    for formula, place in (("ohem", 1), ("ce + lovasz", 6), ("dize", 1)):
        with pytest.raises(UserError, match=f"at character {place}.*known: ce, focal, dice, tversky|nearest: dice"):
            parse_loss(formula, multi_label=True)


@pytest.mark.parametrize("formula", ["ce + 0.5*tversky"])
def test_eight_devices_have_the_loss_and_the_gradient_of_one(formula):
    random = np.random.default_rng(1)
    label = random.integers(0, 8, (16, 6, 7)).astype(np.uint8)
    label[4:, 1:] = VOID
    logits, weights = random.normal(0, 2, (16, 6, 7, CLASSES)).astype(np.float32), jnp.float32(WEIGHTS)
    loss = parse_loss(formula, multi_label=True)

    def step(parameter, batch, _store):
        def fraction(parameter):
            return loss(batch["logits"] * parameter[None, None, None], batch["label"], weights)

        total = jax.lax.psum(num_valid(batch["label"]), AXIS).astype(jnp.float32)
        summed = jax.lax.psum(jax.value_and_grad(fraction)(parameter), AXIS)
        return jax.tree.map(lambda each: each / total, summed), ()

    parameter = jnp.float32([1.0, 0.5, -1.0, 2.0])
    expected = jax.value_and_grad(lambda parameter: mean_loss(loss, logits * parameter[None, None, None], label))(
        parameter
    )
    for count in (1, 8):
        shards = {"logits": logits.reshape(count, -1, *logits.shape[1:]), "label": label.reshape(count, -1, 6, 7)}
        ours, _ = parallel_eval_step(step, choose_devices(str(count)))(parameter, shards, weights)
        assert_trees_close(ours, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow  # the test above compares losses and gradients
def test_eight_devices_take_the_same_steps_of_a_network_as_one():
    results = {}
    for count in (1, 8):
        _, state, step, _ = make(count, loss="ce + dice", multi_label=True)
        losses = []
        for number in range(3):
            batch = random_batch((1, 2, 16), seed=number)
            batch["label"][:, :, 3:, 1:] = VOID
            batch = jax.tree.map(lambda x, n=count: np.swapaxes(x.reshape(2, n, 16 // n, *x.shape[3:]), 0, 1), batch)
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
        results[count] = jax.device_get((state.params, state.batch_stats, losses))
        assert 0 <= float(metrics["accuracy"]) <= 1
    assert_trees_close(results[8], results[1])
    assert results[1][2][2] < results[1][2][0]


# --- bits, counts and scores ---


def test_bits_are_packed_and_unpacked_and_counted_as_by_a_loop():
    random = np.random.default_rng(2)
    label = random.choice(np.array([*range(2**MAX_CLASSES), VOID], np.uint8), (40, 50))
    has = unpack(label, MAX_CLASSES)
    for c in range(MAX_CLASSES):
        np.testing.assert_array_equal(has[..., c], (label.astype(int) // 2**c) % 2 == 1)
    np.testing.assert_array_equal(pack(has)[label != VOID], label[label != VOID])
    np.testing.assert_array_equal(unpack(jnp.asarray(label), MAX_CLASSES), has)
    np.testing.assert_array_equal(pack(jnp.asarray(has)), pack(has))
    logits = random.normal(size=(6, 7, 3)).astype(np.float32)
    np.testing.assert_array_equal(classes_above_half(jnp.asarray(logits)), classes_above_half(logits))
    np.testing.assert_array_equal(unpack(classes_above_half(logits), 3), 1 / (1 + np.exp(-logits)) > 0.5)
    expected = [(has[..., c] & (label != VOID)).sum() for c in range(MAX_CLASSES)]
    np.testing.assert_array_equal(count_bits(np.bincount(label.ravel(), minlength=256), MAX_CLASSES), expected)


@pytest.fixture
def pair():
    random = np.random.default_rng(3)
    label = random.choice(np.array([0, 1, 2, 3, 5, VOID], np.uint8), (3, 9, 11))  # class 3 has no pixel
    label[1] = VOID
    prediction = np.where(random.random(label.shape) < 0.6, label, random.integers(0, 16, label.shape)).astype(np.uint8)
    return label, np.where(prediction == VOID, 6, prediction).astype(np.uint8)


def test_co_occurrences_are_those_of_a_loop_over_pixels(pair):
    label, prediction = pair
    expected = np.zeros((3, CLASSES + 1, CLASSES + 2), int)
    for i, y, x in np.ndindex(label.shape):
        if (known := int(label[i, y, x])) == VOID:
            continue
        predicted = int(prediction[i, y, x])
        rows = [c for c in range(CLASSES) if known >> c & 1] + [CLASSES]
        columns = [c for c in range(CLASSES) if predicted >> c & 1] + [CLASSES] + [CLASSES + 1] * (known == predicted)
        for row in rows:
            for column in columns:
                expected[i, row, column] += 1
    np.testing.assert_array_equal(jax.jit(co_occurrences, static_argnums=2)(*map(jnp.asarray, pair), CLASSES), expected)
    for i in range(3):
        np.testing.assert_array_equal(count_co_occurrences(label[i], prediction[i], CLASSES), expected[i])


def test_scores_are_those_of_each_class_against_its_mask(pair):
    label, prediction = pair
    found = scores(sum(count_co_occurrences(*each, CLASSES) for each in zip(label, prediction, strict=True)))
    valid, known, predicted = label != VOID, sets_of(label), sets_of(prediction)
    ious, dices, recalls = [], [], []
    for c in range(CLASSES - 1):
        t, p = known[valid][:, c], predicted[valid][:, c]
        ious.append((t & p).sum() / (t | p).sum())
        dices.append(2 * (t & p).sum() / (t.sum() + p.sum()))
        recalls.append((t & p).sum() / t.sum())
    np.testing.assert_allclose(found.iou, [*ious, np.nan])
    np.testing.assert_allclose(found.per_class["dice"], [*dices, np.nan])
    np.testing.assert_allclose(found.per_class["recall"], [*recalls, np.nan])
    assert found.miou == pytest.approx(np.mean(ious)) and found.mean_dice == pytest.approx(np.mean(dices))
    assert found.global_accuracy == pytest.approx((label == prediction)[valid].mean())
    assert found.absent == (3,) and found.pixels.tolist() == known.sum((0, 1, 2)).tolist()


def test_bootstrap_intervals_contain_the_scores(pair):
    images = np.stack([count_co_occurrences(*each, CLASSES) for each in zip(*pair, strict=True)])
    low, high = intervals([images])["miou"]
    assert 0 < low <= scores(images.sum(0)).miou <= high < 1


def test_boundaries_are_those_of_each_class_against_the_rest():
    random = np.random.default_rng(4)
    blocks = random.choice(np.array([0, 1, 2, 3], np.uint8), (2, 2, 5, 6))
    label, prediction = np.kron(blocks, np.ones((1, 1, 6, 6), np.uint8))
    label[0, :4] = VOID
    counts = boundary_counts(jnp.asarray(label), jnp.asarray(prediction), 2, multi_label=True)
    for c in range(2):
        has = [(each != VOID) & (each >> c & 1 == 1) for each in (label, prediction)]
        planes = [np.where(each, 0, 1).astype(np.uint8) for each in has]
        np.testing.assert_array_equal(counts[:, c], boundary_counts(*map(jnp.asarray, planes), 1)[:, 0])
        for i in range(2):
            pairs = count_pairs(label[i], prediction[i], 2, multi_label=True)
            assert pairs[c] == count_pairs(planes[0][i], planes[1][i], 1)[0] > 0
