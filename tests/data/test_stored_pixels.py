"""Test 16-bit images and other channels than RGB: reading, caching, resizing, augmentation, and refusals."""

import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segnet_jax.constants import RGB, Pixels
from segnet_jax.data.dataset import Split
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.images.fit import resize_image
from segnet_jax.data.images.pixels import read_tiff
from segnet_jax.data.input_pipeline.augment import resample
from segnet_jax.data.input_pipeline.cache import open_cached
from segnet_jax.system.errors import UserError

FORMATS = [Pixels(channels, bits) for channels in (1, 2, 3, 4, 6) for bits in (8, 16)]
OTHERS = [each for each in FORMATS if each != RGB]
PNG = [each for each in OTHERS if each.channels <= 4]


def values_of(pixels, shape=(11, 14), seed=0):
    """Return random values [H,W,C] of a format that use all of its bits."""
    return np.random.default_rng(seed).integers(0, 2**pixels.bits, (*shape, pixels.channels)).astype(pixels.dtype)


def png(values, filters=(0, 1, 2, 3, 4)):
    """Encode a PNG by the specification, the rows with the given filter types in turn."""
    height, width, channels = values.shape
    bits = 8 * values.itemsize
    step = channels * values.itemsize
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8).astype(int)
    padded = np.pad(rows, [(1, 0), (step, 0)])
    left, up, corner = padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step]
    estimate = left + up - corner
    distance = np.abs(np.stack([estimate - each for each in (left, up, corner)]))
    paeth = np.choose(distance.argmin(axis=0), [left, up, corner])
    predicted = np.stack([0 * rows, left, up, (left + up) // 2, paeth])
    data = b"".join(
        bytes([kind]) + ((rows[y] - predicted[kind, y]) % 256).astype(np.uint8).tobytes()
        for y, kind in zip(range(height), np.resize(filters, height), strict=True)
    )

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(values, order="<", rows=4, deflate=False, predictor=False, planar=False, tile=None, compression=None):
    """Encode a TIFF by the specification: strips of `rows` rows or square tiles, chunky or planar."""
    height, width, channels = values.shape
    planes = np.moveaxis(values, -1, 0)[..., None] if planar else values[None]
    blocks = []
    for plane in planes:
        if tile:
            plane = np.pad(plane, [(0, -height % tile), (0, -width % tile), (0, 0)])
            corners = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
            blocks += [plane[y : y + tile, x : x + tile] for y, x in corners]
        else:
            blocks += [plane[y : y + rows] for y in range(0, height, rows)]
    if predictor:
        blocks = [np.diff(block, axis=1, prepend=np.zeros_like(block[:, :1])) for block in blocks]
    stored = [block.astype(block.dtype.newbyteorder(order)).tobytes() for block in blocks]
    stored = [zlib.compress(block) if deflate else block for block in stored]
    offsets, end = [], 8
    for block in stored:
        offsets.append(end)
        end += len(block)
    counts = [len(block) for block in stored]
    places = [(324, 4, offsets), (325, 4, counts)] if tile else [(273, 4, offsets), (279, 4, counts)]
    tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [8 * values.itemsize] * channels)]
    tags += [(259, 3, [compression or (8 if deflate else 1)]), (262, 3, [1]), (277, 3, [channels]), *places]
    tags += [(284, 3, [2 if planar else 1]), (317, 3, [2 if predictor else 1])]
    tags += [(322, 3, [tile]), (323, 3, [tile])] if tile else [(278, 4, [rows])]
    body, directory = b"".join(stored), b""
    extra, extra_at = b"", end + 2 + 12 * len(tags) + 4
    for tag, kind, numbers in sorted(tags):
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", extra_at + len(extra)), extra + packed
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    head = b"II*\0" if order == "<" else b"MM\0*"
    count = struct.pack(f"{order}H", len(tags))
    return head + struct.pack(f"{order}I", end) + body + count + directory + bytes(4) + extra


@pytest.mark.parametrize("pixels", PNG, ids=str)
def test_a_png_is_read_bit_for_bit(pixels):
    values = values_of(pixels)
    np.testing.assert_array_equal(read_image(png(values), "a.png", pixels=pixels), values)


TIFFS = {
    "strips": {},
    "big-endian": {"order": ">"},
    "deflate": {"deflate": True, "predictor": True, "order": ">"},
    "planar": {"planar": True, "deflate": True},
    "tiles": {"tile": 16, "deflate": True, "predictor": True},
    "planar tiles": {"tile": 16, "planar": True},
}


@pytest.mark.parametrize("pixels", OTHERS, ids=str)
@pytest.mark.parametrize("form", TIFFS.values(), ids=TIFFS)
def test_a_tiff_is_read_bit_for_bit(form, pixels):
    values = values_of(pixels, (21, 34))
    found = read_image(tiff(values, **form), "a.tif", pixels=pixels)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_a_tile_much_larger_than_its_image_is_refused_before_it_is_decompressed():
    """Check a file of 79 kB that would need 150 MB, although its header states one pixel."""
    small = values_of(Pixels(2, 8), (1, 1))
    assert np.array_equal(read_tiff(tiff(small, tile=64, deflate=True), Pixels(2, 8)), small)  # ordinary padding
    data = tiff(small, tile=3200, deflate=True)
    assert len(data) < 100_000
    with pytest.raises(ValueError, match="its tiles take 20 MB each, more than the image"):
        read_tiff(data, Pixels(2, 8))


