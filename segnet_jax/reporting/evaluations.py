"""The folder `evaluations/` of a run: the numbers and pictures of each evaluation, from which the report is drawn.

* `dataset.json`: class names and colors, splits, and images and labels of the preview samples, shared by all steps.
* `step_N.json`: confusion matrix and predictions of the preview samples after step N.
* `worst.json`: the worst images of the newest evaluation; during training, of the last drawn evaluation.
* `images_N.npz`: the confusion matrix of each image, for the newest and the best evaluation (20 kB for 101 images).

Pictures are base64 strings inside the JSON files, so that each file is written atomically and a page can embed them.
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
from segnet_jax.reporting.colors import displayable, palette
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_bytes, atomic_write_json

FOLDER = "evaluations"
DATASET_FILE, WORST_FILE, UNCERTAINTY_FILE = "dataset.json", "worst.json", "uncertainty.json"
_MAX_SIDE = 512  # pixels, the largest size that a page shows
_MAX_LISTED = 24  # worst images listed by name
_ERROR_COLORS = ((236, 236, 236), (214, 39, 40), (150, 150, 150))  # correct, wrong, void

_MAX_UNPACKED = 2**27  # bytes of an images_N.npz
_MAX_PACKED = 2**20  # bytes of its compressed form inside a JSON file


@dataclass(frozen=True)
class Images:
    """The confusion matrix of each image of an evaluation.

    Attributes:
      names: image names.
      confusions: int32 [N,C,C]; of several classes per pixel [N,C+1,C+2], see `metrics.co_occurrence`.
    """

    names: tuple[str, ...]
    confusions: np.ndarray


Picture = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""Name, image uint8 [H,W,3], label uint8 [H,W] and prediction uint8 [H,W] of a sample."""


def write_dataset_info(
    folder: pathlib.Path, about: Mapping[str, Any], classes: ClassTable, pictures: Sequence[Picture]
) -> None:
    """Write `dataset.json`.

    Args:
      folder: the run folder.
      about: JSON values to add, such as the dataset's name and the number of images by split.
      classes: names and colors.
      pictures: the preview samples; their predictions are not used.
    """
    colors = _palette(classes)
    samples = [
        {"name": name, "image": _jpeg(image), "label": _mask(label, colors)} for name, image, label, _ in pictures
    ]
    content = {"classes": classes.names, "colors": classes.colors, **about, "samples": samples}
    atomic_write_json(_make_folder(folder) / DATASET_FILE, content)


def write_worst(
    folder: pathlib.Path, step: int, classes: ClassTable, worst: Sequence[Picture], accuracies: Mapping[str, float]
) -> None:
    """Replace `worst.json`.

    Args:
      folder: the run folder.
      step: finished steps.
      classes: names and colors.
      worst: samples with the lowest accuracies, the lowest first.
      accuracies: name -> fraction of labeled pixels predicted correctly, of every sample.
    """
    colors = _palette(classes)
    lowest = sorted(accuracies, key=lambda name: (accuracies[name], name))[:_MAX_LISTED]
    listed = [{"name": name, "accuracy": accuracies[name]} for name in lowest]
    pictures = [
        {
            "name": name,
            "image": _jpeg(image),
            "label": _mask(label, colors),
            "prediction": _mask(prediction, colors),
            "errors": _mask(np.where(label == VOID, 2, label != prediction).astype(np.uint8), _ERROR_COLORS),
        }
        for name, image, label, prediction in worst
    ]
    content = {"step": step, "num_images": len(accuracies), "lowest": listed, "pictures": pictures}
    atomic_write_json(_make_folder(folder) / WORST_FILE, content)


