"""Test limits checked before time or memory is spent: TOML, images, batches, threads, image sizes."""

import dataclasses
import io
import re
import struct
import threading
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hostile_files import chunk as png_chunk
from made_runs import CONFIG, make_run
from PIL import Image

import segnet_jax
from segnet_jax.constants import VOID
from segnet_jax.data.images import fit as images_fit
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.images.fit import fit_sample
from segnet_jax.data.images.picture_header import claimed_pixels, inspect
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.inference import class_maps, prediction_pipeline, predictor
from segnet_jax.inference.predictor import Predictor, PreparedImage, Sizing
from segnet_jax.inference.sources import Source
from segnet_jax.reporting import prediction_files, sheet
from segnet_jax.reporting.class_key import add_class_key
from segnet_jax.runs.dataset_checks import suggested_size
from segnet_jax.runs.out_of_memory import check_memory
from segnet_jax.system import bounded_toml
from segnet_jax.system.errors import OutOfMemory, UserError
from segnet_jax.system.memory_budget import Budget, count_values
from segnet_jax.system.signals import Stop

# --- TOML ---

DEEP = {
    "a dotted key": "a" + ".a" * 30_000 + " = 1",
    "a dotted key with spaces": "a" + " . a" * 15_000 + " = 1",
    "a table's dotted name": "[a" + ".a" * 30_000 + "]",
    "a quoted dotted key": '"a"' + '."a"' * 15_000 + " = 1",
    "arrays": "x = " + "[" * 30_000 + "]" * 30_000,
    "inline tables": "x = " + "{a=" * 15_000,
    "arrays behind a text": 'x = "]]]]"\ny = ' + "[" * 20_000,
    "arrays behind brackets that close nothing": "]" * 20_000 + "\nx = " + "[" * 20_000,
    "arrays over lines": "x = " + "[\n" * 20_000,
    "64 kB and one": "#" * 65_537,
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_toml_is_refused_before_it_takes_memory(name):
    tracemalloc.start()
    begin = time.monotonic()
    with pytest.raises(ValueError, match="nested over 16 levels deep|over 65,536 bytes"):
        bounded_toml.loads(DEEP[name])
    assert time.monotonic() - begin < 5 and tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_toml_as_people_write_it_is_read():
    written = """
    classes = [ { name = "[[[[[[[[[[[[[[[[[[", id = [1, 2], color = [[0, 0, 0], [1, 2, 3]] } ]  # [[[[[[[[[[[[[[[[[[[[
    path = 'a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s'
    long = \"\"\"{{{{{{{{{{{{{{{{{{{{ \\\"\"\" [
    \"\"\"
    [a.b.c]
    d = 1.5
    """
    found = bounded_toml.loads(written)
    assert found["classes"][0]["color"][1] == [1, 2, 3] and found["a"]["b"]["c"]["d"] == 1.5


def test_the_widest_toml_of_its_size_is_read_quickly():
    begin = time.monotonic()
    bounded_toml.loads("".join(f"k{number} = 1\n" for number in range(5_000)))
    bounded_toml.loads("x = [" + "1," * 30_000 + "]")
    assert time.monotonic() - begin < 5


# --- pictures ---


def png_of(width, height, more=b""):
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + more + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")


def scans_of(tmp_path, number):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", progressive=True)
    data = (tmp_path / "a.jpg").read_bytes()
    scans = [found.start() for found in re.finditer(b"\xff\xda", data)]
    return data[:-2] + data[scans[-1] : -2] * number + data[-2:]


def test_chunks_scans_segments_and_sides_are_bounded(tmp_path):
    exif = b"\xff\xd8" + b"\xff\xe1\x00\x02" * 20_000 + b"\xff\xda"
    for data, kind in (
        (png_of(8, 8, png_chunk(b"teXt", b"") * 200_000), "cut-off"),
        (png_of(65_536, 1), "too-many-pixels"),
        (png_of(1, 2**31 - 1), "too-many-pixels"),
        (exif, "broken-data"),
        (scans_of(tmp_path, 100), "too-many-scans"),
    ):
        begin = time.monotonic()
        with pytest.raises(UserError) as error:
            inspect(data, "a")
        assert error.value.kind == kind and time.monotonic() - begin < 5
    assert inspect(scans_of(tmp_path, 2), "a").width == 64
    assert read_image(scans_of(tmp_path, 0), "a").shape == (64, 64, 3)


def tiff_of(*more, after=b""):
    """Return a gray TIFF of 8x8 pixels with additional tags: (tag, type, number, value)."""
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    tags = sorted([*tags, (273, 4, 1, 8), (278, 3, 1, 8), (279, 4, 1, 64), *more])
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4) + after


def encoded(picture, kind, **settings):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def many_frames():
    data = encoded(Image.new("P", (8, 8)), "GIF")
    return data[:-1] + data[data.index(b",") : -1] * 200_000 + data[-1:]