def test_a_tiff_that_is_turned_or_has_several_images_is_refused():
    values = values_of(Pixels(6, 16))
    several = bytearray(tiff(values))
    place = struct.unpack_from("<I", several, 4)[0]
    end = place + 2 + 12 * struct.unpack_from("<H", several, place)[0]
    several[end : end + 4] = struct.pack("<I", place)
    turned = bytearray(tiff(values))
    at = turned.index(struct.pack("<HHI", 284, 3, 1))  # chunky by default, so this tag can be replaced
    turned[at : at + 12] = struct.pack("<HHIHH", 274, 3, 1, 6, 0)
    for data in (several, turned):
        with pytest.raises(UserError, match="^a is "):
            read_image(bytes(data), "a", pixels=Pixels(6, 16))


def test_pillow_reads_what_these_encoders_write():
    """Check the encoders of this file with Pillow, where it has a decoder."""
    import io

    for channels in (1, 3, 4):
        values = values_of(Pixels(channels))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(values)))).reshape(values.shape), values)
    for form in ({}, {"tile": 16}, {"deflate": True}, {"order": ">"}):
        values = values_of(Pixels(1, 16), (21, 34))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(tiff(values, **form)))), values[..., 0])


@pytest.mark.parametrize(
    "data, pixels, message",
    [
        (
            png(values_of(Pixels(4))),
            Pixels(1, 8),
            r"image a has pixels of 4 channels of 8 bits, instead of 1 channel of",
        ),
        (
            png(values_of(Pixels(1))),
            Pixels(1, 16),
            r"image a has pixels of 1 channel of 8 bits, instead of 1 channel of 16",
        ),
        (tiff(values_of(Pixels(6, 16))), Pixels(4, 16), r"6 channels of 16 bits, .* --channels 6 --image-bits 16"),
        (
            tiff(values_of(Pixels(6))),
            RGB,
            r"image a is of 6 channels; .*read all images as stored: --channels 6 --image",
        ),
        (tiff(values_of(Pixels(6)), compression=5), Pixels(6, 8), r"a cannot be read as 6 channels .* or with Deflate"),
        (tiff(values_of(Pixels(6)))[:500], Pixels(6, 8), r"a is (cut off|a damaged TIFF)"),
    ],
)
def test_files_with_other_channels_are_one_clear_error_that_names_the_file(data, pixels, message):
    with pytest.raises(UserError, match=message):
        read_image(data, "a", pixels=pixels)


@pytest.mark.parametrize("pixels", [Pixels(1, 16), Pixels(6, 16), Pixels(4, 8)], ids=str)
def test_values_survive_the_cache_bit_for_bit(pixels, tmp_path):
    images = [values_of(pixels, (20, 30), seed) for seed in range(3)]
    label = np.zeros((20, 30), np.uint8)
    split = Split(("a", "b", "c"), lambda index: (images[index], label), "0" * 64, pixels=pixels)
    for _ in range(2):  # written, then opened
        kept = open_cached(split, (20, 30), tmp_path)
        assert kept.images.dtype == pixels.dtype and kept.pixels == pixels
        assert kept.num_bytes == 3 * 20 * 30 * (pixels.num_bytes + 1)
        np.testing.assert_array_equal(kept.images, images)


@pytest.mark.parametrize("pixels", OTHERS, ids=str)
def test_channels_are_resized_one_by_one(pixels):
    values = values_of(pixels, (20, 30))
    found = resize_image(values, 13, 17)
    assert found.dtype == values.dtype and found.shape == (13, 17, pixels.channels)
    for channel in range(pixels.channels):
        image = Image.fromarray(values[..., channel].astype(np.float64).astype(np.float32))
        expected = np.asarray(image.resize((17, 13), Image.Resampling.BILINEAR))
        assert np.abs(found[..., channel] - np.round(expected)).max() <= (1 if pixels.bits == 8 else 0)


@pytest.mark.parametrize("pixels", [Pixels(1, 8), Pixels(5, 16)], ids=str)
def test_scaling_is_equal_on_both_input_paths_and_right_at_the_largest_values(pixels):
    image = values_of(pixels, (16, 20))
    image[:8] = 2**pixels.bits - 1  # 32 bits must suffice
    label = np.zeros((16, 20), np.uint8)
    step, *places = (np.int32(each) for each in (11_000, 700, 1500))
    on_host = resample(image, label, step, *places, np)[0]
    on_device = jax.jit(lambda *given: resample(*given, jnp)[0])(image, label, step, *places)
    np.testing.assert_array_equal(on_host, on_device)
    assert on_host.dtype == image.dtype and (on_host[:4] == 2**pixels.bits - 1).all()
    single = resample(image[..., :1].astype(np.uint8), label, step, *places, np)[0]
    if pixels.bits == 8:
        np.testing.assert_array_equal(on_host[..., :1], single)
