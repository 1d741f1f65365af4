"""Compare boundary F1 with the algorithms of BSDS and the tutorial's script, using SciPy's distances and matchings."""

import os
import subprocess
import sys
import types
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from segnet_jax.constants import VOID
from segnet_jax.data.input_pipeline.cache import from_arrays
from segnet_jax.metrics.boundary import boundary_counts, boundary_f1
from segnet_jax.metrics.boundary_matching import count_pairs
from segnet_jax.metrics.boundary_tolerance import half_widths
from segnet_jax.training.evaluation import evaluate_boundaries

count_on_device = jax.jit(boundary_counts, static_argnums=2)


def seg2bdry(mask):
    """Compute BSDS's seg2bdry(mask, "imageSize") with its double-size grid; MATLAB's indices are ours plus one."""
    height, width = mask.shape
    down, across = np.zeros_like(mask), np.zeros_like(mask)
    down[:-1] = mask[:-1] != mask[1:]
    across[:, :-1] = mask[:, :-1] != mask[:, 1:]
    grid = np.zeros((2 * height + 1, 2 * width + 1), bool)
    grid[2::2, 1::2], grid[1::2, 2::2] = down, across
    grid[2:-1:2, 2:-1:2] = across[:-1, :-1] | across[1:, :-1] | down[:-1, :-1] | down[:-1, 1:]
    grid[0], grid[:, 0] = grid[1], grid[:, 1]
    grid[-1] = grid[-2]
    grid[:, -1] = grid[:, -2]
    return grid[2::2, 2::2]


def near(boundary, other, most):
    """Count the pixels of a boundary within a distance of the other."""
    return int((distance_transform_edt(~other)[boundary] <= most).sum()) if other.any() else 0


def pairs(one, other, most):
    """Count the boundary pixels that can be paired one to one within a distance, as correspondPixels does."""
    here, there = np.argwhere(one), np.argwhere(other)
    if not len(here) or not len(there):
        return 0
    near_by = cKDTree(here).query_ball_tree(cKDTree(there), most)
    ends = np.cumsum([0, *map(len, near_by)])
    graph = csr_array((np.ones(ends[-1], np.int8), np.concatenate(near_by).astype(int), ends), (len(here), len(there)))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def oracle(label, prediction, num_classes):
    """Return the device's counts, [C,4], and the host's pairs, [C], by the script's loop over classes."""
    most = 0.0075 * np.hypot(*label.shape)
    counts, matched = [], []
    for class_id in range(num_classes):
        known, predicted = seg2bdry(label == class_id), seg2bdry(prediction == class_id)
        counts.append([known.sum(), near(known, predicted, most), predicted.sum(), near(predicted, known, most)])
        matched.append(pairs(predicted, known, most))
    return np.array(counts), np.array(matched)


def mean_f1(found, *, by_pairs):
    """Average over classes and images as the script does or, with `by_pairs` false, as the paper does."""
    of_images = []
    for counts, matched in found:
        total = number = 0
        for (known, known_near, predicted, predicted_near), paired in zip(counts, matched, strict=True):
            recall = (paired if by_pairs else known_near) / known if known else 0
            precision = (paired if by_pairs else predicted_near) / predicted if predicted else 0
            if known or (by_pairs and predicted):
                number += 1
                total += 2 * precision * recall / (precision + recall) if precision + recall else 0
        if number:
            of_images.append(total / number)
        elif by_pairs:
            of_images.append(0)
    return np.mean(of_images)


def check(labels, predictions, num_classes):
    """Compare counts, pairs and both scores with the oracle; return the scores."""
    labels, predictions = np.stack(labels), np.stack(predictions)
    expected = [oracle(*pair, num_classes) for pair in zip(labels, predictions, strict=True)]
    counts = np.asarray(count_on_device(labels, predictions, num_classes))
    matched = np.stack([count_pairs(*pair, num_classes) for pair in zip(labels, predictions, strict=True)])
    np.testing.assert_array_equal(counts, [counts for counts, _ in expected])
    np.testing.assert_array_equal(matched, [matched for _, matched in expected])
    found = boundary_f1(counts, matched)
    assert found.paper == pytest.approx(mean_f1(expected, by_pairs=False), rel=1e-12)
    assert found.script == pytest.approx(mean_f1(expected, by_pairs=True), rel=1e-12)
    return found


