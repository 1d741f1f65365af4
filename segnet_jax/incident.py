"""What a training leaves behind when a step was not finite: the batch that did it, to be looked at."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segnet_jax import confined
from segnet_jax.datasets.labels import ClassTable
from segnet_jax.endings import NotFinite
from segnet_jax.errors import listed
from segnet_jax.files import atomic_write_bytes, atomic_write_json
from segnet_jax.reporting.figures import batch_picture


def write_incident(
    folder: pathlib.Path,
    step: int,
    measures: Mapping[str, Any],
    batch: Mapping[str, np.ndarray],
    names: Sequence[str],
    classes: ClassTable,
) -> None:
    """Keeps the batch of a step as arrays and as a picture, with the names of its images, in `incident/`.

    Args:
      folder: the run's.
      step: the one that was not finite, counted from 1.
      measures: what it measured.
      batch: this process's "image" and "label", as the step got them.
      names: of the images of the whole global batch.
      classes: for the picture.
    """
    place = confined.make_folder(folder, "incident")
    images, labels = (batch[name].reshape(-1, *batch[name].shape[3:]) for name in ("image", "label"))
    packed = io.BytesIO()
    np.savez(packed, image=images, label=labels)
    atomic_write_bytes(place / f"step_{step:07}.npz", packed.getvalue())
    atomic_write_json(place / f"step_{step:07}.json", {"step": step, "images": list(names), "measures": dict(measures)})
    batch_picture(images, labels, classes, place / f"step_{step:07}.png", f"Batch of step {step}, which was not finite")


def not_finite(step: int, names: Sequence[str], folder: pathlib.Path, learning_rate: float) -> NotFinite:
    """What to say of it."""
    return NotFinite(
        f"step {step} was not finite (NaN or infinity in loss, gradients or statistics) on the images {listed(names)}; "
        f"the batch is kept in {folder / 'incident'}; try a lower --learning-rate (it was {learning_rate:g}) with "
        "--override, or look for a broken image"
    )
