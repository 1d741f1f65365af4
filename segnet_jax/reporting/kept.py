"""What a run keeps of each evaluation, in `evaluations/`: the numbers and pictures that its report is drawn from.

`records.json` has what is one for all evaluations, the classes and the fixed records' images and labels; `step_N.json`
the confusion matrix and the fixed records' predictions; `worst.json` those that the newest evaluation found worst. They
hold pictures as base64, so that each file is whole or not there, and a page can show them as they are.
"""

import base64
import io
import pathlib
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from segnet_jax.constants import VOID
from segnet_jax.datasets.labels import ClassTable, Color
from segnet_jax.files import atomic_write_json

FOLDER = "evaluations"
RECORDS_FILE, WORST_FILE, UNCERTAINTY_FILE = "records.json", "worst.json", "uncertainty.json"
_LONGEST = 512  # pixels of a side: as large as a page shows one
_MOST_LISTED = 24  # of the worst images, by name and number
_ERRORS = ((236, 236, 236), (214, 39, 40), (150, 150, 150))  # right, wrong, void

Picture = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""Name, image uint8 [H,W,3], label uint8 [H,W] and prediction uint8 [H,W] of a record."""


def keep_evaluation(
    folder: pathlib.Path,
    step: int,
    *,
    about: Mapping[str, Any],
    classes: ClassTable,
    confusion: np.ndarray,
    loss: float,
    pictures: Sequence[Picture],
    worst: Sequence[Picture],
    accuracies: Mapping[str, float],
) -> None:
    """Keeps an evaluation for the report.

    Args:
      folder: the run's.
      step: finished steps.
      about: what the report is to know of the data besides.
      classes: names and colours.
      confusion: int64 [C,C].
      loss: of the split.
      pictures: of the fixed records.
      worst: of those with the lowest accuracies, the lowest first.
      accuracies: name -> share of its labelled pixels that are right, of each record.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    lowest = sorted(accuracies, key=lambda name: (accuracies[name], name))[:_MOST_LISTED]
    listed = [{"name": name, "accuracy": accuracies[name]} for name in lowest]
    colors = [*classes.colors, *[(0, 0, 0)] * (256 - len(classes))]
    fixed = [
        {"name": name, "image": _photo(image), "label": _mask(label, colors)} for name, image, label, _ in pictures
    ]
    told = {"classes": classes.names, "colors": classes.colors, **about, "records": fixed}
    atomic_write_json(place / RECORDS_FILE, told)
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
    atomic_write_json(place / WORST_FILE, found)
    scored = {"step": step, "loss": loss, "confusion": confusion, "peak_memory": _peak_memory()}
    scored["predictions"] = [_mask(prediction, colors) for *_, prediction in pictures]
    atomic_write_json(place / f"step_{step:07}.json", scored)


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
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    shown = [
        {
            "name": name,
            "image": "" if image is None else _photo(image),
            "prediction": _mask(maps["prediction"], classes.colors),
            **{measure: _heat(values) for measure, values in maps.items() if measure != "prediction"},
        }
        for name, image, maps in pictures
    ]
    atomic_write_json(place / UNCERTAINTY_FILE, {**told, "pictures": shown})


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
