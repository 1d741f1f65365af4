"""Test every loss and its gradient against numpy in float64, with void, and on one and eight devices."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import assert_trees_close, make, random_batch

from segnet_jax.config.flags import parse_config
from segnet_jax.constants import VOID
from segnet_jax.distributed.data_parallel import AXIS, choose_devices, parallel_eval_step
from segnet_jax.system.errors import UserError
from segnet_jax.training.evaluation import evaluate
from segnet_jax.training.losses import LOSSES, num_valid, parse_loss

CLASSES = 4
WEIGHTS = np.array([0.5, 1.0, 2.0, 0.25])


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def labeled(logits, label):
    """Return the probabilities [N,C] and the classes [N] of the labeled pixels."""
    valid = label != VOID
    return softmax(logits)[valid], label[valid].astype(int)


def cross_entropy(logits, label, smoothing=0.0):
    p, y = labeled(logits, label)
    total = 0.0
    for row, c in zip(p, y, strict=True):
        target = np.full(CLASSES, smoothing / CLASSES)
        target[c] += 1 - smoothing
        total -= (target * WEIGHTS * np.log(row)).sum()
    return total / len(y)


def focal(logits, label, gamma=2.0):
    p, y = labeled(logits, label)
    p = p[np.arange(len(y)), y]
    return (WEIGHTS[y] * (1 - p) ** gamma * -np.log(p)).sum() / len(y)


def ohem(logits, label, threshold=0.7, keep=0.0625):
    total, count = 0.0, 0
    for one, known in zip(logits, label, strict=True):
        p, y = labeled(one, known)
        p = p[np.arange(len(y)), y]
        rank = np.argsort(np.argsort(p))
        hard = (p < threshold) | (rank < np.ceil(keep * len(y)))
        total, count = total - (WEIGHTS[y] * np.log(p))[hard].sum(), count + hard.sum()
    return total / count


def tversky(logits, label, alpha=0.3, beta=0.7):
    p, y = labeled(logits, label)
    total = weights = 0.0
    for c in np.unique(y):
        hits, false_positives, false_negatives = p[y == c, c].sum(), p[y != c, c].sum(), (1 - p[y == c, c]).sum()
        index = hits / (hits + alpha * false_positives + beta * false_negatives)
        total, weights = total + WEIGHTS[c] * (1 - index), weights + WEIGHTS[c]
    return total / weights


def lovasz(logits, label):
    """Compute Algorithm 1 of Berman et al. 2018, image by image."""
    images = []
    for one, known in zip(logits, label, strict=True):
        p, y = labeled(one, known)
        if not len(y):
            continue
        total = weights = 0.0
        for c in np.unique(y):
            foreground = (y == c).astype(float)
            errors = np.abs(foreground - p[:, c])
            order = np.argsort(-errors)
            truth = foreground[order]
            jaccard = 1 - (truth.sum() - truth.cumsum()) / (truth.sum() + (1 - truth).cumsum())
            slopes = np.diff(jaccard, prepend=0.0)
            total, weights = total + WEIGHTS[c] * errors[order] @ slopes, weights + WEIGHTS[c]
        images.append(total / weights)
    return np.mean(images)


ORACLES = {
    "ce": cross_entropy,
    "ce(smoothing=0.1)": lambda *args: cross_entropy(*args, smoothing=0.1),
    "focal": focal,
    "focal(gamma=0.5)": lambda *args: focal(*args, gamma=0.5),
    "ohem": ohem,
    "ohem(threshold=0.2,keep=0.5)": lambda *args: ohem(*args, threshold=0.2, keep=0.5),
    "dice": lambda *args: tversky(*args, alpha=0.5, beta=0.5),
    "tversky": tversky,
    "tversky(alpha=1, beta=0)": lambda *args: tversky(*args, alpha=1, beta=0),
    "lovasz": lovasz,
    "ce + 0.5*dice + 2 * lovasz": lambda *args: (
        cross_entropy(*args) + 0.5 * tversky(*args, 0.5, 0.5) + 2 * lovasz(*args)
    ),
}


def test_every_loss_has_an_oracle_and_defaults_for_its_parameters():
    assert {formula.split("(")[0] for formula in ORACLES if "+" not in formula} == LOSSES.keys()
    for loss in LOSSES.values():
        assert all(each.default is not each.empty for each in inspect.signature(loss).parameters.values())


def test_the_help_names_every_loss_with_its_parameters_and_defaults(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--help-all"], prog="segnet_jax.train", description="")
    help_text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name, loss in LOSSES.items():
        defaults = (f"{each.name}={each.default:g}" for each in inspect.signature(loss).parameters.values())
        assert (f"{name}({', '.join(defaults)})" if inspect.signature(loss).parameters else f" {name},") in (
            help_text.replace(" lovasz ", " lovasz, ")
        )


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    label = random.choice(np.array([0, 1, 2, VOID], np.uint8), (4, 4, 5))  # no pixel of class 3
    label[0][label[0] == 1] = 0  # an image without class 1
    label[2] = VOID
    label[3, 1:] = VOID
    return random.normal(0, 1.5, (4, 4, 5, CLASSES)), label


def mean_loss(loss, logits, label):
    weights = jnp.float32(WEIGHTS)
    return loss.mean(loss.sums(logits, label, weights), num_valid(label).astype(jnp.float32), weights)


@pytest.mark.parametrize("formula", ORACLES)
def test_value_and_gradient_are_those_of_numpy_with_void_pixels(formula, batch):
    logits, label = batch
    loss, gradient = jax.value_and_grad(mean_loss, argnums=1)(
        parse_loss(formula), jnp.float32(logits), jnp.asarray(label)
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
    hot = 200 * np.eye(CLASSES, dtype=np.float32)[np.where(label == VOID, 0, label)]
    slope = jax.value_and_grad(mean_loss, argnums=1)
    loss = parse_loss(formula)
    for logits in (hot, -hot):
        value, gradient = slope(loss, jnp.asarray(logits), jnp.asarray(label))
        assert np.isfinite(value) and np.isfinite(gradient).all()
        if "smoothing" not in formula:
            assert (value < 1e-6) if logits is hot else (value > 0.4)
    void = jnp.full_like(label, VOID)
    value, gradient = jax.value_and_grad(
        lambda logits: loss.mean(loss.sums(logits, void, jnp.float32(WEIGHTS)), 1, jnp.float32(WEIGHTS))
    )(jnp.asarray(hot))
    assert value == 0 and not gradient.any()


def test_label_smoothing_and_cross_entropy_equal_pytorchs(batch):
    torch = pytest.importorskip("torch")
    logits, label = batch
    target = torch.tensor(np.where(label == VOID, -100, label.astype(np.int64)))
    for smoothing in (0.0, 0.1, 1.0):
        each = torch.nn.functional.cross_entropy(
            torch.tensor(logits).permute(0, 3, 1, 2),
            target,
            torch.tensor(WEIGHTS),
            reduction="sum",
            label_smoothing=smoothing,
        )
        ours = mean_loss(parse_loss(f"ce(smoothing={smoothing})"), jnp.float32(logits), jnp.asarray(label))
        assert float(ours) == pytest.approx(float(each) / (label != VOID).sum(), rel=1e-5)


def uneven_batch():
    """Return 16 images, most of whose labeled pixels are in the first four."""
    random = np.random.default_rng(1)
    label = random.integers(0, 3, (16, 6, 7)).astype(np.uint8)
    label[4:, 1:] = VOID
    label[9] = VOID
    label[:4][label[:4] == 2] = 1  # the first devices have no pixel of class 2
    return random.normal(0, 2, (16, 6, 7, CLASSES)).astype(np.float32), label


@pytest.mark.parametrize("mapping", ["pmap", pytest.param("shard_map", marks=pytest.mark.slow)])
@pytest.mark.parametrize("formula", [pytest.param("ohem", marks=pytest.mark.slow), "ce + 0.5*tversky + lovasz"])
def test_eight_devices_have_the_loss_and_the_gradient_of_one(formula, mapping):
    """Compare the sum over devices, divided by the labeled pixels, for logits that depend on one parameter."""
    loss, weights, (logits, label) = parse_loss(formula), jnp.float32(WEIGHTS), uneven_batch()

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
        batch = {"logits": logits.reshape(count, -1, *logits.shape[1:]), "label": label.reshape(count, -1, 6, 7)}
        mapped = parallel_eval_step(step, choose_devices(str(count), mapping=mapping))
        ours, _ = mapped(parameter, batch, weights)  # pmap of jax 0.10.2 mistakes three arrays for three arguments
        assert_trees_close(ours, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(expected[1]).min() > 1e-3


@pytest.mark.slow  # the test above compares losses and gradients
def test_eight_devices_take_the_same_steps_of_a_network_as_one():
    results = {}
    for count in (1, 8):
        _, state, step, _ = make(count, loss="focal + 0.5*dice", learning_rate=0.05)
        losses = []
        for number in range(3):
            batch = random_batch((1, 2, 16), seed=number)
            batch["label"][:, :, 3:, 1:] = VOID
            batch = jax.tree.map(lambda x, n=count: np.swapaxes(x.reshape(2, n, 16 // n, *x.shape[3:]), 0, 1), batch)
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
        results[count] = jax.device_get((state.params, state.batch_stats, losses))
    assert_trees_close(results[8], results[1])
    assert results[1][2][2] < results[1][2][0]


SLOW = [pytest.param(formula, marks=pytest.mark.slow) for formula in ("ce", "dice")]


@pytest.mark.slow
@pytest.mark.parametrize("formula", [*SLOW, "0.5*ce + ohem + lovasz"])
def test_the_loss_of_an_evaluation_does_not_depend_on_its_batches(formula):
    loss, weights, (logits, label) = parse_loss(formula), jnp.float32(WEIGHTS), uneven_batch()
    confusion = np.zeros((16, CLASSES, CLASSES), np.int32)
    confusion[:, 0, 0] = (label != VOID).sum((1, 2))

    def score(_, place):
        sums = loss.sums(jnp.asarray(logits[place]), jnp.asarray(label[place]), weights)
        size = len(logits[place])
        totals = {"loss": sums, "confusions": confusion[place][None], "boundaries": np.zeros((1, size, CLASSES, 4))}
        return totals, {"prediction": np.zeros((1, size, 6, 7), np.uint8)}

    found = set()
    for size in (16, 2):
        places = [slice(start, start + size) for start in range(0, 16, size)]
        indices = [np.arange(16)[None, place] for place in places]

        def of_sums(sums, num_pixels):
            return loss.mean(sums, num_pixels, weights)

        found.add(evaluate(score, {}, places, indices, mean_loss=of_sums).loss)
    expected = float(mean_loss(loss, jnp.asarray(logits), jnp.asarray(label)))
    np.testing.assert_allclose(sorted(found), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "formula, parts",
    [
        ("ce + 0.5*dise", ["at character 10", "unknown loss dise", "nearest: dice"]),
        ("ce +", ["at its end", "expected a loss: ce, focal"]),
        ("", ["at its end", "expected a loss"]),
        ("0.5 dice", ['at character 5, "dice"', 'expected "*" after 0.5']),
        ("ce ++ dice", ['at character 5, "+ dice"', "expected a loss"]),
        ("ce - dice", ["at character 4", 'expected "+" or the end']),
        ("ce & dice", ['at character 4, "& dice"', "unexpected character"]),
        ("ce)", ["at character 3", 'expected "+" or the end']),
        ("0*ce", ["at character 1", "above 0"]),
        ("1e999*ce", ["at character 1", "too large"]),
        ("ce(smooting=0.1)", ["at character 4", "unknown parameter smooting", "nearest: smoothing"]),
        ("ce(smoothing=2)", ["at character 1", "smoothing must be between 0 and 1, got 2"]),
        ("ce(smoothing=0.1", ["at its end", 'expected "," or ")"']),
        ("focal(gamma=1, gamma=2)", ["at character 16", "gamma is given twice"]),
        ("focal(gamma)", ["at character 12", 'expected "=" after gamma']),
        ("focal(gamma=)", ["at character 13", "expected a number"]),
        ("dice(x=1)", ["at character 6", "dice has no parameters"]),
        ("ce+" * 200, ["600 characters", "at most 500"]),
    ],
)
def test_a_formula_that_cannot_be_read_is_answered_with_the_place(formula, parts):
    with pytest.raises(UserError) as error:
        parse_loss(formula)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)
