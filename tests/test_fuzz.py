"""Check that readers of damaged input return a value or raise their documented exception, in time."""

import json
import struct
import subprocess
import sys
import time
import zlib

import fuzz_inputs
import fuzz_readers
import hostile_files
import pytest
import weight_files
from fuzz_readers import READERS
from hostile_files import zipped

from segnet_jax.nn.segnet import ENCODERS

SEED = 2026


@pytest.fixture
def small(monkeypatch):
    return weight_files.shrink(monkeypatch, ENCODERS)


@pytest.mark.parametrize("name", READERS)
def test_damaged_inputs_are_refused_or_read(name, small, tmp_path):
    outcomes = [each for each in fuzz_readers.read_many(name, SEED, range(READERS[name].quick), 300, tmp_path)]
    assert len(outcomes) == READERS[name].quick
    assert [(index, outcome) for index, _, outcome in outcomes if outcome not in ("accepted", "refused")] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_hundred_thousand_damaged_inputs_are_refused_or_read(name):
    command = [sys.executable, fuzz_readers.__file__, "--reader", name, "--inputs", "100000", "--seconds", "600"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["findings"] == {}


def test_the_same_seed_makes_the_same_inputs_a_day_later(small, monkeypatch):
    def inputs():
        fuzz_inputs.weight_seeds.cache_clear()
        seeds = {name: reader.seeds() for name, reader in READERS.items()}
        return {name: [fuzz_readers.generated(name, 5, index, seeds[name]) for index in range(20)] for name in READERS}

    made, now = inputs(), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86400)
    assert inputs() == made
    assert all(len(set(each)) > 10 for each in made.values())


def test_a_reader_that_fails_otherwise_is_found(monkeypatch, tmp_path):
    def opened(folder):
        def read(data):
            if data[:1] == b"w":
                import warnings

                warnings.warn("odd", stacklevel=1)
            return {}[data] if data[:1] != b"s" else None

        return read

    monkeypatch.setitem(READERS, "broken", fuzz_readers.Reader(lambda: [b"s", b"sw"], fuzz_inputs.raw, opened))
    outcomes = {
        outcome.split(" at ")[0] for _, _, outcome in fuzz_readers.read_many("broken", 0, range(300), 9, tmp_path)
    }
    assert outcomes == {"accepted", "KeyError", "UserWarning"}


# Each finding of fuzzing: the reader, the input, and the required outcome.


def keras_without(kind, length, flags):
    """Return a Keras file whose header messages of one kind and length are empty."""
    data = fuzz_inputs.weight_seeds()["h5"][0]
    assert (message := struct.pack("<HHB", kind, length, flags)) in data
    return data.replace(message, struct.pack("<HHB", 0, length, flags))


def npz_with(shape):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape
    return zipped(("a.npy", hostile_files.npy(header)))


def picture_with(kind, content, color_type=2, channels=3):
    return hostile_files.png(
        hostile_files.header(8, 6, color_type), hostile_files.chunk(kind, content), hostile_files.pixels(8, 6, channels)
    )


