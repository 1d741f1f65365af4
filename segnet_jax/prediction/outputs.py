"""What `predict` leaves of each input: pictures beside each other in one folder, and a row of its summary."""

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from segnet_jax.datasets.headers import MAX_PIXELS
from segnet_jax.datasets.labels import ClassTable
from segnet_jax.datasets.reading import PLAIN, Reading
from segnet_jax.errors import Fault, UserError, listed, shown
from segnet_jax.files import atomic_write_bytes
from segnet_jax.metrics.confusion import scores
from segnet_jax.prediction.predictor import Prediction
from segnet_jax.prediction.sampling import MEASURES
from segnet_jax.prediction.scoring import Scoring, exif_for
from segnet_jax.prediction.sources import Source
from segnet_jax.reporting import overlay
from segnet_jax.reporting.figures import error_map

T = TypeVar("T")
INDEX, OVERLAY, CONFIDENCE, ERRORS = ".png", "_overlay", "_confidence.png", "_errors.png"
VIDEO, FRAMES = "_overlay.mp4", "_frames"


@dataclass
class Entry:
    """What is told of one input.

    Attributes:
      row: of the summary, as JSON.
      counts: int64 [C], pixels of each class.
      confusion: int64 [C,C] against its label, if it has one.
      faults: of its label.
    """

    row: dict[str, Any]
    counts: np.ndarray
    confusion: np.ndarray | None = None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """Where and how outputs are written.

    Attributes:
      folder: for all of them.
      classes: names and colors.
      write: carries out a write, and tells of a full disk.
      key: whether overlays have a key of the classes beneath.
      confidence: whether a picture of the confidence is written too.
      uncertainty: whether pictures of each measure of uncertainty are, of samples.
      frames: whether a video's frames are written one by one too, as class ids.
      labels: of the sources that have one, its file.
      scoring: how those labels are read and scored; None without labels.
      reading: the read options of the run.
      max_pixels: that an image may have.
    """

    folder: pathlib.Path
    classes: ClassTable
    write: Callable[[Callable[[], T]], T]
    key: bool = True
    confidence: bool = False
    uncertainty: bool = False
    frames: bool = False
    labels: Mapping[Source, pathlib.Path] = field(default_factory=dict)
    scoring: Scoring | None = None
    reading: Reading = PLAIN
    max_pixels: int = MAX_PIXELS

    def read(self, source: Source) -> dict[str, Any]:
        """How `read_image` is to read an image."""
        return {
            "exif": exif_for(source, self.labels.get(source), self.reading.exif),
            "image_range": self.reading.image_range,
            "max_pixels": self.max_pixels,
        }

    def image(self, source: Source, image: np.ndarray, prediction: Prediction) -> Entry:
        """Writes what was asked for of an image, uint8 [H,W,3]; safe to be called from several threads."""
        counts = self.count(prediction)
        seen = overlay.laid_over(image, prediction.class_ids, self.classes)
        if self.key:
            seen = overlay.with_key(seen, counts / counts.sum(), self.classes)
        picture, ending = overlay.picture_file(seen)
        files = {INDEX: overlay.index_png(prediction.class_ids, self.classes), OVERLAY + ending: picture}
        if self.confidence:
            files[CONFIDENCE] = overlay.grey_png(prediction.confidence)
        if self.uncertainty:
            files |= {f"_{name}.png": overlay.grey_png(values) for name, values in prediction.uncertainty.items()}
        confusion, faults = None, ()
        if source in self.labels:
            try:
                label = self.scoring.read(source, self.labels[source], image.shape[:2])
                confusion = self.scoring.confusion(label, prediction, len(self.classes))
                files[ERRORS] = overlay.rgb_png(error_map(label, prediction.class_ids))
            except UserError as error:
                faults = error.faults
        for ending, data in files.items():
            path = self.folder / f"{source.name}{ending}"
            self.write(partial(atomic_write_bytes, path, data))
        row = self.row(source, image.shape[:2], list(files), counts, prediction.confidence.mean())
        row["milliseconds"] = prediction.milliseconds
        if confusion is not None and confusion.any():
            found = scores(confusion)
            row |= {"miou": found.miou, "global_accuracy": found.global_accuracy}
        return Entry(row, counts, confusion, faults)

    def frame(self, source: Source, number: int, class_ids: np.ndarray) -> None:
        """Writes the class ids of a video's frame."""
        data = overlay.index_png(class_ids, self.classes)
        self.write(lambda: atomic_write_bytes(self.frames_of(source) / f"{number:06}.png", data))

    def frames_of(self, source: Source) -> pathlib.Path:
        """The folder for a video's frames."""
        return self.folder / f"{source.name}{FRAMES}"

    @property
    def no_counts(self) -> np.ndarray:
        """No pixel of any class, int64 [C]."""
        return np.zeros(len(self.classes), np.int64)

    def count(self, prediction: Prediction) -> np.ndarray:
        """The pixels of each class, int64 [C]."""
        return np.bincount(prediction.class_ids.ravel(), minlength=len(self.classes))

    def row(
        self, source: Source, size: tuple[int, int], endings: Sequence[str], counts: np.ndarray, confidence: float
    ) -> dict[str, Any]:
        """What the summary tells of every input; `confidence` is the mean, 0..255."""
        shares = zip(self.classes.names, (counts / counts.sum()).tolist(), strict=True)
        return {
            "input": source.told,
            "kind": source.kind,
            "height": size[0],
            "width": size[1],
            "outputs": [shown(str(self.folder / f"{source.name}{ending}")) for ending in endings],
            "class_shares": dict(shares),
            "mean_confidence": float(confidence) / 255,
        }


def endings_of(source: Source, *, confidence: bool, frames: bool, errors: bool, uncertainty: bool = False) -> list[str]:
    """What the names of a source's outputs may end in."""
    if source.kind == "video":
        return [VIDEO, *[FRAMES] * frames]
    measures = [f"_{name}.png" for name in MEASURES] if uncertainty else []
    return [INDEX, f"{OVERLAY}.jpg", f"{OVERLAY}.png", *[CONFIDENCE] * confidence, *[ERRORS] * errors, *measures]


def check_nothing_there(files: Iterable[pathlib.Path]) -> None:
    """Refuses to write where something is, an input among it.

    Raises:
      UserError: if so.
    """
    if there := [str(path) for path in files if os.path.lexists(path)]:
        raise UserError(f"nothing is overwritten, and there is already {listed(there)}: name another --out")
