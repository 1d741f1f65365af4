"""Test figures: colors against hand-computed numbers, curves, and the panels of each sheet."""

import os

import numpy as np
import pytest
from PIL import Image

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import CAMVID, ClassTable
from segnet_jax.reporting import sheet
from segnet_jax.reporting.class_key import key_strip
from segnet_jax.reporting.colors import colorize, hatch, overlay
from segnet_jax.reporting.figures import batch_picture, error_map, prediction_pictures
from segnet_jax.reporting.training_plot import epoch_bands, smoothed, thinned, training_plot

HOSTILE = ClassTable(names=(r"$\frac{$", "<script>alert(1)</script>"), colors=((10, 20, 30), (200, 100, 0)))


def random_batch(n, height, width, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, height, width, 3), np.uint8)
    labels = rng.integers(0, num_classes + 1, (n, height, width), np.uint8)
    return images, np.where(labels == num_classes, VOID, labels).astype(np.uint8)


def metrics(num_steps, steps_per_epoch):
    rows = []
    for step in range(1, num_steps + 1):
        row = {"kind": "train", "step": step, "epoch": step / steps_per_epoch, "seconds": 0.5 * step}
        rows.append(row | {"loss": 2 / step, "accuracy": 0.5, "learning_rate": 1e-3, "images_per_second": 8.0})
        if step % steps_per_epoch == 0:
            row = row | {"kind": "val", "loss": 3 / step, "global_accuracy": 0.6, "mean_accuracy": 0.5}
            rows.append(row | {"miou": 0.4, "weighted_iou": 0.5, "iou": {"Sky": None}})
    return rows


def test_an_overlay_is_40_percent_image_and_60_percent_color_and_keeps_the_image_at_void():
    image = np.array([[[100, 200, 0], [100, 200, 0]]], np.uint8)
    label = np.array([[0, VOID]], np.uint8)  # Sky is (128, 128, 128)
    # 0.4*100 + 0.6*128 = 116.8, 0.4*200 + 0.6*128 = 156.8, 0.6*128 = 76.8
    assert overlay(image, label, CAMVID).tolist() == [[[117, 157, 77], [100, 200, 0]]]
    assert overlay(image, label, CAMVID, transparency=1).tolist() == image.tolist()


def test_a_label_gets_the_palette_and_void_is_black():
    label = np.array([[10, VOID, 2]], np.uint8)
    assert colorize(label, CAMVID).tolist() == [[[0, 128, 192], [0, 0, 0], [192, 192, 128]]]
    with pytest.raises(AssertionError, match="class id 11 among 11"):
        colorize(np.array([[11]], np.uint8), CAMVID)


def test_the_error_map_distinguishes_correct_wrong_and_void():
    picture = error_map(np.array([[1, 1, VOID]], np.uint8), np.array([[1, 0, 1]], np.uint8))
    correct, wrong, void = picture[0].tolist()
    assert wrong == [214, 39, 40]
    assert len(set(correct)) == len(set(void)) == 1 and correct[0] > void[0]  # two grays


def test_the_first_batch_shows_each_image_above_its_overlay(tmp_path):
    images, labels = random_batch(5, 30, 240, 11)
    batch_picture(images, labels, CAMVID, tmp_path / "batch.png", "First batch")
    picture = np.array(Image.open(tmp_path / "batch.png"))
    for place, corner in ((0, 0), (3, 3 * 248)):  # 240 pixels and a gap of 8
        tops = [y for y in range(len(picture) - 30) if (picture[y, 16 + corner] == images[place, 0, 0]).all()]
        found = [y for y in tops if (picture[y : y + 30, 16 + corner : 256 + corner] == images[place]).all()]
        assert len(found) == 1
        below = picture[found[0] + 38 : found[0] + 68, 16 + corner : 256 + corner]
        labeled = labels[place] != VOID
        np.testing.assert_array_equal(below[labeled], overlay(images[place], labels[place], CAMVID)[labeled])
    assert os.listdir(tmp_path) == ["batch.png"]


def test_void_is_hatched_so_that_a_black_class_is_not_taken_for_it():
    black = np.zeros((20, 20, 3), np.uint8)
    void = np.zeros((20, 20), bool)
    void[:, 10:] = True
    found = hatch(black, void, period=10)
    np.testing.assert_array_equal(found[:, :10], black[:, :10])
    white = (found == 255).all(-1)
    for line in (*white[:, 10:], *white[:, 10:].T[:, :10]):  # in every row and column, two of ten pixels
        assert line.sum() == 2
    light = hatch(np.full((20, 20, 3), 255, np.uint8), void, period=10)
    assert ((light[:, 10:] == 0).all(-1).sum(1) == 2).all() and (light[:, :10] == 255).all()