def random_pair(generator, height, width, num_classes):
    """Return a label of random blobs, and a prediction that is a shifted, noisy copy of it."""

    def blobs(size):
        coarse = generator.integers(0, num_classes, (-(-height // size), -(-width // size)))
        return np.kron(coarse, np.ones((size, size), int))[:height, :width].astype(np.uint8)

    label = blobs(generator.integers(3, 30))
    prediction = np.roll(label, generator.integers(-3, 4, 2), (0, 1))
    change = generator.random(label.shape) < generator.choice([0, 0.01, 0.05])
    prediction = np.where(change, blobs(generator.integers(1, 9)), prediction)
    label[blobs(17) == 0] = VOID
    return label, prediction


@pytest.mark.parametrize(
    "height, width, num_classes, number",
    [(31, 47, 3, 14), (97, 203, 11, 28), (202, 301, 5, 4), (60, 141, 40, 4)],
    ids=str,
)
def test_50_random_pairs_match_the_oracle(height, width, num_classes, number):
    generator = np.random.default_rng(height)
    check(*zip(*(random_pair(generator, height, width, num_classes) for _ in range(number)), strict=True), num_classes)


def real_pairs(folder, number=20, ahead=1):
    """Return the validation clip's labels and, as predictions, the labels some frames later; both without void."""
    paths = sorted((folder / "valannot").iterdir())
    labels = [np.where((ids := np.asarray(Image.open(path))) == 11, VOID, ids) for path in paths]
    chosen = range(0, len(paths) - ahead, (len(paths) - ahead) // number)[:number]
    return [labels[i] for i in chosen], [np.where(labels[i + ahead] == VOID, 0, labels[i + ahead]) for i in chosen]


def test_20_real_pairs_match_the_oracle(camvid_folder):
    thirds = [[ids[::3, ::3] for ids in each] for each in real_pairs(camvid_folder)]
    found = check(*thirds, 11)
    assert 0.5 < found.script < found.paper < 1


@pytest.mark.slow
def test_20_real_pairs_match_the_oracle_at_full_size(camvid_folder):
    found = check(*real_pairs(camvid_folder, ahead=6), 11)  # with ahead=1, Hopcroft-Karp takes minutes per pair
    print(f"paper {found.paper:.4f}, script {found.script:.4f}")
    assert 0.3 < found.script < found.paper < 1


def f1_of(label, prediction, num_classes=2):
    label, prediction = np.uint8(label), np.uint8(prediction)
    counts = count_on_device(label[None], prediction[None], num_classes)
    return boundary_f1(counts, count_pairs(label, prediction, num_classes)[None])


def test_a_boundary_worked_out_by_hand():
    label = np.zeros((4, 5), np.uint8)
    label[1:3, 2:4] = 1  # 2x2 pixels of class 1: 3x3 blocks, from one above and left on, contain it
    counts = np.asarray(count_on_device(label[None], label[None], 2))
    np.testing.assert_array_equal(counts, [[[8, 8, 8, 8], [8, 8, 8, 8]]])  # all but the pixel whose block is entirely 1


def test_a_pixel_matches_many_by_distance_and_one_by_pairs():
    label, prediction = np.zeros((2, 96, 128), np.uint8)  # diagonal 160: a tolerance of 1.2 pixels
    label[:, 64:] = 1  # one boundary, in column 63
    prediction[:, 64] = 1  # two, in columns 63 and 64
    found = f1_of(label, prediction)
    assert found.paper == 1 and found.paper_classes.tolist() == [1, 1]
    assert found.script == pytest.approx(2 / 3)  # recall 1, precision 1/2


def test_the_tolerance_is_exactly_three_quarters_of_a_percent_of_the_diagonal():
    assert half_widths(360, 480) == [4, 4, 4, 3, 2]  # 4.5 pixels: 4^2 + 2^2 = 20 < 20.25 < 4^2 + 3^2
    assert half_widths(720, 960)[0] == 9 and len(half_widths(720, 960)) == 10  # 9 pixels, which count
    assert half_widths(48, 64) == [0]


def test_a_class_predicted_without_ground_truth_counts_in_the_script_only():
    label, prediction = np.zeros((2, 40, 40), np.uint8)
    label[:, 20:] = prediction[:, 20:] = 1
    prediction[5:9, 3:7] = 2
    found = f1_of(label, prediction, 4)
    known = 2 * 40 / (40 + 40 + 16)  # class 0: recall 40/40; precision 40/56, with the 16 pixels around class 2
    assert found.paper_classes[:2].tolist() == found.script_classes[:2].tolist() == [pytest.approx(known), 1]
    assert found.paper == pytest.approx((known + 1) / 2) and found.script == pytest.approx((known + 1 + 0) / 3)
    assert np.isnan(found.paper_classes[2:]).all() and found.script_classes[2] == 0
    assert np.isnan(found.script_classes[3])


def test_images_without_a_boundary_are_skipped_by_the_paper_and_count_zero_in_the_script():
    labels = np.zeros((2, 24, 32), np.uint8)
    labels[0, 12:] = 1
    matched = np.stack([count_pairs(label, label, 2) for label in labels])
    found = boundary_f1(count_on_device(labels, labels, 2), matched)
    assert (found.paper, found.script) == (1, 0.5)
    alone = f1_of(labels[1], labels[1])
    assert np.isnan(alone.paper) and alone.script == 0


def test_classes_that_border_on_void_have_a_boundary_and_void_has_none():
    label = np.zeros((24, 32), np.uint8)
    label[:, 16:] = VOID
    counts = np.asarray(count_on_device(label[None], np.zeros_like(label)[None], 2))
    np.testing.assert_array_equal(counts, [[[24, 0, 0, 0], [0, 0, 0, 0]]])
    assert f1_of(label, label).script == f1_of(label, label).paper == 1


def test_counting_lowers_to_no_scatter_on_any_platform():
    shape = jax.ShapeDtypeStruct((2, 36, 48), np.uint8)
    step = jax.jit(partial(boundary_counts, num_classes=11))
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        text = step.trace(shape, shape).lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.or" in text and "scatter" not in text and "gather" not in text


@pytest.mark.parametrize(
    "size",
    [pytest.param((40, 60), id="threads"), pytest.param((400, 600), id="processes", marks=pytest.mark.slow)],
)
def test_every_image_of_a_split_is_paired_with_its_own_label(size):
    labels = np.zeros((60, *size), np.uint8)
    for i, label in enumerate(labels):
        label[: i % size[0] + 1, : size[1] // 2] = 1
    samples = from_arrays(np.empty((60, 0)), labels)

    def evaluate(on_prediction):
        for i in reversed(range(60)):
            on_prediction(i, labels[i] if i % 2 else np.zeros_like(labels[i]))
        return types.SimpleNamespace(boundaries=np.asarray(count_on_device(labels, labels, 2)))

    _, found = evaluate_boundaries(evaluate, samples, 2)
    whole, empty = 1, 0  # F1 of odd images, and of even ones, whose square is missed
    assert found.script == pytest.approx((whole + empty) / 2)
    assert evaluate_boundaries(lambda on_prediction: on_prediction(0, labels[0]), samples, 2) is None


SPEED = """
import sys, time, types, numpy as np, jax
from segnet_jax.training.evaluation import evaluate_boundaries
from segnet_jax.metrics.boundary import boundary_counts
from segnet_jax.data.input_pipeline.cache import from_arrays
labels, predictions = np.load(sys.argv[1])
step = jax.jit(boundary_counts, static_argnums=2)
def evaluate(on_prediction):
    counts = []
    for i in range(len(labels)):
        counts.append(step(labels[i : i + 1], predictions[i : i + 1], 11))
        on_prediction(i, predictions[i])
    return types.SimpleNamespace(boundaries=np.concatenate(counts))
samples = from_arrays(np.empty((len(labels), 0)), labels)
evaluate_boundaries(evaluate, samples, 11)
start = time.monotonic()
evaluate_boundaries(evaluate, samples, 11)
print(len(labels) / (time.monotonic() - start))
"""


@pytest.mark.slow
def test_both_definitions_run_at_twenty_images_per_second(camvid_folder, tmp_path):
    np.save(tmp_path / "pairs.npy", np.array(real_pairs(camvid_folder, number=100), np.uint8))
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    cores = sorted(os.sched_getaffinity(0))[:2]
    printed = subprocess.run(
        [sys.executable, "-c", SPEED, str(tmp_path / "pairs.npy")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    ).stdout
    print(f"{float(printed):.1f} images per second on two cores, by distance and one to one")
    assert float(printed) > 20