OTHER_FORMATS = {  # each took gigabytes or many seconds, most from a few megabytes
    "tags that overlap": (lambda: tiff_of(*[(1000 + i, 7, 10**6, 8) for i in range(900)], after=bytes(10**6)), ""),
    "many tags": (lambda: tiff_of(*[(1000 + i, 3, 1, 8) for i in range(5000)]), ""),
    "a tag outside": (lambda: tiff_of((1000, 7, 100, 2**31)), ""),
    "tiles of 1.8 billion pixels": (lambda: tiff_of((322, 3, 1, 30_000), (323, 3, 1, 60_000)), ""),
    "tiles of many pixels in 32 bits": (lambda: tiff_of((322, 4, 1, 2**31), (323, 4, 1, 2**31)), ""),
    "a directory outside": (lambda: b"II*\0" + struct.pack("<I", 2**31), ""),
    "many frames": (many_frames, "several-pictures"),
    "run lengths": (lambda: encoded(Image.new("L", (8, 8)), "BMP").replace(RAW, RUNS, 1), ""),
    "a large WebP": (lambda: encoded(Image.new("RGB", (16383, 2000)), "WEBP", method=0), "too-many-pixels"),
}
RAW, RUNS = (struct.pack("<iiHHI", 8, 8, 1, 8, code) for code in (0, 1))


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_gif_webp_tiff_and_bmp_are_bounded_before_they_are_decoded(name):
    make, kind = OTHER_FORMATS[name]
    data = make()
    begin = time.process_time()
    tracemalloc.start()
    with pytest.raises(UserError) as error:
        read_image(data, "a")
    assert tracemalloc.get_traced_memory()[1] < 20e6 + 3 * len(data)
    tracemalloc.stop()
    assert error.value.kind == (kind or "broken-data") and time.process_time() - begin < 2


def test_gif_webp_tiff_and_bmp_as_people_write_them_are_read():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    for kind, settings in (
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw", "dpi": (300, 300), "description": "street"}),
        ("TIFF", {"compression": "tiff_deflate", "tiffinfo": {322: 64, 323: 64}}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
    ):
        np.testing.assert_array_equal(read_image(encoded(picture, kind, **settings), "a"), np.asarray(picture))
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for kind in ("GIF", "TIFF", "BMP"):
        np.testing.assert_array_equal(read_image(encoded(gray, kind), "a")[..., 0], np.asarray(gray))


def test_what_a_picture_claims_is_read_from_its_start(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_bytes(png_of(100_000, 100_000))
    (tmp_path / "c.png").write_bytes(b"x")
    (tmp_path / "d.png").mkdir()
    found = [claimed_pixels(tmp_path / name) for name in ("a.png", "a.jpg", "b.png", "c.png", "d.png")]
    assert found == [600, 600, 50_000_000, 50_000_000, 0]


@pytest.mark.parametrize("shape", [(1, 65_535), (65_535, 1), (3, 60_000)])
@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
def test_an_image_of_an_extreme_shape_is_resized_in_little_memory(shape, fit):
    image, label = np.zeros((*shape, 3), np.uint8), np.ones(shape, np.uint8)
    tracemalloc.start()
    image, label = fit_sample(image, label, (360, 480), fit)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert image.shape == (360, 480, 3) and label.shape == (360, 480) and (label[180, 240] == 1 or fit == "letterbox")


def test_pictures_of_usual_shapes_are_not_trimmed():
    label = np.zeros((720, 960), np.uint8)
    assert images_fit._trimmed(label, (360, 480), "crop") is label
    assert (fit_sample(np.zeros((*label.shape, 3), np.uint8), label, (480, 360), "crop")[1] != VOID).all()


@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1), (700, 65_000), (2, 3)])
def test_the_doctor_suggests_no_size_that_takes_gigabytes(size):
    (height, width), fit = suggested_size({size: 5})
    assert height * width < 2_000_000 and max(height, width) <= 300 * min(height, width)
    assert fit == ("letterbox" if 65_535 in size else "stretch")


def test_an_overlay_of_a_wide_picture_is_mixed_in_parts():
    image, ids = np.zeros((4, 60_000, 3), np.uint8), np.ones((4, 60_000), np.uint8)
    classes = ClassTable(("a", "b"), ((0, 0, 0), (200, 0, 0)))
    whole = prediction_files.overlay(image, ids, classes)
    overlay_strip, prediction_files._STRIP = prediction_files._STRIP, 50_000
    try:
        assert (prediction_files.overlay_by_strips(image, ids, classes) == whole).all()
    finally:
        prediction_files._STRIP = overlay_strip


# --- batches ---


class Recorded:
    """A stand-in for a predictor that records the shapes of each batch."""

    batch_size = 4

    def __init__(self):
        self.batches = []

    def prepare(self, image):
        return PreparedImage(image, image[:1, :1])

    def predict(self, batch):
        self.batches.append([prepared.image.shape[:2] for prepared in batch])
        return batch


