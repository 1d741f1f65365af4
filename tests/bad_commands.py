"""The corpus of bad inputs: archives, flags, config files, weight files, and runs to resume."""

import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import test_archives
import weight_files
from bad_inputs import Case, encode, label_with, put

from segnet_jax import prepare
from segnet_jax.data.labels.classes import CAMVID, ClassTable
from segnet_jax.data.labels.label_mapping import TUTORIAL
from segnet_jax.data.layouts import camvid
from segnet_jax.runs import find_run
from segnet_jax.training import choose_devices
from segnet_jax.training import manifest as training_manifest

# --- the official archives ---

FRAMES = test_archives.THREE
IMAGES, LABELS = "701_StillsRaw_full.zip", "LabeledApproved_full.zip"


def repacked(archive, replaced, *more):
    """Return a function that repacks an archive with some frames replaced and some members added."""

    def spoil(folder):
        with zipfile.ZipFile(folder / archive) as old:
            held = [(name, old.read(name)) for name in old.namelist()]
        members = [(name, next((new for frame, new in replaced.items() if frame in name), data)) for name, data in held]
        test_archives.write_zip(folder / archive, [*members, *more])

    return spoil


def colored(frame, first_row=None, alpha=None):
    """Return a label PNG as the archive contains it, with a stray color in its first row or with an alpha channel."""
    picture = test_archives.COLORS[test_archives.picture(frame, (24, 32))[1]]
    if first_row is not None:
        picture[0] = first_row
    return encode(picture if alpha is None else np.dstack([picture, np.full((24, 32), alpha, np.uint8)]))


def inverted(archive, marker, offset, mask=0xFF):
    """Return a function that flips the bits of one byte after a marker."""

    def flip(data):
        place = data.rindex(marker) + offset
        return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]

    return put(archive, flip)


def fetched(**changes):
    """Return a patch that makes `prepare` download the label archive from the folder; its checksum differs."""

    def patch(monkeypatch, folder):
        local = {"urls": ((folder / LABELS).as_uri(),), "num_bytes": None}
        monkeypatch.setattr(prepare, "LABELS", dataclasses.replace(prepare.LABELS, **local | changes))

    return patch


BOMB = test_archives.deflated("bomb.png"), bytes(10_000_000)
BY_HAND = ("--archives", "{folder}")
PAGE = b"<!DOCTYPE html><html>404</html>"

ARCHIVES = [
    Case(17, "broken-data:archive", f"{FRAMES[2]}.png", (), inverted(IMAGES, b"IDAT", 20), BY_HAND),
    Case(18, "web-page:archive", LABELS, ("cannot be read as a zip", "web page"), put(LABELS, PAGE), BY_HAND),
    Case(
        24, "colors known", "", ("Pole: (192, 192, 128), (0, 0, 64)", "void: (0, 0, 0)"), accepted=True, flags=BY_HAND
    ),
    Case(
        25,
        "unknown-color",
        FRAMES[0],
        ("64 px of color (9, 9, 9) in 2 files", "nearest known (0, 0, 0)", FRAMES[1]),
        repacked(LABELS, {frame: colored(frame, first_row=9) for frame in FRAMES[:2]}),
        BY_HAND,
    ),
    Case(
        26,
        "transparent",
        f"{FRAMES[1]}_L.png",
        ("768 transparent pixels",),
        repacked(LABELS, {FRAMES[1]: colored(FRAMES[1], alpha=128)}),
        BY_HAND,
    ),
    Case(40, "not-a-zip", IMAGES, ("cannot be read as a zip",), put(IMAGES, b"PK\3\4 and no more"), BY_HAND),
    Case(40, "hostile-archive:encrypted", IMAGES, ("is encrypted",), inverted(IMAGES, b"PK\1\2", 8, 1), BY_HAND),
    Case(
        40,
        "hostile-archive:slip",
        "../../x",
        ("leads out of the archive", "refused"),
        repacked(IMAGES, {}, ("../../x", b"x")),
        BY_HAND,
    ),
    Case(40, "hostile-archive:bomb", "bomb.png", ("10000000 bytes, too many",), repacked(LABELS, {}, BOMB), BY_HAND),
    Case(40, "wrong-frames", LABELS, ("not in CamVid x",), repacked(LABELS, {}, ("x_L.png", b"x")), BY_HAND),
    Case(40, "missing-file", LABELS, ("put",), lambda folder: (folder / LABELS).unlink(), BY_HAND),
    Case(40, "no-download", LABELS, ("sha256", f"expected {'0' * 64}"), patch=fetched(sha256="0" * 64)),
    Case(
        40, "no-download:page", LABELS, ("sent a web page, not a zip", "--archives"), put(LABELS, PAGE), patch=fetched()
    ),
]


