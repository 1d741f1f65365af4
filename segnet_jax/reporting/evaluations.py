"""What a run keeps of each evaluation, in `evaluations/`: the numbers and pictures that its report is drawn from.

`records.json` has what is one for all evaluations, the classes and the fixed records' images and labels; `step_N.json`
the confusion matrix and the fixed records' predictions; `worst.json` those that an evaluation found worst: the newest,
or while a training goes on the last that it has drawn. They hold pictures as base64, so that each file is whole or not
there, and a page can show them as they are. `images_N.npz` has the confusion matrix of each image, of the newest
evaluation and the best: some 20 kB for 101 images of CamVid.
"""

import base64
import io
import os
import pathlib
import resource
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from PIL import Image

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import ClassTable, Color
from segnet_jax.system.files import atomic_write_bytes, atomic_write_json

FOLDER = "evaluations"
RECORDS_FILE, WORST_FILE, UNCERTAINTY_FILE = "records.json", "worst.json", "uncertainty.json"
_LONGEST = 512  # pixels of a side: as large as a page shows one
_MOST_LISTED = 24  # of the worst images, by name and number
_ERRORS = ((236, 236, 236), (214, 39, 40), (150, 150, 150))  # right, wrong, void

_MOST_UNPACKED = 2**27  # bytes of single images' matrices
_MOST_PACKED = 2**20  # bytes of them, compressed, in a JSON file


@dataclass(frozen=True)
class Images:
    """What an evaluation says of each image by itself.

    Attributes:
      names: of the images.
      confusions: int32 [N,C,C], a matrix for each.
    """

    names: tuple[str, ...]
    confusions: np.ndarray


Picture = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""Name, image uint8 [H,W,3], label uint8 [H,W] and prediction uint8 [H,W] of a record."""


def keep_records(
    folder: pathlib.Path, about: Mapping[str, Any], classes: ClassTable, pictures: Sequence[Picture]
) -> None:
    """Keeps for the report what is one for all evaluations.

    Args:
      folder: the run's.
      about: what the report is to know of the data besides.
      classes: names and colours.
      pictures: of the fixed records, of any evaluation.
    """
    colors = _palette(classes)
    fixed = [
        {"name": name, "image": _photo(image), "label": _mask(label, colors)} for name, image, label, _ in pictures
    ]
    told = {"classes": classes.names, "colors": classes.colors, **about, "records": fixed}
    atomic_write_json(_place(folder) / RECORDS_FILE, told)


def keep_worst(
    folder: pathlib.Path, step: int, classes: ClassTable, worst: Sequence[Picture], accuracies: Mapping[str, float]
) -> None:
    """Keeps for the report what an evaluation found worst; a later one takes its place.

    Args:
      folder: the run's.
      step: finished steps.
      classes: names and colours.
      worst: of the records with the lowest accuracies, the lowest first.
      accuracies: name -> share of its labelled pixels that are right, of each record.
    """
    colors = _palette(classes)
    lowest = sorted(accuracies, key=lambda name: (accuracies[name], name))[:_MOST_LISTED]
    listed = [{"name": name, "accuracy": accuracies[name]} for name in lowest]
    shown = [
        {
            "name": name,
            "image": _photo(image),
            "label": _mask(label, colors),
            "prediction": _mask(prediction, colors),
            "errors": _mask(np.where(label == VOID, 2, label != prediction).astype(np.uint8), _ERRORS),
        }
        for name, image, label, prediction in worst
    ]
    found = {"step": step, "num_images": len(accuracies), "lowest": listed, "pictures": shown}
    atomic_write_json(_place(folder) / WORST_FILE, found)


def keep_evaluation(
    folder: pathlib.Path,
    step: int,
    *,
    classes: ClassTable,
    confusion: np.ndarray,
    loss: float,
    pictures: Sequence[Picture],
    images: Images | None = None,
    best: int | None = None,
) -> None:
    """Keeps an evaluation for the report.

    Args:
      folder: the run's.
      step: finished steps.
      classes: names and colours.
      confusion: int64 [C,C].
      loss: of the split.
      pictures: of the fixed records.
      images: the confusion matrix of each image, where they are known.
      best: the step of the best evaluation before this one; with `step`, that whose images stay kept.
    """
    place, colors = _place(folder), _palette(classes)
    scored = {"step": step, "loss": loss, "confusion": confusion, "peak_memory": _peak_memory()}
    scored["predictions"] = [_mask(prediction, colors) for *_, prediction in pictures]
    atomic_write_json(place / f"step_{step:07}.json", scored)
    if images is not None:
        write_images(images_path(folder, step), images)
    for old in {*place.glob("images_*.npz")} - {images_path(folder, each) for each in (step, best) if each is not None}:
        old.unlink(missing_ok=True)


def _place(folder: pathlib.Path) -> pathlib.Path:
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    return place


def _palette(classes: ClassTable) -> list[Color]:
    return [*classes.colors, *[(0, 0, 0)] * (256 - len(classes))]


def images_path(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Where a run keeps the matrices of the single images of an evaluation."""
    return folder / FOLDER / f"images_{step:07}.npz"


