"""Compare the confusion matrix with a loop over pixels, and the scores with hand-computed values."""

import jax
import numpy as np
import pytest

from segnet_jax.constants import VOID
from segnet_jax.metrics import confusion
from segnet_jax.metrics.confusion import confusion_matrix, count_by_products, scores

count = jax.jit(confusion_matrix, static_argnames="num_classes")


def count_by_loop(label, prediction, num_classes):
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for known, predicted in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if known != VOID:
            matrix[known][predicted] += 1
    return matrix


@pytest.mark.parametrize("num_classes", [11, 17, 200])  # from 17 on, class * classes + class exceeds a byte
def test_counts_equal_a_loop_over_pixels_and_void_does_not_count(num_classes):
    rng = np.random.default_rng(num_classes)
    label, prediction = rng.integers(0, num_classes, (2, 3, 31, 23), np.uint8)
    label[rng.random(label.shape) < 0.3] = VOID
    matrix = count(label, prediction, num_classes=num_classes)
    assert matrix.dtype == np.int32
    np.testing.assert_array_equal(matrix, count_by_loop(label, prediction, num_classes))
    assert matrix.sum() == (label != VOID).sum()


@pytest.mark.parametrize("num_classes, block", [(11, 2**23), (11, 11 * 100), (200, 200 * 1000)])
def test_counts_by_products_of_matrices_equal_a_loop_over_pixels(num_classes, block, monkeypatch):
    monkeypatch.setattr(confusion, "_BLOCK_NUMBERS", block)  # one block; several, with the last one padded
    rng = np.random.default_rng(num_classes)
    label, prediction = rng.integers(0, num_classes, (2, 2139), np.uint8)
    label[rng.random(label.shape) < 0.3] = VOID
    matrix = jax.jit(count_by_products, static_argnums=2)(label, prediction, num_classes)
    assert matrix.dtype == np.int32
    np.testing.assert_array_equal(matrix, count_by_loop(label, prediction, num_classes))


def test_rows_are_the_known_class_and_columns_the_predicted_one():
    np.testing.assert_array_equal(count(np.uint8([0, 0, 1]), np.uint8([1, 1, 1]), num_classes=2), [[0, 2], [0, 1]])


def test_an_image_of_void_counts_nothing():
    label = np.full((1, 4, 5), VOID, np.uint8)
    np.testing.assert_array_equal(count(label, np.zeros_like(label), num_classes=11), np.zeros((11, 11)))


def test_splitting_and_padding_with_void_change_nothing():
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 5, (2, 7, 6, 6), np.uint8)
    padded_label = np.concatenate([label, np.full((1, 6, 6), VOID, np.uint8)])
    padded_prediction = np.concatenate([prediction, np.zeros((1, 6, 6), np.uint8)])
    halves = sum(
        np.asarray(count(padded_label[part], padded_prediction[part], num_classes=5), np.int64)
        for part in (slice(0, 4), slice(4, 8))
    )
    np.testing.assert_array_equal(halves, count(label, prediction, num_classes=5))


def test_more_pixels_than_float32_can_count_are_counted_exactly_on_the_device():
    label = np.zeros(2**24 + 1, np.uint8)  # 2**24 + 1 is the first integer that float32 lacks
    np.testing.assert_array_equal(count(label, label, num_classes=2), [[2**24 + 1, 0], [0, 0]])
    by_products = jax.jit(count_by_products, static_argnums=2)
    np.testing.assert_array_equal(by_products(label, label, 2), [[2**24 + 1, 0], [0, 0]])


def test_scores_of_four_classes_worked_by_hand():
    result = scores(
        [
            [50, 10, 0, 0],  # 60 pixels, 50 right; 52 predicted: IoU 50 / (60 + 52 - 50) = 50/62
            [2, 20, 2, 0],  #   24 pixels, 20 right; 34 predicted: IoU 20 / (24 + 34 - 20) = 20/38
            [0, 4, 6, 0],  #    10 pixels,  6 right;  9 predicted: IoU  6 / (10 +  9 -  6) =  6/13
            [0, 0, 1, 5],  #     6 pixels,  5 right;  5 predicted: IoU  5 / ( 6 +  5 -  5) =  5/6
        ]
    )
    iou = [50 / 62, 20 / 38, 6 / 13, 5 / 6]
    accuracy = [50 / 60, 20 / 24, 6 / 10, 5 / 6]
    np.testing.assert_array_equal(result.pixels, [60, 24, 10, 6])
    np.testing.assert_allclose(result.iou, iou, rtol=1e-15)
    np.testing.assert_allclose(result.accuracy, accuracy, rtol=1e-15)
    assert result.global_accuracy == pytest.approx(81 / 100, rel=1e-15)
    assert result.mean_accuracy == pytest.approx(0.775, rel=1e-15)  # (5/6 + 5/6 + 3/5 + 5/6) / 4
    assert result.miou == pytest.approx((50 / 62 + 20 / 38 + 6 / 13 + 5 / 6) / 4, rel=1e-15)
    assert result.weighted_iou == pytest.approx(
        0.60 * iou[0] + 0.24 * iou[1] + 0.10 * iou[2] + 0.06 * iou[3], rel=1e-15
    )
    dice = [2 * 50 / (60 + 52), 2 * 20 / (24 + 34), 2 * 6 / (10 + 9), 2 * 5 / (6 + 5)]
    np.testing.assert_allclose(result.per_class["dice"], dice, rtol=1e-15)
    np.testing.assert_allclose(result.per_class["precision"], [50 / 52, 20 / 34, 6 / 9, 5 / 5], rtol=1e-15)
    np.testing.assert_array_equal(result.per_class["recall"], result.accuracy)
    assert result.mean_dice == pytest.approx(sum(dice) / 4, rel=1e-15)
    assert result.mean_precision == pytest.approx((50 / 52 + 20 / 34 + 6 / 9 + 1) / 4, rel=1e-15)
    assert result.absent == ()


