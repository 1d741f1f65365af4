"""Test temperature scaling against scipy's minimizer and numpy, with void pixels."""

import jax
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from segnet_jax.constants import VOID
from segnet_jax.metrics.fit_temperature import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature, nll_and_slope


def drawn(seed, true_temperature):
    """Return logits float32 [2,9,8,5], and labels drawn from their softmax at a temperature; a fifth is void."""
    rng = np.random.default_rng(seed)
    logits = 4 * rng.standard_normal((2, 9, 8, 5), np.float32)
    noise = rng.gumbel(size=logits.shape)
    label = (logits / true_temperature + noise).argmax(axis=-1).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = VOID
    return logits, label


def nll(logits, label, factor):
    """Return the NLL of each image at a factor of the logits, in float64."""
    scaled = factor * (logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    log = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    known = label != VOID
    true = np.take_along_axis(log, np.where(known, label, 0)[..., None].astype(int), -1)[..., 0]
    return -np.where(known, true, 0).sum(axis=(1, 2))


def test_nll_and_slope_equal_numpy_and_its_differences():
    logits, label = drawn(0, 2.0)
    factors = np.float32([0.1, 0.5, 1, 3])
    found = np.asarray(jax.jit(nll_and_slope)(logits, label, factors))
    assert found.shape == (2, 4, 2)
    for i, factor in enumerate(factors.astype(float)):
        np.testing.assert_allclose(found[:, i, 0], nll(logits, label, factor), rtol=1e-5)
        slope = (nll(logits, label, factor + 1e-5) - nll(logits, label, factor - 1e-5)) / 2e-5
        np.testing.assert_allclose(found[:, i, 1], slope, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("true_temperature", [0.7, 1.0, 3.0])
def test_the_fitted_temperature_is_that_of_a_general_minimizer(true_temperature):
    logits, label = drawn(1, true_temperature)
    slopes = jax.jit(lambda factors: nll_and_slope(logits, label, factors)[..., 1].sum(axis=0))
    found = fit_temperature(slopes)
    best = minimize_scalar(lambda t: nll(logits, label, 1 / t).sum(), bounds=(0.05, 20), method="bounded").x
    assert found == pytest.approx(best, rel=1e-4) and found == pytest.approx(true_temperature, rel=0.3)


def test_a_minimum_outside_the_range_gives_its_end():
    assert fit_temperature(lambda factors: -np.ones_like(factors)) == pytest.approx(MIN_TEMPERATURE)
    assert fit_temperature(lambda factors: np.ones_like(factors)) == pytest.approx(MAX_TEMPERATURE)
