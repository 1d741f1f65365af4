"""Malicious inputs for `attack_features.py`, made as described in `attack_inputs.py`.

`prepare` may also return "full", a folder on which a small full disk is mounted, "out", the output folder of a sweep or
of folds, and "adds", names of new files that may lie in the victim's folder afterwards.
"""

import json
import os
import pathlib
import shutil
import struct
import zlib

from attack_inputs import file, text
from attack_pictures import SAMPLE, Make, Prepare, chunk

SWEEP = """[base]
data = "synthetic"
scenes = [12, 4]
image_size = [24, 32]
init = "none"
devices = "1"
depth = 1
width = 0.0625
class_weights = "none"
batch_size_per_device = 4
epochs = 2
"""
GRID = "[grid]\nseed = [0]\n"
OWNED = "import os, pathlib\nopen(pathlib.Path(__file__).parent / 'victim' / 'owned', 'w')\n"


def sweep(lines: str, rest: str = GRID, flags: tuple[str, ...] = ()) -> Prepare:
    """Write the file of a sweep with these further lines of [base]."""

    def prepare(run, folder):
        path = folder / "sweep.toml"
        path.write_text(SWEEP + lines.format(folder=folder) + rest.format(folder=folder))
        return {"file": path, **({"flags": flags} if flags else {})}

    return prepare


def sweep_file(make: Make) -> Prepare:
    """Make something else in place of a sweep's file."""
    return file("sweep.toml", make)


def given_config(lines: str) -> Prepare:
    """Write a file for `--config` with these lines."""
    return file("mine.toml", text(SWEEP.removeprefix("[base]\n") + lines))


def made_below(name: str, make: Make) -> Prepare:
    """Make a file or a link below the folder of the attack, and the folders around it."""

    def prepare(run, folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make(folder / name)

    return prepare


def copied(name: str, then: Prepare | None = None) -> Prepare:
    """Copy the run to a place below the folder of the attack, and prepare the copy."""

    def prepare(run, folder):
        copy = shutil.copytree(run, folder / name)
        return then(copy, folder) if then else None

    return prepare


def exported(then: Prepare | None = None) -> Prepare:
    """Copy the exported network, and prepare the copy."""

    def prepare(run, folder):
        copy = shutil.copytree(folder.parent / "exported", folder / "exported")
        return then(copy, folder) if then else None

    return prepare


def metadata(**changes) -> Prepare:
    """Change entries of the JSON in the metadata of an exported network; "settings" adds to its settings."""

    def prepare(folder, _):
        path = folder / "network.safetensors"
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        for name, value in changes.items():
            if isinstance(value, dict):
                value = json.loads(header["__metadata__"][name]) | value
            header["__metadata__"][name] = value if isinstance(value, str) else json.dumps(value)
        changed = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + size :])

    return prepare


def calibration(content: str) -> Make:
    """Write a calibration."""
    valid = '"step": 3, "tta": {"flip": false, "scales": [1.0]}, "size": "trained", "data": ""'
    return text(content.replace("CONDITIONS", valid))


def result(**changes) -> Prepare:
    """Write a result of the run with these changes, as somebody may edit it."""

    def prepare(run, folder):
        score = {"miou": 0.5, "mean_accuracy": 0.5, "global_accuracy": 0.5, "num_images": 4, "step": 3, "num_steps": 3}
        per_class = {"Sky": {"iou": 0.5}}
        (run / "result.json").write_text(json.dumps(score | {"split": "val", "per_class": per_class} | changes))

    return prepare


def many_lists(path):
    """Write JSON of 60 MB that takes gigabytes: twenty million empty lists."""
    path.write_bytes(b'{"x": [' + b"[]," * 20_000_000 + b"[]]}")


def stand_in(package: str, code: str = OWNED) -> Prepare:
    """Write a module of this name into the working directory; by default it writes to the victim's folder."""

    def prepare(run, folder):
        (folder / f"{package}.py").write_text(code)

    return prepare


BUCKET = """__version__ = "99"  # which fsspec checks
class S3FileSystem:
    def __init__(self, **_): {opened}
    def find(self, root, detail=True): return {{f"{{root}}/{{name}}": {{"type": "file", "size": size, "ETag": "e"}}
                                               for name, size in {objects}}}
    def isfile(self, path): return False
    def cat_file(self, path, start=None, end=None): {read}
"""


def bucket(objects: str, read: str = "return bytes(end - start)", opened: str = "pass") -> Prepare:
    """Stand in for the package of S3: a bucket with these objects, as the code of pairs of name and size."""
    return stand_in("s3fs", BUCKET.format(objects=objects, read=read, opened=opened))


def photographed(name: str) -> Prepare:
    """Copy the repository's sample, with one validation image of this name; `evaluate` reads it."""

    def prepare(run, folder):
        data = shutil.copytree(SAMPLE, folder / "data")
        for part in ("val", "valannot"):
            first = min((data / part).iterdir())
            first.rename(data / part / name)
        lists = data / "val.txt"
        if lists.exists():
            old, *rest = lists.read_text().splitlines()
            parts = [str(pathlib.PurePosixPath(each).with_name(name)) for each in old.split()]
            lists.write_text("\n".join([" ".join(parts), *rest]) + "\n", errors="surrogateescape")
        return {"flags": ["--data", str(data)]}

    return prepare


def deep_png(height: int, width: int, channels: int, bits: int = 16, value: int = 0) -> bytes:
    """Return a PNG of one value with 1 to 4 channels of 8 or 16 bits."""
    pack, row = zlib.compressobj(1), b"\0" + bytes([value]) * (width * channels * bits // 8)
    data = b"".join(pack.compress(row) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    pixels = chunk(b"IDAT", data + pack.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def on_a_full_disk(*flags: str) -> Prepare:
    """Call with flags that write into {full}, a disk of one page."""

    def prepare(run, folder):
        full = folder / "full"
        full.mkdir()
        return {"flags": [flag.format(full=full) for flag in flags], "full": full}

    return prepare


def as_run(name: str) -> Prepare:
    """Use a link to the run, or another path, in place of a file below the folder."""

    def prepare(run, folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(run, folder / name)

    return prepare
