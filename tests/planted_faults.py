"""Faults to plant in a valid dataset folder, each with its kind, file and fix."""

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from bad_inputs import encode, put, raw_png
from PIL import Image

SIZE = 24, 32  # rows, columns
TRAIN, VAL = tuple("abcdef"), ("x", "y")
NAMES = (*TRAIN, *VAL)
TABLE = 'classes = [{ name = "ground" }, { name = "tree" }, { name = "car" }]\n'
TWO_CLASSES = 'classes = [{ name = "ground" }, { name = "tree" }]'


@dataclass(frozen=True)
class Planted:
    """A fault to plant in a valid folder.

    Attributes:
      kind: kind of fault that the doctor must report, then optionally a colon and a word that distinguishes it.
      file: file that the doctor must name.
      spoil: function that damages a valid folder.
      fix: flags that the doctor must print; empty if no flag fixes the fault.
    """

    kind: str
    file: str
    spoil: Callable
    fix: str = ""

    def __str__(self) -> str:
        return self.kind.replace(":", "-").replace(" ", "-")


def image_of(name, size=SIZE):
    return np.random.default_rng(list(name.encode())).integers(0, 256, (*size, 3), np.uint8)


def label_of(name="a", size=SIZE):
    """Return a label of classes 0, 1, 2 and void in blocks."""
    block = (np.arange(size[0])[:, None] // 4 + np.arange(size[1]) // 4 + ord(name[0])) % 4
    return np.where(block == 3, 255, block).astype(np.uint8)


def make_valid_folder(folder):
    """Make a valid folder of three classes with a class table and lists."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for name in NAMES:
        (folder / f"images/{name}.png").write_bytes(encode(image_of(name)))
        (folder / f"labels/{name}.png").write_bytes(encode(label_of(name)))
    (folder / "classes.toml").write_text(TABLE)
    (folder / "train.txt").write_text("\n".join(TRAIN))
    (folder / "val.txt").write_text("\n".join(VAL))
    return folder


def values(change, *names, table=True):
    """Return a function that writes labels, all or those named, with other values.

    Without `table`, it deletes the class table, so that the values are detected.
    """

    def spoil(folder):
        for name in names or NAMES:
            (folder / f"labels/{name}.png").write_bytes(encode(change(label_of(name))))
        if not table:
            (folder / "classes.toml").unlink()

    return spoil


def colors(
    strange=0, table='classes = [{name="g", color=[0,0,0]}, {name="t", color=[0,99,0]}, {name="c", color=[200,0,0]}]'
):
    """Return a function that writes color labels; `strange` pixels of the last one are not in the table."""

    def spoil(folder):
        for name in NAMES:
            palette = np.array([(0, 0, 0), (0, 99, 0), (200, 0, 0)], np.uint8)
            picture = palette[np.minimum(label_of(name), 2)]
            if name == "y":
                picture.reshape(-1, 3)[:strange] = 12, 0, 7
            (folder / f"labels/{name}.png").write_bytes(encode(picture))
        (folder / "classes.toml").unlink()
        if table:
            (folder / "classes.toml").write_text(table)

    return spoil


def turned(label_size):
    """Return a function that writes a photo with an EXIF rotation, and a label of its rotated size."""

    def spoil(folder):
        exif = Image.Exif()
        exif[0x0112] = 6
        (folder / "images/b.png").unlink()
        (folder / "images/b.jpg").write_bytes(encode(image_of("b"), "JPEG", exif=exif))
        (folder / "labels/b.png").write_bytes(encode(label_of("b", label_size)))

    return spoil


def broken(data):
    """Flip a bit of the pixels, which the checksum detects."""
    return data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]


def rename_to_train(folder):
    """Move images and labels into subfolders `train`, and delete the lists."""
    for kind in ("images", "labels"):
        files = list((folder / kind).iterdir())
        (folder / kind / "train").mkdir()
        for path in files:
            path.rename(path.parent / "train" / path.name)
    for name in ("train.txt", "val.txt"):
        (folder / name).unlink()


def outside(folder):
    (folder.parent / "secret.png").write_bytes(encode(image_of("s")))
    (folder / "images/a.png").unlink()
    (folder / "images/a.png").symlink_to(folder.parent / "secret.png")


def no_images(folder):
    for path in (folder / "images").iterdir():
        path.rename(path.with_suffix(".heic"))


def instead(name, make):
    return lambda folder: ((folder / name).unlink(), make(folder / name))


def transparent(folder):
    label = label_of("a")
    (folder / "labels/a.png").write_bytes(encode(np.stack([label, np.full(SIZE, 128, np.uint8)], -1)))


def lossy(folder):
    (folder / "labels/a.png").write_bytes(encode(label_of("a"), "JPEG"))


def shifted(label):
    return np.where(label == 255, 255, label + 1).astype(np.uint8)


def mask(label):
    return np.where(label == 1, 255, 0).astype(np.uint8)


def with_pixels(value, number=5):
    def change(label):
        label.reshape(-1)[:number] = value
        return label

    return change


def bomb(data):
    return raw_png(20000, 20000, 8, 2, zlib.compress(bytes(10_000_000)))


PLANTED = [
    Planted("mask-0-255", "labels/a.png", values(mask, table=False), "--map 255=1"),
    Planted(
        "mask-0-255:with a table",
        "",
        lambda folder: (
            values(mask)(folder),
            put("classes.toml", TABLE.replace(', { name = "car" }', "").encode())(folder),
        ),
        "--map 255=1",
    ),
    Planted("label-out-of-range", "labels/b.png", values(with_pixels(7), "b"), "--map 7=255"),
    Planted(
        "label-out-of-range:two values",
        "labels/y.png",
        lambda folder: (values(with_pixels(7), "b")(folder), values(with_pixels(9), "y")(folder)),
        "--map 7=255 --map 9=255",
    ),
    Planted("labels-start-at-1", "labels/a.png", values(shifted), "--labels-start-at 1"),
    Planted("labels-start-at-1:no table", "labels/a.png", values(shifted, table=False), "--labels-start-at 1"),
    Planted(
        "sparse-values",
        "labels/a.png",
        values(lambda label: np.array([0, 38, 75, 255], np.uint8)[np.minimum(label, 3)], table=False),
        "--map 38=1 --map 75=2",
    ),
    Planted("unknown-color", "labels/y.png", colors(strange=3), "--unknown-color ignore"),
    Planted("unknown-color:a whole class", "labels/y.png", colors(strange=300)),
    Planted("colors-without-table", "labels/", colors(table=""), "python -m segnet_jax.doctor"),
    Planted("color-label", "labels/a.png", colors(table=TABLE)),
    Planted(
        "label-size-differs",
        "labels/c.png",
        put("labels/c.png", encode(label_of("c", (12, 16)))),
        "--resize-labels nearest",
    ),
    Planted("label-size-differs:another shape", "labels/c.png", put("labels/c.png", encode(label_of("c", (12, 20))))),
    Planted("label-rotated", "labels/c.png", put("labels/c.png", encode(label_of("c", SIZE[::-1])))),
    Planted("exif-rotation", "images/b.jpg", turned(SIZE[::-1]), "--exif apply"),
    Planted("exif-rotation:label as stored", "images/b.jpg", turned(SIZE), "--exif ignore"),
    Planted("same-name", "images/b.", put("images/b.jpg", encode(image_of("z"), "JPEG")), '--images "*.png"'),
    Planted(
        "same-image-in-two-splits",
        "x",
        lambda folder: (folder / "images/x.png").write_bytes((folder / "images/a.png").read_bytes()),
        "--val-fraction 0.2",
    ),
    Planted("nothing-to-score", "", rename_to_train, "--val-fraction 0.2"),
    Planted("image-without-label", "images/d.png", lambda folder: (folder / "labels/d.png").unlink()),
    Planted("two-labels", "images/d.png", put("labels/d_L.png", encode(label_of("d")))),
    Planted("empty-file", "images/e.png", put("images/e.png", b"")),
    Planted("cut-off", "labels/e.png", put("labels/e.png", lambda data: data[: len(data) * 6 // 10])),
    Planted("broken-data", "images/e.png", put("images/e.png", broken)),
    Planted("web-page", "images/e.png", put("images/e.png", b"<!DOCTYPE html><html>404</html>")),
    Planted("lossy-label", "labels/a.png", lossy),
    Planted("instance-ids", "labels/f.png", values(lambda label: label.astype(np.uint16) + 4085, "f")),
    Planted("no-class-ids", "labels/", values(lambda label: image_of("m")[..., 0], table=False)),
    Planted("one-class", "labels/a.png", values(lambda label: label * 0, table=False)),
    Planted("no-usable-label", "", values(lambda label: label * 0 + 255, *TRAIN)),
    Planted("transparent", "labels/a.png", transparent),
    Planted("not-rgb", "images/a.png", put("images/a.png", encode(image_of("a"), "JPEG", "CMYK"))),
    Planted("sixteen-bits", "images/a.png", put("images/a.png", encode(image_of("a")[..., 0].astype(np.uint16)))),
    Planted("unknown-format", "images/a.png", put("images/a.png", b"\0\0\0\x18ftypheic" + bytes(40))),
    Planted("too-many-pixels", "images/a.png", put("images/a.png", bomb)),
    Planted("dead-link", "images/a.png", instead("images/a.png", lambda path: path.symlink_to("gone.png"))),
    Planted("not-a-file", "images/a.png", instead("images/a.png", os.mkfifo)),
    Planted("not-a-file:folder", "labels/a.png", instead("labels/a.png", os.mkdir)),
    Planted("points-outside", "images/a.png", outside),
    Planted("points-outside:list", "../../etc/passwd", put("val.txt", b"x\n../../etc/passwd\n")),
    Planted("missing-file", "nowhere.png", put("val.txt", b"x\nimages/nowhere.png\n")),
    Planted("listed-twice", "images/x.png", put("val.txt", b"x\ny\nimages/x.png\n")),
    Planted("empty-list", "val.txt", put("val.txt", b"\n")),
    Planted("not-a-text", "val.txt", put("val.txt", b"\xff\xfe\0x")),
    Planted("bad-class-table", "classes.toml", put("classes.toml", b'classes = [{ nmae = "ground" }]')),
    Planted("no-images", "images", no_images),
    Planted("control-character", "images/", put("images/n\nm.png", encode(image_of("n")))),
]
