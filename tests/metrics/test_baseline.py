"""Test the baseline that predicts the most common class everywhere."""

import numpy as np
import pytest

from segnet_jax.metrics.baseline import commonest_class_baseline, is_clearly_better


def test_hand_worked_scores():
    confusion = np.array([[5, 5, 0], [0, 30, 0], [0, 0, 0]])  # 10 pixels of class 0, 30 of class 1, none of class 2
    found = commonest_class_baseline(confusion)
    assert found.class_id == 1
    assert found.values["global_accuracy"] == 0.75
    assert found.values["miou"] == pytest.approx((0 + 30 / 40) / 2)
    assert found.values["mean_accuracy"] == 0.5
    assert is_clearly_better(0.43, found) and not is_clearly_better(0.42, found)


def test_it_depends_on_the_labels_alone():
    one, other = np.array([[10, 0], [0, 30]]), np.array([[0, 10], [30, 0]])
    assert commonest_class_baseline(one) == commonest_class_baseline(other)


def test_without_labeled_pixels_there_is_none():
    assert commonest_class_baseline(np.zeros((2, 2), np.int64)) is None