def labeled(tmp_path, monkeypatch, sizes, most=prediction_pipeline._MAX_PIXELS):
    sources = []
    for number, (height, width) in enumerate(sizes):
        path = tmp_path / f"{number}.png"
        Image.new("L", (width, height)).save(path)
        sources.append(Source(path, "image", str(number)))
    monkeypatch.setattr(prediction_pipeline, "_MAX_PIXELS", most)
    recorded = Recorded()
    outputs = SimpleNamespace(image=lambda source, image, prediction: source, read=lambda source: {})
    done = [source for source, _ in prediction_pipeline._segment_images(sources, recorded, outputs, Stop())]
    assert sorted(done, key=lambda source: source.name) == sorted(sources, key=lambda source: source.name)
    return recorded.batches


def test_a_batch_never_contains_a_wide_and_a_tall_image(tmp_path, monkeypatch):
    for batch in labeled(tmp_path, monkeypatch, [(40, 4000), (4000, 40)] * 4):
        heights, widths = zip(*batch, strict=True)
        assert max(heights) * max(widths) <= 4 * sum(height * width for height, width in batch)


def test_small_pictures_of_any_shape_share_a_batch_and_large_ones_do_not(tmp_path, monkeypatch):
    assert [len(batch) for batch in labeled(tmp_path, monkeypatch, [(40, 400), (400, 40)] * 4)] == [4, 4]
    large = labeled(tmp_path, monkeypatch, [(700, 700)] * 5, most=400_000)
    assert [len(batch) for batch in large] == [1, 1, 1, 1, 1]


def test_pictures_looked_at_one_by_one_are_found_alike(tmp_path, monkeypatch):
    network = segnet_jax.load(make_run(tmp_path / "run"))
    sizing = Sizing.of(CONFIG, "trained", (0, 0), 64)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((50, 70), (64, 64), (33, 90))]

    def found():
        each = Predictor(network, choose_devices("2"), 2, sizing)
        return each.predict(list(map(each.prepare, images)))

    together = found()
    monkeypatch.setattr(predictor, "_MAX_BATCH_PIXELS", 0)
    monkeypatch.setattr(class_maps, "_STRIP_PIXELS", 256)
    for one, other in zip(together, found(), strict=True):
        assert (one.class_ids == other.class_ids).all() and (one.confidence == other.confidence).all()


# --- memory ---


def test_threads_share_a_budget_and_never_wait_for_each_other(monkeypatch):
    budget, lock, used, peak = Budget(100), threading.Lock(), [0], [0]

    def work(sizes):
        for size in sizes:
            with budget.scope():
                for part in (size, size // 2):  # an image, and then its label
                    budget.announce(part)
                    with lock:
                        used[0] += part
                        peak[0] = max(peak[0], used[0])
                    time.sleep(0.001)
                with lock:
                    used[0] -= size + size // 2

    generator = np.random.default_rng(0)
    threads = [threading.Thread(target=work, args=(generator.integers(1, 200, 30).tolist(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert peak[0] <= 100 + 300 and budget._used == 0


def test_values_are_counted_in_little_memory():
    values = np.random.default_rng(0).integers(0, 11, (3000, 1001)).astype(np.uint8)
    tracemalloc.start()
    found = count_values(values, 12)
    assert tracemalloc.get_traced_memory()[1] < 12e6
    tracemalloc.stop()
    assert found.dtype == np.int64 and (found == np.bincount(values.ravel(), minlength=12)).all()
    assert count_values(values[:0], 3).tolist() == [0, 0, 0]


def test_outside_a_scope_nothing_is_counted():
    budget = Budget(10)
    budget.announce(1000)
    with budget.scope(), budget.scope():
        budget.announce(1000)
    assert budget._used == 0


def test_an_image_size_beyond_the_memory_is_refused_before_anything_is_allocated():
    large = dataclasses.replace(CONFIG, image_size=(16_384, 16_384), width=16)
    with pytest.raises(OutOfMemory, match="4 images of 16384x16384 take at least .* have"):
        check_memory(large, choose_devices("1"))
    check_memory(CONFIG, choose_devices("1"))


def test_a_key_beneath_a_panorama_and_a_panel_of_a_tower_stay_small():
    classes = ClassTable(tuple(f"class {number}" for number in range(11)), ((0, 0, 0),) * 11)
    picture = np.zeros((4, 65_000, 3), np.uint8)
    assert add_class_key(picture, np.ones(11) / 11, classes).shape[0] < 500
    assert sheet.panel_strip([np.zeros((8192, 32, 3), np.uint8)]).size == (32, 8192)
    assert sheet.panel_strip([np.zeros((64, 32, 3), np.uint8)]).size == (256, 512)
