"""What `predict` leaves of each input: pictures beside each other in one folder, and a row of its summary."""

import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from segnet_jax.constants import Exif
from segnet_jax.data.images.exif_rotation import check_stated, exif_of_pair
from segnet_jax.data.images.fit import fit_label, resize_label
from segnet_jax.data.images.picture_header import MAX_PIXELS, check_sizes
from segnet_jax.data.label_files.decode_labels import read_label_by
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.data.labels.label_mapping import LabelRule
from segnet_jax.data.labels.read_options import PLAIN, Reading
from segnet_jax.data.layouts.names.match_names import label_of_name
from segnet_jax.inference.predictor import Prediction, Sizing
from segnet_jax.inference.sampling import MEASURES
from segnet_jax.inference.sources import Source
from segnet_jax.metrics.confusion import count_confusion, scores
from segnet_jax.reporting import overlay
from segnet_jax.reporting.figures import error_map
from segnet_jax.system import budget
from segnet_jax.system.errors import Fault, UserError, listed, shown
from segnet_jax.system.files import atomic_write_bytes, expanded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """How labels are read and predictions scored.

    Attributes:
      rule: the label rule of the run.
      reading: the read options of the run.
      sizing: at which size the network saw the images.
    """

    rule: LabelRule
    reading: Reading
    sizing: Sizing

    def read(self, source: Source, path: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
        """Read the label of an image, uint8 [H,W] of class ids or VOID, at the image's size.

        Args:
          source: the image.
          path: of the label.
          size: height and width of the image, upright.

        Raises:
          UserError: the label is at fault, or the image carries a rotation that the run does not say how to treat.
        """
        check_stated(source.path, source.told, self.reading.exif)
        exif = exif_of_pair(source.path, path, self.reading.exif)
        label = read_label_by(self.rule, path, str(path), exif)
        if label.shape != size and self.reading.resize_labels == "nearest":
            return resize_label(label, *size)
        check_sizes(size[::-1], label.shape[::-1], source.told, str(path))
        return label

    def confusion(self, label: np.ndarray, prediction: Prediction, num_classes: int) -> np.ndarray:
        """Count the confusion matrix, int64 [C,C], at the size at which `evaluate` scores where the network saw it."""
        if prediction.trained_ids is None:
            return count_confusion(label, prediction.class_ids, num_classes)
        fitted = fit_label(label, self.sizing.trained, self.sizing.fit)
        return count_confusion(fitted, prediction.trained_ids, num_classes)


def exif_for(source: Source, label: pathlib.Path | None, exif: Exif) -> Exif:
    """How an image is read: as the run reads images, and upright where that says nothing about it."""
    if exif == "ignore" or label is None:
        return "ignore" if exif == "ignore" else "apply"
    return exif_of_pair(source.path, label, "apply" if exif == "refuse" else exif)


def find_labels(sources: Sequence[Source], folder: str, suffix: str) -> dict[Source, pathlib.Path]:
    """Find the label of each image that has one in a folder, by the names that a dataset folder may use.

    Args:
      sources: what is predicted.
      folder: of the labels.
      suffix: that the run's labels have behind the image's name; empty to find it.

    Raises:
      UserError: there is no such folder, no image has a label, or one has two.
    """
    place = expanded(folder)
    if not place.is_dir():
        raise UserError(f"no folder {folder} for --labels", kind="no-folder", file=folder)
    images = [source for source in sources if source.kind == "image"]
    paths = label_of_name([source.path.stem for source in images], place, suffix)
    found = {}
    for source in images:
        mine = paths.get(source.path.stem, ())
        if len(mine) > 1:
            what = f"{source.told} has {len(mine)} labels: {listed([str(path) for path in mine])}"
            raise UserError(what, kind="two-labels", file=source.told, fix="leave one of them in the folder")
        if mine:
            found[source] = mine[0]
    if without := [source.told for source in images if source not in found]:
        what = f"{len(without)} of {len(images)} images have no label in {folder}: {listed(without)}"
        if not found:
            raise UserError(
                f"{what}; looked for {pathlib.Path(without[0]).stem}.png", kind="missing-label", file=folder
            )
        logger.warning(what)
    return found


T = TypeVar("T")
_BYTES_A_PIXEL = 12  # that pictures of an image take while they are drawn
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
        with budget.pictures.scope():
            budget.pictures.announce(_BYTES_A_PIXEL * image.shape[0] * image.shape[1])
            return self._image(source, image, prediction)

    def _image(self, source: Source, image: np.ndarray, prediction: Prediction) -> Entry:
        counts = self.count(prediction)
        seen = overlay.overlay_by_strips(image, prediction.class_ids, self.classes)
        if self.key:
            seen = overlay.add_class_key(seen, counts / counts.sum(), self.classes)
        picture, ending = overlay.picture_file(seen)
        files = {INDEX: overlay.index_png(prediction.class_ids, self.classes), OVERLAY + ending: picture}
        if self.confidence:
            files[CONFIDENCE] = overlay.gray_png(prediction.confidence)
        if self.uncertainty:
            files |= {f"_{name}.png": overlay.gray_png(values) for name, values in prediction.uncertainty.items()}
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
        return budget.count_values(prediction.class_ids, len(self.classes))

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