def jpeg_with(marker, content):
    whole = fuzz_inputs.picture_seeds()[9]
    return whole[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + whole[2:]


PALETTE = hostile_files.chunk(b"PLTE", bytes(range(30)))
FRAMES = fuzz_readers.FRAMES
STEP = b'{"kind": "val", "step": 2}\n'
EXIF = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"  # ends before the value

FOUND = {
    # Python's pickle tools look for escapes in names and warn about unknown ones.
    "escape in a name": ("pickle", lambda: b"\x80\x02ctorch\nFloat\\QStorage\n.", "refused"),
    "escape in a text": ("pickle", lambda: b"\x80\x02S'\\Q'\n.", "refused"),
    "escape in a file": ("torch-zip", lambda: zipped(("a/data.pkl", b"\x80\x02c\\Q\nx\n.")), "refused"),
    # An array without a shape passed as one without axes until it was read.
    "array without a shape": ("h5", lambda: keras_without(1, 24, 0), "refused"),
    "array without a type": ("h5", lambda: keras_without(3, 24, 1), "refused"),
    # The pattern for a shape took forever on a long number.
    "long number in a shape": ("npz", lambda: npz_with(b"1" * 9000), "refused"),
    "many numbers in a shape": ("npz", lambda: npz_with(b"1, " * 50 + b"), }"), "refused"),
    # Pillow: profiles, animations, previews and EXIF data on which it fails or warns.
    "profile without an end": ("image", lambda: picture_with(b"iCCP", b"name\0"), "accepted"),
    "animation of nothing": ("image", lambda: picture_with(b"acTL", bytes(8)), "accepted"),
    "animation cut off": ("image", lambda: picture_with(b"acTL", b"\0"), "accepted"),
    "EXIF cut off": ("image", lambda: picture_with(b"eXIf", EXIF), "accepted"),
    "EXIF cut off in a JPEG": ("image", lambda: jpeg_with(0xE1, b"Exif\0\0" + EXIF), "accepted"),
    "previews that are none": ("image", lambda: jpeg_with(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0"), "accepted"),
    "transparent palette": (
        "image",
        lambda: hostile_files.png(
            hostile_files.header(8, 6, 3), PALETTE, hostile_files.chunk(b"tRNS", b"\0\xff"), hostile_files.pixels(8, 6)
        ),
        "refused",
    ),
    "palette without colors": ("image", lambda: picture_with(b"abCd", b"", color_type=3, channels=1), "refused"),
    "two headers": ("image", lambda: picture_with(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)), "refused"),
    "a header behind the pixels": (
        "label",
        lambda: hostile_files.png(
            hostile_files.header(9000, 9000), hostile_files.pixels(1, 1), hostile_files.header(1, 1)
        ),
        "refused",
    ),
    # zipfile: a member without a name, and one whose local name is not text.
    "member without a name": ("archive", lambda: hostile_files.raw_zip([("", 0, b"", 0)]), "refused"),
    "name that is no text": (
        "archive",
        lambda: zipped(*((f"{frame}_L.png", b"\xc3\xa4") for frame in FRAMES)).replace(
            b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\0\x08"
        ).replace(FRAMES[0].encode(), b"\xeb" + FRAMES[0][1:].encode(), 1),
        "refused",
    ),
    # JSON that is damaged, nested, of other types.
    "counts cut off": ("counts", lambda: b'{"frames": {', "refused"),
    "counts nested": ("counts", lambda: b'{"a":' * 20_000, "refused"),
    "counts of words": ("counts", lambda: b'{"frames": {"a": {}}}', "refused"),
    "counts without end": ("counts", lambda: b'{"frames": {"a": [Infinity]}}', "refused"),
    "counts of many digits": ("counts", lambda: b'{"frames": {"a": [' + b"9" * 5000 + b"]}}", "refused"),
    "metrics nested": ("metrics", lambda: b"[" * 20_000 + b"\n" + STEP, "refused"),
    "metrics of half a step": ("metrics", lambda: b'{"kind": "val", "step": 1.5}\n' + STEP, "refused"),
    "metrics of a word": ("metrics", lambda: b'{"kind": "val", "step": "1"}\n' + STEP, "refused"),
    "config of a deep list": ("config", lambda: b"data = " + b"[" * 700 + b"]" * 700, "refused"),
    "config nested": ("config", lambda: b"data = " + b"[" * 20_000, "refused"),
    "config of many digits": ("config", lambda: b"seed = " + b"9" * 5000, "refused"),
    "config beyond a float": ("config", lambda: b"learning_rate = " + b"9" * 400, "refused"),
    "changes cut off": ("run", lambda: b"seed = 1\0changes\0[", "refused"),
    "changes nested": ("run", lambda: b"seed = 1\0changes\0" + b"[" * 20_000, "refused"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_what_fuzzing_has_found_is_fixed(case, small, tmp_path):
    name, make, expected = FOUND[case]
    reader = READERS[name]
    with fuzz_readers.timed():
        assert fuzz_readers.outcome(reader.open(tmp_path), make(), reader) == expected


def test_a_picture_with_a_hundred_million_pixels_is_refused_without_a_warning(tmp_path):
    """Use 100 million pixels: between 89 and 179 million, Pillow itself only prints a warning."""
    reader = READERS["image"]
    for data in (
        hostile_files.png(hostile_files.header(10_000, 10_000), hostile_files.chunk(b"IDAT", zlib.compress(b""))),
        jpeg_with(0xFE, b"").replace(struct.pack(">HH", 6, 8), struct.pack(">HH", 10_000, 10_000), 1),
    ):
        with fuzz_readers.timed():
            assert fuzz_readers.outcome(reader.open(tmp_path), data, reader) == "refused"