# --- flags and config files ---


def config(text):
    return lambda folder: (folder.parent / "config.toml").write_text(text)


def with_gpu(monkeypatch, folder):
    monkeypatch.setattr(choose_devices, "NVIDIA_DRIVER", folder)


CONFIG = ("--config", "{folder}/../config.toml")
DEVICES = ("9 devices requested, but only 8 found (cpu)", "--devices 8", "--fake-devices 9")

FLAGS = [
    Case(
        41,
        "usage:large rate",
        "",
        ("--learning-rate must be between 1e-12 and 10, got 1000",),
        flags=("--learning-rate", "1e3"),
    ),
    Case(41, "usage:no number", "", ("--learning-rate",), flags=("--learning-rate", "abc")),
    Case(41, "usage:negative", "", ("--learning-rate must be between",), flags=("--learning-rate", "-1")),
    Case(41, "usage:nan", "", ("--learning-rate must be between",), flags=("--learning-rate", "nan")),
    Case(41, "usage:no epochs", "", ("--epochs must be between 1",), flags=("--epochs", "0")),
    Case(42, "usage:flag", "", ("nearest: --learning-rate",), flags=("--learning-rat", "1")),
    Case(
        42,
        "usage:key",
        "config.toml",
        ("'learning_rat'", "nearest: learning_rate"),
        config("learning_rat = 1.0"),
        CONFIG,
    ),
    Case(43, "usage:syntax", "config.toml", ("not valid TOML", "line 2"), config("seed = 1\nepochs = \n"), CONFIG),
    Case(43, "usage:type", "config.toml", ("epochs", "must be int, got 'ten'"), config('epochs = "ten"'), CONFIG),
    Case(43, "usage:twice", "config.toml", ("overwrite", "line 2"), config("seed = 1\nseed = 2\n"), CONFIG),
    Case(44, "usage:devices", "", DEVICES, flags=("--devices", "9")),
    Case(44, "too-few-images:devices", "", ("global batch of 8", "fewer --devices"), flags=("--devices", "8")),
    Case(
        45,
        "GPU unused",
        "",
        ("an NVIDIA GPU is present", 'pip install -U "jax[cuda12]"'),
        patch=with_gpu,
        accepted=True,
    ),
]


# --- weight files ---


def weights(make=weight_files.state_dict):
    """Return a function that writes the weights of a small VGG."""

    def spoil(folder):
        made = make(weight_files.random_vgg(weight_files.SMALL16))
        weight_files.write_torch_zip(folder.parent / "weights.pth", made)

    return spoil


def changed(name, change):
    def make(convs):
        state = weight_files.state_dict(convs)
        return state | {name: change(state[name].copy())}

    return make


def with_nan(bias):
    bias[1] = np.nan
    return bias


INIT = ("--init", "{folder}/../weights.pth", "--width", "1")


def bare_pickle(folder):
    (folder.parent / "weights.pth").write_bytes(pickle.dumps(print, protocol=2))


def turn(kernel):
    return np.ascontiguousarray(kernel.T)