def write_evaluation(
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
    """Write `step_N.json` and `images_N.npz`, and delete the `images_*.npz` that are neither newest nor best.

    Args:
      folder: the run folder.
      step: finished steps.
      classes: names and colors.
      confusion: int64 [C,C].
      loss: loss of the split.
      pictures: the preview samples.
      images: the confusion matrix of each image, if known.
      best: step of the best evaluation before this one, whose `images_N.npz` stays.
    """
    place, colors = _make_folder(folder), _palette(classes)
    content = {"step": step, "loss": loss, "confusion": confusion, "peak_memory": _peak_memory()}
    content["predictions"] = [_mask(prediction, colors) for *_, prediction in pictures]
    atomic_write_json(place / f"step_{step:07}.json", content)
    if images is not None:
        write_images(images_path(folder, step), images)
    current = {images_path(folder, each).name for each in (step, best) if each is not None}
    for old in untrusted_files.names(folder, FOLDER):
        if old.startswith("images_") and old.endswith(".npz") and old not in current:
            untrusted_files.remove(folder, f"{FOLDER}/{old}")


def _make_folder(run: pathlib.Path) -> pathlib.Path:
    return untrusted_files.make_folder(run, FOLDER)


def _palette(classes: ClassTable) -> list[Color]:
    return [tuple(color) for color in palette(classes).tolist()]


def images_path(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Return the path of `images_N.npz`."""
    return folder / FOLDER / f"images_{step:07}.npz"


def write_images(path: str | os.PathLike, images: Images) -> None:
    """Write a compressed `images_N.npz` atomically."""
    atomic_write_bytes(path, _npz(images))


def _npz(images: Images) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, names=np.array(images.names, str), confusions=images.confusions)
    return buffer.getvalue()


def encode_images(images: Images | None) -> str | None:
    """Return the content of `images_N.npz` as base64 for a JSON file, or None if there are no images or over 1 MiB."""
    data = _npz(images) if images is not None else b""
    return base64.b64encode(data).decode() if 0 < len(data) <= _MAX_PACKED else None


def read_images(path: str | os.PathLike | io.BytesIO) -> Images | None:
    """Read a file of `write_images`; return None if it is missing, malformed or too large."""
    try:
        if not isinstance(path, io.BytesIO):  # in a run folder, which may come from somebody else
            path = pathlib.Path(path)
            inner = f"{path.parent.name}/{path.name}"
            path = io.BytesIO(untrusted_files.read_bytes(path.absolute().parents[1], inner, most=_MAX_UNPACKED))
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MAX_UNPACKED:
                return None
        path.seek(0)
        with np.load(path, allow_pickle=False) as arrays:
            names, confusions = arrays["names"], arrays["confusions"]
    except (OSError, UserError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return None
    except MemoryError:
        return None
    valid = names.ndim == 1 and names.dtype.kind == "U" and confusions.dtype == np.int32 and confusions.ndim == 3
    if not valid or confusions.shape[0] != len(names) or confusions.shape[2] - confusions.shape[1] not in (0, 1):
        return None
    return Images(tuple(map(str, names)), confusions) if (confusions >= 0).all() else None


def write_uncertainty(
    folder: pathlib.Path,
    summary: Mapping[str, Any],
    pictures: Sequence[tuple[str, np.ndarray | None, Mapping[str, np.ndarray]]],
    classes: ClassTable,
) -> None:
    """Replace `uncertainty.json`, the results of Monte Carlo dropout.

    Args:
      folder: the run folder.
      summary: scores, as JSON.
      pictures: (name, image, maps) of some samples. The image is uint8 [H,W,3], or None if it must not be published;
        the maps are uint8 [H,W]: "prediction", and one per measure of uncertainty, where 255 is the most uncertain.
      classes: names and colors.
    """
    encoded = [
        {
            "name": name,
            "image": "" if image is None else _jpeg(image),
            "prediction": _mask(maps["prediction"], classes.colors),
            **{measure: _heatmap(values) for measure, values in maps.items() if measure != "prediction"},
        }
        for name, image, maps in pictures
    ]
    atomic_write_json(_make_folder(folder) / UNCERTAINTY_FILE, {**summary, "pictures": encoded})


def _heatmap(values: np.ndarray) -> str:
    """Encode a uint8 [H,W] map as a base64 PNG with stretched contrast; high values are dark."""
    stretched = 255 - np.round(values * (255 / max(int(values.max()), 1))).astype(np.uint8)
    picture = Image.fromarray(stretched)
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.BOX)
    return _encoded(picture, "PNG")


def _jpeg(image: np.ndarray) -> str:
    """Encode an image as a base64 JPEG of at most 512 pixels per side."""
    picture = Image.fromarray(displayable(image))
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    return _encoded(picture, "JPEG", quality=88, subsampling=0)


def _mask(label: np.ndarray, colors: Sequence[Color]) -> str:
    """Encode class ids as a base64 PNG with the class colors as its palette."""
    picture = Image.fromarray(label)
    picture.putpalette(np.array(colors, np.uint8).tobytes())
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.NEAREST)
    return _encoded(picture, "PNG")


def _encoded(picture: Image.Image, kind: str, **settings) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return base64.b64encode(buffer.getvalue()).decode()


def _peak_memory() -> dict[str, int | None]:
    """Return the peak memory in bytes of this process, and of its first device if the backend counts it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"host": peak_process_memory(), "device": stats.get("peak_bytes_in_use")}


def peak_process_memory() -> int:
    """Return the peak resident memory of this process in bytes."""
    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
