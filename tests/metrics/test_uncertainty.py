"""Compare uncertainty, calibration and coverage with hand-computed values and loops over pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from segnet_jax.constants import VOID
from segnet_jax.metrics.calibration import accuracy_over_coverage, calibration, count_in_bins
from segnet_jax.metrics.uncertainty import entropy, uncertainty


def random_probabilities(*shape):
    odds = np.random.default_rng(0).gamma(0.4, size=shape)
    return np.float32(odds / odds.sum(axis=-1, keepdims=True))


def test_two_samples_that_disagree_worked_out_by_hand():
    # One pixel, two classes: one sample is certain of the first, one of the second. The mean is 1/2, 1/2: entropy log
    # 2, all of it disagreement. Each class has the values 0 and 1, with variance 1/4.
    found = uncertainty(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(found.mean, [0.5, 0.5])
    assert found.variance == pytest.approx(0.25)
    assert found.entropy == pytest.approx(np.log(2)) and found.information == pytest.approx(np.log(2))
    # Two samples of 1/2, 1/2 have the same entropy, but agree.
    found = uncertainty(jnp.array([[0.5, 0.5], [0.5, 0.5]]))
    assert found.entropy == pytest.approx(np.log(2))
    assert found.information == pytest.approx(0, abs=1e-6) and found.variance == 0


def test_maps_equal_a_loop_over_pixels():
    samples = random_probabilities(5, 2, 3, 4, 11)
    found = uncertainty(jnp.asarray(samples))
    for place in np.ndindex(2, 3, 4):
        rows = [[float(p) for p in samples[(t, *place)]] for t in range(5)]
        mean = [sum(row[c] for row in rows) / 5 for c in range(11)]
        spread = [sum((row[c] - mean[c]) ** 2 for row in rows) / 5 for c in range(11)]
        entropies = [-sum(p * np.log(p) for p in row if p > 0) for row in rows]
        total = -sum(p * np.log(p) for p in mean if p > 0)
        np.testing.assert_allclose(found.mean[place], mean, rtol=1e-5, atol=1e-7)
        assert found.variance[place] == pytest.approx(sum(spread) / 11, rel=1e-4)
        assert found.entropy[place] == pytest.approx(total, rel=1e-5)
        assert found.information[place] == pytest.approx(total - sum(entropies) / 5, abs=1e-5)


def test_entropy_is_zero_where_a_class_is_certain_and_largest_where_none_is_preferred():
    assert entropy(jnp.array([0.0, 1.0, 0.0])) == 0
    assert entropy(jnp.full(11, 1 / 11)) == pytest.approx(np.log(11))


def random_pixels(count=5000):
    """Return labels with void, predictions, and confidences that are higher where a prediction is right."""
    random = np.random.default_rng(1)
    label = random.integers(0, 3, count).astype(np.uint8)
    prediction = np.where(random.random(count) < 0.7, label, random.integers(0, 3, count)).astype(np.uint8)
    confidence = np.where(label == prediction, random.beta(5, 2, count), random.beta(2, 2, count)).astype(np.float32)
    label[random.random(count) < 0.1] = VOID
    return label, prediction, confidence


def test_the_calibration_error_worked_out_by_hand():
    # Ten pixels of confidence 0.85, six correct, and ten of 0.25, four correct: |0.6 - 0.85| and |0.4 - 0.25|, each for
    # half of the pixels. A void pixel is not counted.
    confidence = jnp.array([0.85] * 10 + [0.25] * 10 + [0.5])
    label = jnp.array([0] * 20 + [VOID], jnp.uint8)
    prediction = jnp.array([0] * 6 + [1] * 4 + [0] * 4 + [1] * 6 + [0], jnp.uint8)
    found = calibration(count_in_bins(label, prediction, confidence, 1.0), bins=10)
    assert found.error == pytest.approx((0.25 + 0.15) / 2, abs=1e-4)
    assert found.pixels.tolist() == [0, 0, 10, 0, 0, 0, 0, 0, 10, 0]
    assert found.accuracy[2] == pytest.approx(0.4) and found.accuracy[8] == pytest.approx(0.6)
    assert found.confidence[8] == pytest.approx(0.85, abs=1e-4) and np.isnan(found.confidence[0])


def test_the_calibration_error_equals_a_loop_over_bins():
    label, prediction, confidence = random_pixels()
    found = calibration(count_in_bins(*map(jnp.asarray, (label, prediction, confidence)), 1.0))
    known, expected = label != VOID, 0.0
    for i in range(15):
        inside = known & (confidence >= i / 15) & ((confidence < (i + 1) / 15) | (i == 14))
        if inside.any():
            gap = abs((label == prediction)[inside].mean() - confidence[inside].mean())
            expected += inside.sum() / known.sum() * gap
    assert found.error == pytest.approx(expected, abs=2e-4)
    assert found.pixels.sum() == known.sum()


def test_accuracy_over_coverage_is_that_of_the_sorted_pixels():
    label, prediction, confidence = random_pixels()
    counts = count_in_bins(*map(jnp.asarray, (label, prediction, 1 - confidence)), 1.0)
    known = label != VOID
    order = np.argsort(1 - confidence[known], kind="stable")
    right = (label == prediction)[known][order]
    for coverage, accuracy in accuracy_over_coverage(counts).items():
        assert accuracy == pytest.approx(right[: round(coverage * len(right))].mean(), abs=1e-3)


def test_accuracy_without_uncertainty_is_the_same_at_every_coverage():
    label, prediction, _ = random_pixels()
    counts = count_in_bins(jnp.asarray(label), jnp.asarray(prediction), jnp.zeros(len(label)), 2.4)
    accuracy = (label == prediction)[label != VOID].mean()
    assert list(accuracy_over_coverage(counts).values()) == pytest.approx([accuracy] * 7)
    assert calibration(counts).pixels[0] == (label != VOID).sum()


def test_counts_of_batches_add_up_to_those_of_all_pixels():
    label, prediction, confidence = map(jnp.asarray, random_pixels())
    whole = count_in_bins(label, prediction, confidence, 1.0)
    halves = [
        count_in_bins(label[half], prediction[half], confidence[half], 1.0) for half in np.split(np.arange(5000), 2)
    ]
    for name, counts in whole.items():
        assert counts.dtype == jnp.int32
        np.testing.assert_array_equal(counts, halves[0][name] + halves[1][name])


def test_values_at_or_beyond_the_limits_are_counted_in_the_outer_bins():
    label = jnp.zeros(3, jnp.uint8)
    counts = count_in_bins(label, label, jnp.array([-1e-7, 1.0, 1.0000001]), 1.0, bins=4)
    assert counts["pixels"].tolist() == [1, 0, 0, 2]


@pytest.mark.parametrize("score", [calibration, accuracy_over_coverage])
def test_only_void_pixels_are_an_error(score):
    label = jnp.full(3, VOID, jnp.uint8)
    with pytest.raises(ValueError, match="every label is void"):
        score(count_in_bins(label, jnp.zeros(3, jnp.uint8), jnp.ones(3), 1.0))
