"""Test median-frequency class weights on a case computed by hand and on CamVid's labels."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from segnet_jax.config.fields import Config
from segnet_jax.data.dataset import Split
from segnet_jax.data.input_pipeline.class_counts import count_split
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.data.layouts.camvid import tutorial
from segnet_jax.training.checkpoint_folders import class_weights_of
from segnet_jax.training.class_weights import (
    global_frequency_weights,
    load_class_weights,
    present_frequency_weights,
    sqrt_frequency_weights,
)

# protocols.md section 4: recounted from the published labels
PIXELS = [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967]
IMAGES = [366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201]
PRESENT = [0.2793, 0.2017, 4.7865, 0.1490, 1.0000, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587]
GLOBAL = [0.2663, 0.1929, 4.5642, 0.1417, 1.0000, 0.4614, 3.8248, 3.9814, 0.7648, 7.0182, 15.3816]


def test_weights_of_a_hand_worked_case():
    pixels, image_pixels = np.array([50, 10, 0, 20]), np.array([100, 100, 0, 50])
    # Frequencies 0.5, 0.1, none, 0.4: median 0.4.
    np.testing.assert_allclose(present_frequency_weights(pixels, image_pixels), [0.8, 4.0, 0.0, 1.0], rtol=1e-6)
    # Of 100 pixels in all: 0.5, 0.1, none, 0.2: median 0.2.
    np.testing.assert_allclose(global_frequency_weights(pixels, 100), [0.4, 2.0, 0.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(
        sqrt_frequency_weights(pixels, image_pixels), [0.8944272, 2.0, 0.0, 1.0], rtol=1e-6
    )  # roots of the first


def test_the_rule_chooses_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(tmp_path))
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[0, 0] = 1  # 4 of the 16 pixels of the one image that has it
    split = Split(("x", "y"), lambda index: (None, labels[index]), "00")
    dataset = SimpleNamespace(classes=ClassTable(("a", "b"), ((0, 0, 0), (9, 9, 9))), splits={"train": split})
    # Frequencies 28/32 and 4/16: median 0.5625.
    present = np.array([0.5625 / 0.875, 0.5625 / 0.25])
    for rule, expected in (("auto-present", present), ("auto-sqrt", present**0.5), ("none", [1, 1])):
        found = load_class_weights(Config(data="photos", class_weights=rule), dataset)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_counts_of_unequal_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        present_frequency_weights(np.ones(3, np.int64), np.ones(4, np.int64))


@pytest.mark.slow
def test_weights_of_the_real_training_labels_by_both_rules(camvid_folder, tmp_path):
    counts = count_split(tutorial(camvid_folder).splits["train"], 11, tmp_path)
    assert counts.pixels.tolist() == PIXELS
    assert (counts.image_pixels // (360 * 480)).tolist() == IMAGES
    assert counts.total == 367 * 360 * 480
    assert present_frequency_weights(counts.pixels, counts.image_pixels).round(4).tolist() == pytest.approx(PRESENT)
    assert global_frequency_weights(counts.pixels, counts.total).round(4).tolist() == pytest.approx(GLOBAL)


def test_a_checkpoint_gives_back_its_class_weights_bit_for_bit():
    weights = present_frequency_weights(np.array(PIXELS), np.array(IMAGES) * 360 * 480)
    restored = class_weights_of(json.loads(json.dumps({"class_weights": weights.tolist()})))
    assert restored.dtype == np.float32 and np.array_equal(restored, weights)
