"""Test tiles of a large image: their positions, their blending, and that they leave no seams."""

import tracemalloc

import numpy as np
import pytest
from made_runs import make_run

import segnet_jax
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.inference.predictor import Predictor, Sizing
from segnet_jax.inference.tiles import blend, check_tiles, crops, cut
from segnet_jax.system.errors import UserError

CUTS = [
    (length, tile, overlap, multiple)
    for multiple in (2, 8, 32)
    for length in (1, 7, 63, 64, 65, 100, 333, 1000)
    for tile in (64, 101)
    for overlap in (0, 1, 8, 32)
]


def test_tiles_cover_the_image_on_the_grid_of_the_poolings_and_overlap_enough():
    for length, tile, overlap, multiple in CUTS:
        found = cut(length, tile, overlap, multiple)
        seen = np.zeros(length, int)
        for start in found.starts:
            assert start % multiple == 0 and start + found.size <= length
            seen[start : start + found.size] += 1
        assert seen.all() and found.starts[-1] + found.size == length
        assert (np.diff(found.starts) <= found.size - overlap).all()
        assert found.size == length or tile <= found.size < tile + multiple  # one shape, so one program


def test_a_pixel_counts_one_over_all_tiles_and_nothing_near_an_inner_edge():
    for length, tile, overlap, multiple in CUTS:
        found = cut(length, tile, overlap, multiple)
        total = np.zeros(length)
        for start, weight in zip(found.starts, found.weights, strict=True):
            total[start : start + found.size] += weight
            outer = overlap // 4
            assert (weight >= 0).all()
            assert start == 0 or not weight[:outer].any()
            assert start + found.size == length or not weight[found.size - outer :].any()
        np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_the_weight_rises_in_a_straight_line_worked_out_by_hand():
    found = cut(24, 16, 8, 2)
    assert (found.size, found.starts) == (16, (0, 8))
    rise = [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]
    np.testing.assert_allclose(found.weights[0], [*[1] * 8, *rise[::-1]])
    np.testing.assert_allclose(found.weights[1], [*rise, *[1] * 8])


@pytest.mark.parametrize(("size", "tile", "overlap"), [((61, 83), (32, 40), 16), ((20, 200), (32, 32), 24)])
def test_blending_the_tiles_of_a_picture_gives_the_picture(size, tile, overlap):
    picture = np.random.default_rng(0).normal(size=(*size, 2)).astype(np.float32)
    rows, columns = (cut(length, side, overlap, 8) for length, side in zip(size, tile, strict=True))
    assert len(columns.starts) > 1
    blended, seen = np.zeros_like(picture), np.zeros(size, int)
    for block in blend(crops(picture, rows, columns), rows, columns):
        blended[block.rows, block.columns] = block.values
        seen[block.rows, block.columns] += 1
    assert (seen == 1).all()
    np.testing.assert_allclose(blended, picture, atol=1e-5)


def test_blending_keeps_only_the_overlap_of_a_row_of_tiles_in_memory():
    channels, tile, width, overlap = 50, 64, 8192, 16
    rows, columns = cut(256, tile, overlap, 8), cut(width, tile, overlap, 8)
    one = np.zeros((rows.size, columns.size, channels), np.float32)
    tracemalloc.start()
    try:
        for _ in blend((one for _ in range(len(rows.starts) * len(columns.starts))), rows, columns):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    whole_row = 4 * rows.size * width * channels
    carried = max(rows.size - (end - start) for start, end in zip(rows.starts, rows.ends, strict=True))
    assert peak < 2.2 * whole_row * carried / rows.size + 10 * one.nbytes < whole_row


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [((32, 63), 0, "--tile must be at least 64 64"), ((64, 64), 33, "--overlap must be between 0 and 32")],
)
def test_impossible_tiles_are_refused(tile, overlap, message):
    with pytest.raises(UserError, match=message):
        check_tiles(tile, overlap, multiple=32)


# Two convolutions, a window and two more reach 6 pixels; at depth 2, those at half the size reach twice as far: 15.
@pytest.mark.parametrize(("depth", "tile", "overlap"), [(1, 40, 24), (2, 72, 64)])
def test_a_network_that_sees_no_farther_than_the_overlap_allows_finds_the_same_in_tiles(tmp_path, depth, tile, overlap):
    network = segnet_jax.load(make_run(tmp_path / "run", depth=depth))
    image = np.random.default_rng(1).integers(0, 256, (101, 87, 3), np.uint8)
    whole = network.predict(image, size="native")
    sizing = Sizing.of(network.config, "native", (tile, tile), overlap)
    predictor = Predictor(network, choose_devices("2"), 2, sizing)
    (tiled,) = predictor.predict([predictor.prepare(image)])
    assert len(np.unique(whole)) > 3
    np.testing.assert_array_equal(tiled.class_ids, whole)
    logits = np.asarray(network.logits(image), np.float64)[0]
    sure = np.exp(logits).max(axis=-1) / np.exp(logits).sum(axis=-1)
    assert np.abs(tiled.confidence / 255 - sure).max() < 0.0025


def test_the_next_tiles_are_sent_before_the_last_ones_are_taken(tmp_path, monkeypatch):
    network = segnet_jax.load(make_run(tmp_path / "run"))
    predictor = Predictor(network, choose_devices("2"), 1, Sizing.of(network.config, "native", (8, 8), 2))
    tiles = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    forward, sent, taken = predictor._forward, [], []
    monkeypatch.setattr(predictor, "_forward", lambda *inputs: sent.append(len(taken)) or forward(*inputs))
    for logits in predictor._logits(tiles):
        taken.append(logits)
    assert sent == [0, 0, 2, 4]  # batches of two; never more than one is prefetched
    np.testing.assert_allclose(taken, network.logits(tiles), rtol=1e-4, atol=1e-5)
