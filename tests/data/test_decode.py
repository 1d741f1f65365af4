"""Test the strict readers: what they read, and their one-line errors."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segnet_jax.constants import VOID
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.images.fit import resize
from segnet_jax.data.images.picture_header import check_sizes, inspect, read_bytes
from segnet_jax.data.label_files.decode_labels import read_label
from segnet_jax.data.labels.classes import CAMVID_ORIGINAL_COLORS
from segnet_jax.data.labels.label_colors import color_ids
from segnet_jax.system.errors import UserError

IDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [11, 11, 10, 5]], np.uint8)


def encode(array, kind="PNG", mode=None, **options):
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits, color_type, rows, *extra):
    """Return a hand-written PNG of a kind that Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def palette_png():
    image = Image.fromarray(IDS)
    image = image.convert("P")
    image.putpalette(bytes(range(255, 0, -1)) * 3)  # colors that have nothing to do with the indices
    image.putdata(IDS.ravel())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PICTURE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
WHOLE = encode(PICTURE)
GREY_ALPHA_16 = png(3, 1, 16, 4, [struct.pack(">6H", 0, 0xFFFF, 7, 0xFFFF, 10, 0xFFFF)])  # ids 0, 7, 10, all opaque


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(IDS), IDS),
        (palette_png(), IDS),
        (encode(IDS.astype(np.uint16)), IDS),
        (png(4, 2, 4, 0, [bytes([0x01, 0xAB]), bytes([0x23, 0x00])]), [[0, 1, 10, 11], [2, 3, 0, 0]]),
        (png(4, 1, 2, 0, [bytes([0b00011011])]), [[0, 1, 2, 3]]),
        (png(8, 1, 1, 0, [bytes([0b00011011])]), [[0, 0, 0, 1, 1, 0, 1, 1]]),
        (encode(np.stack([IDS, np.full_like(IDS, 255)], -1)), IDS),
    ],
    ids=["grey", "palette", "16 bits", "4 bits", "2 bits", "1 bit", "opaque alpha"],
)
def test_every_lossless_label_gives_the_stored_ids_and_void(data, expected):
    expected = np.array(expected)
    label = read_label(data, "a.png", 11, void=11)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, np.where(expected == 11, VOID, expected))


def test_images_are_read_as_rgb_and_grey_is_repeated():
    np.testing.assert_array_equal(read_image(WHOLE, "a.png"), PICTURE)
    np.testing.assert_array_equal(read_image(encode(PICTURE[..., 0]), "a.png"), np.repeat(PICTURE[..., :1], 3, -1))
    assert read_image(encode(PICTURE, "JPEG"), "jpeg-named.png").shape == (12, 16, 3)


def claims(width, height):
    return png(width, height, 8, 2, [b""])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["empty"]),
        (b"\n<!DOCTYPE html><html>404</html>", ["web page", "download it again"]),
        (b"GIF89a..........", ["damaged GIF"]),
        (b"8BPS............", ["not a PNG, JPEG"]),
        (WHOLE[: len(WHOLE) * 6 // 10], ["cut off"]),
        (WHOLE[:-5], ["cut off"]),
        (WHOLE[:-12], ["cut off"]),
        (WHOLE[:60] + bytes([WHOLE[60] ^ 1]) + WHOLE[61:], ["damaged", "checksum"]),
        (encode(PICTURE, "JPEG")[:-40], ["cut off"]),
        (b"\xff\xd8\xff\xe0 nothing", ["damaged JPEG"]),
        (claims(20000, 20000), ["20000 x 20000", "400 million", "not decoded"]),
        (png(16, 12, 8, 2, [b"\0" * 30]), ["cut off"]),
        (png(1, 1, 16, 2, [b"\0" * 6]), ["16 bits"]),
        (encode(PICTURE, "JPEG", mode="CMYK"), ["CMYK", "convert"]),
        (encode(np.dstack([PICTURE, PICTURE[..., 0]])), ["transparent"]),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""), ["has no header"]),
    ],
)
def test_a_bad_image_is_refused_with_its_name_and_reason(data, words):
    with pytest.raises(UserError) as error:
        read_image(data, "frames/a.png")
    for word in ["frames/a.png", *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_rotation_in_the_exif_data_is_refused_with_a_remedy(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(UserError, match="a.jpg carries an EXIF rotation.*--exif apply"):
        read_image(encode(PICTURE, kind, exif=exif), "a.jpg")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encode(IDS, "JPEG"), ["JPEG", "lossy", "as PNG"]),
        (encode(np.array([[12, 12, 200, 0]], np.uint8)), ["12 (2 px)", "200 (1 px)", "0..10", "void 11"]),
        (encode(np.array([[0, 4096]], np.uint16)), ["16 bits", "4096", "instance ids"]),
        (encode(PICTURE), ["8-bit RGB", "gray or palette"]),
        (encode(np.stack([IDS, np.full_like(IDS, 9)], -1)), ["transparent"]),
        (GREY_ALPHA_16, ["16 bits", "save it without an alpha channel"]),
        (WHOLE[:100], ["cut off"]),
    ],
    ids=["JPEG", "outside", "instance ids", "RGB", "alpha", "16 bits and alpha", "cut off"],
)
def test_a_bad_label_is_refused_with_its_name_and_reason(data, words):
    with pytest.raises(UserError) as error:
        read_label(data, "labels/a.png", 11, void=11)
    for word in ["labels/a.png", *words]:
        assert word in str(error.value)


