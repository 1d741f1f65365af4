"""Compare evaluation with a port of SegNet-Tutorial's `compute_test_results.m`, to the last digit."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from segnet_jax import evaluate, train
from segnet_jax.config.flags import parse_config, parse_flags
from segnet_jax.constants import VOID
from segnet_jax.metrics.confusion import confusion_matrix, scores
from segnet_jax.training import build_steps

NUM_CLASSES, UNKNOWN_CLASS = 11, 12


def compute_test_results(annotations, predictions):
    """Run the script step by step, with its classes from 1 on; return the numbers that it displays.

    All is exact up to the divisions, as counts are below 2^53. NumPy sums the eleven terms of a mean in an order of its
    own, here as in our scores; MATLAB documents no order.
    """
    totalpoints, globalacc = 0, 0
    cf = np.zeros((len(annotations), NUM_CLASSES, NUM_CLASSES))
    for i, (annot, pred) in enumerate(zip(annotations, predictions, strict=True)):
        pred, annot = pred + np.uint8(1), annot + np.uint8(1)
        pixels_ignore = annot == UNKNOWN_CLASS
        pred[pixels_ignore] = 0
        annot[pixels_ignore] = 0
        totalpoints = totalpoints + np.count_nonzero(annot > 0)
        for j in range(1, NUM_CLASSES + 1):
            c1 = annot == j
            for k in range(1, NUM_CLASSES + 1):
                c1p = pred == k
                cf[i, j - 1, k - 1] += np.count_nonzero(c1 & c1p)
            globalacc = globalacc + np.count_nonzero(c1 & (pred == j))
    cf = cf.sum(axis=0)
    conf = np.zeros((NUM_CLASSES, NUM_CLASSES))
    for i in range(NUM_CLASSES):
        if cf[i].sum() > 0:
            conf[i] = cf[i] / cf[i].sum()
    intoverunion = np.zeros(NUM_CLASSES)
    for i in range(NUM_CLASSES):
        if conf[i].sum() > 0:
            intoverunion[i] = cf[i, i] / (cf[i].sum() + cf[:, i].sum() - cf[i, i])
    return (
        globalacc / totalpoints,
        np.sum(np.diag(conf)) / NUM_CLASSES,
        np.sum(intoverunion) / NUM_CLASSES,
    )


def read_annotations(folder):
    """Read the 101 labels of the validation clip in the order of val.txt, ids 0..11."""
    names = [line.split()[0].rsplit("/", 1)[-1] for line in (folder / "val.txt").read_text().splitlines()]
    return np.stack([np.asarray(Image.open(folder / "valannot" / name)) for name in names])


def test_the_scores_of_101_frames_are_the_scripts_to_the_last_digit(camvid_folder):
    annotations = read_annotations(camvid_folder)
    assert annotations.shape == (101, 360, 480)
    generator = np.random.default_rng(
        0
    )  # predictions: the next frame's label, a tenth of its pixels and its void noise
    predictions = np.roll(annotations, -1, axis=0)
    noise = generator.integers(0, NUM_CLASSES, annotations.shape, np.uint8)
    predictions = np.where(
        (predictions == 11) | (generator.random(annotations.shape, np.float32) < 0.1), noise, predictions
    )
    labels = np.where(annotations == 11, np.uint8(VOID), annotations)
    count = jax.jit(confusion_matrix, static_argnums=2)
    matrices = [count(*pair, NUM_CLASSES) for pair in zip(labels, predictions, strict=True)]
    found = scores(np.sum(matrices, axis=0, dtype=np.int64))
    expected = compute_test_results(annotations, predictions)
    assert (found.global_accuracy, found.mean_accuracy, found.miou) == expected
    assert 0.5 < found.miou < found.mean_accuracy < found.global_accuracy < 0.9


def test_a_class_that_does_not_occur_is_zero_to_the_script_and_left_out_by_us():
    annotations = np.random.default_rng(0).integers(0, 10, (3, 24, 32)).astype(np.uint8)  # no 10, which is Bicyclist
    found = scores(sum(np.asarray(confusion_matrix(label, label, NUM_CLASSES)) for label in annotations))
    assert compute_test_results(annotations, annotations) == (1, 10 / 11, 10 / 11)
    assert (found.global_accuracy, found.mean_accuracy, found.miou, found.absent) == (1, 1, 1, (10,))


@pytest.mark.slow
def test_evaluating_a_run_on_the_101_frames_gives_the_scripts_scores(camvid_folder, tmp_path, monkeypatch):
    flags = (
        f"--data {camvid_folder} --image-size 360 480 --init none --depth 1 --width 0.0625 --max-steps 1 --devices 1 "
        f"--batch-size-per-device 1 --class-weights none --run {tmp_path / 'run'}"
    )
    assert train.train(parse_config(flags.split(), prog="p", description="")) == 0
    predictions, build = {}, build_steps.build_evaluator

    def build_recording(*args, **settings):
        return partial(build(*args, **settings), on_prediction=predictions.__setitem__)

    monkeypatch.setattr(build_steps, "build_evaluator", build_recording)
    options = [
        str(tmp_path / "run"),
        "--checkpoint",
        "newest",
        "--no-boundary",
        "--json",
        str(tmp_path / "scores.json"),
    ]
    assert evaluate.evaluate(parse_flags(evaluate.EvaluateOptions, options, prog="p", description="")) == 0
    summary = json.loads((tmp_path / "scores.json").read_text())
    expected = compute_test_results(read_annotations(camvid_folder), [predictions[i] for i in range(101)])
    assert (summary["global_accuracy"], summary["mean_accuracy"], summary["miou"]) == expected
