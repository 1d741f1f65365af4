"""Test the table of metrics: stacks of matrices against single ones, and matrices without pixels."""

import numpy as np
import pytest

from segnet_jax.metrics.table import METRICS, percent, primary_metrics


def random_confusions(num_matrices=5, num_classes=11):
    confusions = np.random.default_rng(0).integers(0, 50, (num_matrices, num_classes, num_classes))
    confusions[1, 3] = confusions[2, 5] = 0  # classes without ground truth
    return confusions


@pytest.mark.parametrize("key", METRICS)
def test_a_stack_of_matrices_has_the_metrics_of_each_matrix(key):
    confusions = random_confusions()
    function = METRICS[key].function
    np.testing.assert_allclose(function(confusions), [function(each) for each in confusions], rtol=1e-14)
    np.testing.assert_array_equal(function(confusions.astype(np.float64)), function(confusions))
    assert function(confusions[None]).shape == (1, 5)


@pytest.mark.parametrize("key", METRICS)
def test_a_matrix_without_pixels_gives_nan_without_a_warning(key, recwarn):
    confusions = random_confusions()
    confusions[0] = 0
    assert np.isnan(METRICS[key].function(confusions)).tolist() == [True, False, False, False, False]
    assert np.isnan(METRICS[key].function(confusions[0]))
    assert not recwarn.list


def test_keys_match_and_the_primary_metrics_are_those_of_the_experiments():
    assert {metric.key: metric for metric in METRICS.values()} == METRICS
    assert set(primary_metrics()) == {"miou", "global_accuracy", "mean_accuracy"}


def test_fractions_are_formatted_in_percent():
    assert [percent(each) for each in (0.4125, 1.0, None, np.nan)] == ["41.2 %", "100.0 %", "-", "-"]