def test_color_labels_equal_a_pixel_by_pixel_loop_and_unknown_colors_are_counted():
    colors = list(CAMVID_ORIGINAL_COLORS)
    assert len(colors) == 32
    picture = np.array(colors, np.uint8)[np.random.default_rng(1).integers(0, 32, (20, 30))]
    by_hand = [[CAMVID_ORIGINAL_COLORS[tuple(map(int, pixel))] for pixel in row] for row in picture]
    np.testing.assert_array_equal(read_label(encode(picture), "a_L.png", 11, colors=CAMVID_ORIGINAL_COLORS), by_hand)

    picture[3, 4:7], picture[0, 0] = (12, 0, 7), (255, 255, 255)
    label, unknown = color_ids(picture, CAMVID_ORIGINAL_COLORS)
    assert unknown == {(12, 0, 7): 3, (255, 255, 255): 1}
    assert (label[3, 4:7] == VOID).all() and label[0, 0] == VOID
    with pytest.raises(UserError, match=r"a_L.png contains unknown colors.*3 px of color \(12, 0, 7\) in 1 file"):
        read_label(encode(picture), "a_L.png", 11, colors=CAMVID_ORIGINAL_COLORS)
    with pytest.raises(UserError, match=r"nearest known \(0, 0, 0\)"):
        read_label(encode(picture), "a_L.png", 11, colors=CAMVID_ORIGINAL_COLORS)
    with pytest.raises(UserError, match="transparent"):
        half = np.dstack([picture, np.full((20, 30), 128, np.uint8)])
        read_label(encode(half), "a_L.png", 11, colors=CAMVID_ORIGINAL_COLORS)


def test_different_sizes_are_reported_and_a_turned_label_is_called_rotated():
    for size in [(960, 720), (720, 720)]:
        check_sizes(size, size, "a", "labels/a.png")
    with pytest.raises(UserError, match="a: image is 960x720, label is 480x360") as error:
        check_sizes((960, 720), (480, 360), "a", "labels/a.png")
    assert (error.value.kind, error.value.file) == ("label-size-differs", "labels/a.png")
    with pytest.raises(UserError, match="rotated") as error:
        check_sizes((960, 720), (720, 960), "a", "labels/a.png")
    assert error.value.kind == "label-rotated"


def test_unreadable_files_are_distinguished(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dead.png").symlink_to(tmp_path / "gone.png")
    for name, reason in {"folder.png": "is not a file", "dead.png": "dead link", "no.png": "does not exist"}.items():
        with pytest.raises(UserError, match=f"{name}.*{reason}|{name} is a {reason}"):
            read_bytes(tmp_path / name, name)


def test_resizing_takes_each_labels_pixel_under_the_new_center_and_averages_images():
    label = np.random.default_rng(2).integers(0, 11, (45, 61), np.uint8)
    image = np.repeat(label[..., None] * np.uint8(20), 3, -1)
    for height, width in [(22, 30), (90, 61), (7, 100)]:
        _, resized = resize(image, label, height, width)
        by_hand = [
            [label[int((row + 0.5) * 45 / height), int((column + 0.5) * 61 / width)] for column in range(width)]
            for row in range(height)
        ]
        np.testing.assert_array_equal(resized, by_hand)
        nearest = Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(resized, np.asarray(nearest))

    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200  # every second row: without antialiasing it comes out black or white
    halved, _ = resize(stripes, np.zeros((64, 64), np.uint8), 16, 16)
    assert halved.shape == (16, 16, 3) and np.abs(halved.astype(int) - 100).max() < 30


def test_a_sample_of_the_right_size_is_not_copied():
    label = np.zeros((12, 16), np.uint8)
    same_image, same_label = resize(PICTURE, label, 12, 16)
    assert same_image is PICTURE and same_label is label


def test_a_header_is_read_without_decoding():
    assert inspect(claims(5000, 4000), "a.png")[:3] == ("PNG", 5000, 4000)