@pytest.mark.parametrize("seed", range(3))
def test_dice_precision_and_recall_equal_counts_of_pixels_by_loops(seed):
    rng = np.random.default_rng(seed)
    label, prediction = rng.integers(0, 6, (2, 40), np.uint8)
    label[rng.random(40) < 0.3] = VOID
    label[label == 4] = 3  # a class without ground truth, and below one that is never predicted
    prediction[prediction == 5] = 0
    found = scores(count_by_loop(label, prediction, 6)).per_class
    for class_id in range(6):
        pairs = [(a == class_id, b == class_id) for a, b in zip(label, prediction, strict=True) if a != VOID]
        right, missed, wrong = (pairs.count(each) for each in ((True, True), (True, False), (False, True)))
        if right + missed == 0:
            assert all(np.isnan(values[class_id]) for values in found.values())
            continue
        assert found["dice"][class_id] == pytest.approx(2 * right / (2 * right + missed + wrong))
        assert found["recall"][class_id] == found["accuracy"][class_id] == pytest.approx(right / (right + missed))
        assert found["precision"][class_id] == pytest.approx(right / (right + wrong) if right + wrong else 0)
        assert found["iou"][class_id] == pytest.approx(right / (right + missed + wrong))


def test_a_class_without_ground_truth_is_nan_and_left_out_of_the_means():
    result = scores([[6, 0, 2], [0, 0, 0], [1, 1, 2]])  # class 1 is predicted once and never known
    np.testing.assert_allclose(result.iou, [6 / 9, np.nan, 2 / 6], rtol=1e-15)
    np.testing.assert_allclose(result.accuracy, [6 / 8, np.nan, 2 / 4], rtol=1e-15)
    np.testing.assert_allclose(result.per_class["precision"], [6 / 7, np.nan, 2 / 4], rtol=1e-15)
    assert result.absent == (1,)
    assert result.miou == pytest.approx((6 / 9 + 2 / 6) / 2, rel=1e-15)
    assert result.mean_accuracy == pytest.approx((6 / 8 + 2 / 4) / 2, rel=1e-15)
    assert result.weighted_iou == pytest.approx((8 * 6 / 9 + 4 * 2 / 6) / 12, rel=1e-15)
    assert result.global_accuracy == pytest.approx(8 / 12, rel=1e-15)


def test_a_class_neither_known_nor_predicted_is_nan_without_a_warning(recwarn):
    result = scores(np.diag([3, 0, 4]))
    np.testing.assert_array_equal(result.iou, [1, np.nan, 1])
    assert (result.miou, result.mean_accuracy, result.absent) == (1, 1, (1,))
    assert not recwarn.list


def test_a_class_never_predicted_scores_zero():
    result = scores([[4, 0], [4, 0]])
    np.testing.assert_array_equal(result.iou, [0.5, 0])
    assert result.miou == 0.25 and result.absent == ()


def test_all_void_is_an_error():
    with pytest.raises(ValueError, match="no labeled pixel"):
        scores(np.zeros((11, 11), np.int64))


def test_scores_are_exact_beyond_the_integers_of_float32_and_int32():
    wrong, right = 1, 2**40
    result = scores(np.array([[right, wrong], [0, right]], np.int64))
    np.testing.assert_array_equal(result.pixels, [2**40 + 1, 2**40])
    assert result.global_accuracy == (2 * right) / (2 * right + 1) < 1
    assert result.iou[0] == right / (right + 1) < 1


def test_a_matrix_on_the_device_can_be_scored_directly():
    label = np.uint8([[0, 1], [1, VOID]])
    assert scores(count(label, label, num_classes=2)).miou == 1