@pytest.mark.parametrize("size", [(20, 30), (60, 300), (400, 960)])  # enlarged, kept, shrunk
def test_a_batch_is_hatched_at_void_and_only_there_at_any_size(tmp_path, size):
    labels = np.zeros((1, *size), np.uint8)
    labels[:, :, size[1] // 2 :] = VOID
    table = ClassTable(names=("tarmac",), colors=((0, 0, 0),))
    batch_picture(np.zeros((1, *size, 3), np.uint8), labels, table, tmp_path / "batch.png", "a batch")
    picture = np.array(Image.open(tmp_path / "batch.png"))
    height, width = (round(side * sheet.panel_scale(*size)) for side in size)
    dark = (picture[:, 16 : 16 + width // 2 - 2] < 40).all((1, 2))
    (edges,) = np.nonzero(np.diff(np.concatenate([[False], dark, [False]]).astype(int)))
    top, bottom = edges[2:4]  # of the second panel, below the image
    assert bottom - top == height
    void = picture[top:bottom, 16 + width // 2 + 2 : 16 + width]
    stripes = (void > 100).all(-1).mean(1)  # where pixels were averaged, some are gray
    assert (np.abs(stripes - 0.2) < 0.11).all()  # in every row


def test_images_of_a_batch_have_their_names_and_padding_is_blank(tmp_path, monkeypatch):
    written, text_strip = [], sheet.text_strip

    def recorded(texts, *args, **looks):
        written.append(tuple(texts))
        return text_strip(texts, *args, **looks)

    monkeypatch.setattr(sheet, "text_strip", recorded)
    images, labels = random_batch(5, 30, 240, 2)
    inside = np.ones(labels.shape, bool)
    inside[:, :, 200:] = False
    names = list("abcde")
    batch_picture(images, labels, HOSTILE, tmp_path / "batch.png", "it", names=names, inside=inside)
    assert ("a", "b", "c", "d") in written and ("e", "", "", "") in written
    picture = np.array(Image.open(tmp_path / "batch.png"))
    tops = [y for y in range(len(picture) - 30) if (picture[y, 16:216] == images[0, 0, :200]).all()]
    assert (picture[tops[0] : tops[0] + 68, 216:256] == 255).all()


def test_texts_that_are_too_long_keep_their_beginning_or_their_end():
    font = sheet.load_font(14)
    assert sheet.cut("frame_000001", font, 60).startswith("frame") and sheet.cut("x", font, 60) == "x"
    shortened = sheet.cut("frame_000001", font, 60, keep_end=True)
    assert shortened.startswith("…") and shortened.endswith("001") and font.getlength(shortened) <= 60


def test_at_most_eight_images_of_a_batch_are_drawn(tmp_path):
    for n in (8, 32):
        batch_picture(*random_batch(n, 20, 30, 2), HOSTILE, tmp_path / f"{n}.png", "a batch")
    assert Image.open(tmp_path / "8.png").size == Image.open(tmp_path / "32.png").size


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (700, 900), (90, 3)])
def test_sheets_accept_images_of_any_size_and_odd_names(tmp_path, size):
    images, labels = random_batch(2, *size, 2)
    labels[1] = VOID
    names = ["<script>\n" + "long" * 99, "$\\frac{$"]
    path = prediction_pictures(images, labels, np.zeros_like(labels), names, HOSTILE, tmp_path / "samples", 123, "val")
    assert path.name == "step_0000123.png"
    assert sorted(os.listdir(path.parent)) == ["latest.png", "step_0000123.png"]
    assert path.read_bytes() == (path.parent / "latest.png").read_bytes()
    height, width = size
    factor = max(1, min(-(-240 // width), 4096 // height))  # enlarged to 240 columns, but not beyond 4096 rows
    assert Image.open(path).width == 4 * min(480, width * factor) + 3 * 8 + 2 * 16


def test_the_row_of_an_image_has_label_prediction_and_errors(tmp_path):
    images, labels = random_batch(1, 20, 240, 2)
    predictions = np.where(labels == VOID, 1, 1 - labels).astype(np.uint8)  # wrong everywhere
    path = prediction_pictures(images, labels, predictions, ["a"], HOSTILE, tmp_path, 1, "val")
    picture = np.array(Image.open(path))
    top = next(y for y in range(len(picture) - 20) if (picture[y : y + 20, 16:256] == images[0]).all())
    panels = [picture[top : top + 20, 16 + 248 * place : 256 + 248 * place] for place in range(4)]
    np.testing.assert_array_equal(panels[1], colorize(labels[0], HOSTILE))
    np.testing.assert_array_equal(panels[2], colorize(predictions[0], HOSTILE))
    np.testing.assert_array_equal(panels[3], error_map(labels[0], predictions[0]))
    wrong = (panels[3] == (214, 39, 40)).all(-1)
    np.testing.assert_array_equal(wrong, labels[0] != VOID)


def test_pictures_name_their_split(tmp_path, monkeypatch):
    images, labels = random_batch(1, 20, 30, 2)
    written, text_strip = [], sheet.text_strip

    def recorded(texts, *args, **looks):
        written.extend(texts)
        return text_strip(texts, *args, **looks)

    monkeypatch.setattr(sheet, "text_strip", recorded)
    prediction_pictures(images, labels, labels, ["a"], HOSTILE, tmp_path, 7, "test")
    assert "Test images after step 7" in written


def test_names_are_drawn_literally():
    plain, dollars = (np.array(key_strip([(name, (0, 0, 0))], 300)) for name in ("x", "$x$"))
    ink = [(picture.min(-1) < 128)[:, 20:].any(0).sum() for picture in (plain, dollars)]
    assert ink[1] > 2 * ink[0]


def test_the_training_plot_draws_dollars_and_tags_literally(tmp_path):
    path = tmp_path / "progress.png"
    training_plot(
        metrics(40, 4), path, steps_per_epoch=4, title=r"$\frac{$ <script>", device=r"$\frac{$ V100", total_steps=100
    )  # not valid as math text
    assert Image.open(path).width >= 1200
    assert os.listdir(tmp_path) == ["progress.png"]


@pytest.mark.parametrize("rows", [[], metrics(1, 8), metrics(3, 1), metrics(8, 8)[-1:]])
def test_a_training_plot_can_be_drawn_at_any_time(tmp_path, rows):
    training_plot(rows, tmp_path / "progress.png", steps_per_epoch=8, title="early")
    assert (tmp_path / "progress.png").stat().st_size > 10_000


def test_the_axis_of_a_training_plot_reaches_to_the_planned_end(tmp_path):
    rows = metrics(40, 4)
    training_plot(rows, tmp_path / "half.png", steps_per_epoch=4, title="half", total_steps=80)
    picture = np.asarray(Image.open(tmp_path / "half.png").convert("RGB")).astype(int)
    blue = (np.abs(picture - (10, 110, 189)).sum(axis=-1) < 30).any(axis=0)[: int(0.73 * picture.shape[1])]
    left, right = 0.06 * picture.shape[1], 0.73 * picture.shape[1]
    assert (np.flatnonzero(blue).max() - left) / (right - left) == pytest.approx(40 / 80, abs=0.02)


def test_a_training_plot_skips_values_that_are_not_finite(tmp_path):
    rows = metrics(20, 5)
    for row in rows[::3]:
        row.update(loss=None, accuracy=None, miou=None, learning_rate=None)
    training_plot(rows, tmp_path / "progress.png", steps_per_epoch=5, title="gaps")
    training_plot(
        [row | {"loss": float("inf")} for row in rows], tmp_path / "progress.png", steps_per_epoch=5, title="gaps"
    )


def test_smoothing_is_an_exponential_average_that_skips_gaps():
    # A window of five values: decay 2/3, so the second mean is (2/9 a + 3/9 b) / (5/9).
    np.testing.assert_allclose(smoothed(np.array([1.0, 6.0])), [1.0, 4.0])
    np.testing.assert_allclose(smoothed(np.array([np.nan, 1.0, np.nan, 6.0])), [np.nan, 1.0, 1.0, 4.0])
    np.testing.assert_allclose(smoothed(np.full(500, 3.0)), 3.0)


def test_thinning_keeps_the_peaks_and_the_order():
    values = np.random.default_rng(0).normal(size=10_000)
    values[1234], values[777], values[888] = 99, -99, np.nan
    kept = thinned(values)
    assert len(kept) <= 2000 and {1234, 777} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    assert thinned(values[:50]).tolist() == list(range(50))


def test_epoch_bands_are_round_few_and_contain_every_epoch_once():
    assert epoch_bands(3) == [(1, 1), (2, 2), (3, 3)]
    assert epoch_bands(100)[:2] == [(1, 10), (11, 20)] and len(epoch_bands(100)) == 10
    for num_epochs in range(1, 1200, 7):
        bands = epoch_bands(num_epochs)
        assert len(bands) <= 10
        assert [epoch for first, last in bands for epoch in range(first, last + 1)] == list(range(1, num_epochs + 1))