def write_images(path: str | os.PathLike, images: Images) -> None:
    """Writes the names and matrices of single images, compressed, whole or not at all."""
    atomic_write_bytes(path, _npz(images))


def _npz(images: Images) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, names=np.array(images.names, str), confusions=images.confusions)
    return buffer.getvalue()


def packed(images: Images | None) -> str | None:
    """What `write_images` writes, as base64 for a JSON file; None where that would be large."""
    data = _npz(images) if images is not None else b""
    return base64.b64encode(data).decode() if 0 < len(data) <= _MOST_PACKED else None


def read_images(path: str | os.PathLike | io.BytesIO) -> Images | None:
    """Reads what `write_images` wrote; None where there is nothing, or something else, or far too much."""
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(member.file_size for member in packed.infolist()) > _MOST_UNPACKED:
                return None
        if isinstance(path, io.BytesIO):
            path.seek(0)
        with np.load(path, allow_pickle=False) as found:
            names, confusions = found["names"], found["confusions"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError):
        return None
    sound = names.ndim == 1 and names.dtype.kind == "U" and confusions.dtype == np.int32 and confusions.ndim == 3
    if not sound or confusions.shape[0] != len(names) or confusions.shape[1] != confusions.shape[2]:
        return None
    return Images(tuple(map(str, names)), confusions) if (confusions >= 0).all() else None


def keep_uncertainty(
    folder: pathlib.Path,
    told: Mapping[str, Any],
    pictures: Sequence[tuple[str, np.ndarray | None, Mapping[str, np.ndarray]]],
    classes: ClassTable,
) -> None:
    """Keeps for the report what samples under dropout have shown; a later one takes its place.

    Args:
      folder: the run's.
      told: scores, as JSON.
      pictures: of some records: name, image uint8 [H,W,3], or None where it must not be passed on, and maps, uint8
        [H,W]: the "prediction" and how unsure it is, by name of the measure, 255 for most.
      classes: names and colours.
    """
    shown = [
        {
            "name": name,
            "image": "" if image is None else _photo(image),
            "prediction": _mask(maps["prediction"], classes.colors),
            **{measure: _heat(values) for measure, values in maps.items() if measure != "prediction"},
        }
        for name, image, maps in pictures
    ]
    atomic_write_json(_place(folder) / UNCERTAINTY_FILE, {**told, "pictures": shown})


def _heat(values: np.ndarray) -> str:
    """A map, uint8 [H,W], as base64 of a PNG, dark where it is high; its contrast is stretched to be seen."""
    stretched = 255 - np.round(values * (255 / max(int(values.max()), 1))).astype(np.uint8)
    picture = Image.fromarray(stretched)
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BOX)
    return _encoded(picture, "PNG")


def _photo(image: np.ndarray) -> str:
    """A photograph as base64 of a JPEG, shrunk to what is shown."""
    picture = Image.fromarray(image)
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    return _encoded(picture, "JPEG", quality=88, subsampling=0)


def _mask(label: np.ndarray, colors: Sequence[Color]) -> str:
    """Class ids as base64 of a PNG with their colours as palette."""
    picture = Image.fromarray(label)
    picture.putpalette(np.array(colors, np.uint8).tobytes())
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.NEAREST)
    return _encoded(picture, "PNG")


def _encoded(picture: Image.Image, kind: str, **settings) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return base64.b64encode(buffer.getvalue()).decode()


def _peak_memory() -> dict[str, int | None]:
    """Bytes that this process, and its first device where it counts them, have had in use at most."""
    told = jax.local_devices()[0].memory_stats() or {}
    return {"host": peak_of_process(), "device": told.get("peak_bytes_in_use")}


def peak_of_process() -> int:
    """Bytes of memory that this process has had in use at most."""
    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