WEIGHTS = [
    Case(47, "no-code", "weights.pth", ("contains code, which is not run", "fix: use a file"), bare_pickle, INIT),
    Case(47, "bad-weights:missing", "weights.pth", ("26 missing",), weights(lambda convs: {}), INIT),
    Case(
        47,
        "bad-weights:transposed",
        "weights.pth",
        ("features.5.weight 3x3x3x4 instead of 4x3x3x3",),
        weights(changed("features.5.weight", turn)),
        INIT,
    ),
    Case(
        47,
        "bad-weights:NaN",
        "weights.pth",
        ("features.28.bias has 1 numbers that are not finite",),
        weights(changed("features.28.bias", with_nan)),
        INIT,
    ),
    Case(47, "an encoder alone", "", (), weights(), INIT, accepted=True),
]


# --- runs ---


def newer(folder):
    """Rewrite the newest checkpoint's manifest as a later version might write it."""
    for path in folder.parent.glob(f"run/checkpoints/*/*/{training_manifest.MANIFEST}"):
        manifest = json.loads(path.read_text())
        manifest |= {"version": training_manifest.VERSION + 1}
        del manifest["sha256"]
        path.write_text(json.dumps(manifest | {"sha256": training_manifest._sum_of(manifest)}))


def other_classes(monkeypatch, folder):
    label_mapping = dataclasses.replace(TUTORIAL, classes=ClassTable(("Heaven", *CAMVID.names[1:]), CAMVID.colors))
    monkeypatch.setattr(camvid, "TUTORIAL", label_mapping)


HELD = []


def lock(folder):
    """Lock the run, as another process would."""
    HELD.append(open(folder.parent / "run/lock", "ab"))  # noqa: SIM115
    fcntl.flock(HELD[-1], fcntl.LOCK_EX)


def read_only(monkeypatch, folder):
    """Simulate a read-only disk; permissions do not stop root, who runs tests in containers."""

    def mkdir(path, *args, **settings):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)


def no_room(monkeypatch, folder):
    usage = shutil.disk_usage(folder)._replace(free=10)
    monkeypatch.setattr(find_run.shutil, "disk_usage", lambda path: usage)


RUN = ("--run", "{folder}/../run")
NEW = ("--run", "{folder}/../new/run", "--input", "host")
RESUME = (*RUN, "--resume")
OTHER = "with changed settings"
ONE_PIXEL = put("trainannot/c.png", encode(label_with(7)))

RUNS = [
    Case(46, "usage:absent", "no/run", ("there is no such folder",), flags=("--run", "{folder}/../no/run", "--resume")),
    Case(46, "usage:no run", "CamVid", ("contains no config.toml",), flags=("--run", "{folder}", "--resume")),
    Case(46, "usage:other model", "run", (OTHER, "width 0.0625 -> 0.125"), flags=(*RESUME, "--width", "0.125")),
    Case(
        46,
        "usage:other classes",
        "run",
        ("cannot be resumed", "Sky", "-> ['Heaven'"),
        flags=RESUME,
        patch=other_classes,
    ),
    Case(46, "usage:other data", "run", ("cannot be resumed", "trainannot/c.png differs"), ONE_PIXEL, RESUME),
    Case(46, "usage:newer format", "run", ("has format 2, but this version",), newer, RESUME),
    Case(48, "usage:not a folder", "run", ("cannot create the run folder",), flags=("--run", "{folder}/train.txt/run")),
    Case(
        48,
        "usage:read-only",
        "run",
        ("cannot create the run folder", os.strerror(errno.EROFS)),
        flags=("--run", "{folder}/../new/run"),
        patch=read_only,
    ),
    Case(48, "usage:not empty", "CamVid", ("is not an empty folder",), flags=("--run", "{folder}")),
    Case(48, "usage:long path", "", ("cannot create the run folder",), flags=("--run", "{folder}/../" + "x" * 300)),
    Case(48, "no-room", "new", ("5 checkpoints need 0 MB, but only 0 MB are free",), flags=NEW, patch=no_room),
    Case(48, "in use", "run", ("in use by another process",), lock, RUN, exit_code=5),
]
