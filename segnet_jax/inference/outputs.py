"""Output files of `predict` and the rows of its summary."""

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from segnet_jax.constants import Exif
from segnet_jax.data.images.exif_rotation import check_exif_stated, exif_for_pair
from segnet_jax.data.images.fit import fit_label, resize_label
from segnet_jax.data.images.picture_header import MAX_PIXELS, check_sizes
from segnet_jax.data.label_files.class_masks import read_label_files
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.data.labels.label_mapping import LabelRule
from segnet_jax.data.labels.read_options import DEFAULTS, ReadOptions
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.inference.predictor import Prediction, Sizing
from segnet_jax.inference.sampling import UNCERTAINTIES
from segnet_jax.inference.sources import Source
from segnet_jax.metrics.confusion import count_confusion, scores
from segnet_jax.nn.label_bits import count_bits
from segnet_jax.reporting import prediction_files
from segnet_jax.reporting.class_key import add_class_key
from segnet_jax.reporting.colors import displayable
from segnet_jax.reporting.figures import error_map
from segnet_jax.reporting.tables import percent, print_table
from segnet_jax.system import memory_budget
from segnet_jax.system.console import echo
from segnet_jax.system.errors import Fault, UserError, listed, shown
from segnet_jax.system.files import atomic_write_bytes


@dataclass(frozen=True)
class LabelScoring:
    """Options for reading labels and scoring predictions.

    Attributes:
      rule: label rule of the run.
      reading: read options of the run.
      sizing: network input size of the images.
      max_pixels: maximum number of pixels of a label.
    """

    rule: LabelRule
    reading: ReadOptions
    sizing: Sizing
    max_pixels: int = MAX_PIXELS

    def read(self, source: Source, label: Entry, size: tuple[int, int]) -> np.ndarray:
        """Read the label of an image, uint8 [H,W] of class ids or VOID, at the image's size.

        Args:
          source: the image.
          label: its label files.
          size: height and width of the upright image.

        Raises:
          UserError: If the label is invalid, or the run does not state how to read the image's EXIF rotation.
        """
        check_exif_stated(source.path, source.display_name, self.reading.exif)
        exif = exif_for_pair(source.path, label.label, self.reading.exif)
        values = read_label_files(self.rule, label.label, label.masks, str, exif, self.max_pixels)
        if values.shape != size and self.reading.resize_labels == "nearest":
            return resize_label(values, *size)
        check_sizes(size[::-1], values.shape[::-1], source.display_name, str(label.label))
        return values

    def confusion(self, label: np.ndarray, prediction: Prediction, num_classes: int) -> np.ndarray:
        """Compute the confusion matrix, int64 [C,C], at the training size if that was the network's input size."""
        if prediction.trained_ids is None:
            return count_confusion(label, prediction.class_ids, num_classes, self.rule.multi_label)
        fitted = fit_label(label, self.sizing.trained, self.sizing.fit)
        return count_confusion(fitted, prediction.trained_ids, num_classes, self.rule.multi_label)


def exif_for(source: Source, label: Entry | None, exif: Exif) -> Exif:
    """Return how to read an image's EXIF rotation: as in the run, or upright if the run does not state it."""
    if exif == "ignore" or label is None:
        return "ignore" if exif == "ignore" else "apply"
    return exif_for_pair(source.path, label.label, "apply" if exif == "refuse" else exif)


T = TypeVar("T")
_BYTES_PER_PIXEL = 12  # memory for drawing the outputs of an image
INDEX, OVERLAY, CONFIDENCE, ERRORS = prediction_files.INDEX, "_overlay", "_confidence.png", "_errors.png"
VIDEO, FRAMES = "_overlay.mp4", "_frames"


@dataclass
class PredictionEntry:
    """Result of one input.

    Attributes:
      row: row of the summary, JSON-serializable.
      counts: pixels of each predicted class, int64 [C].
      confusion: confusion matrix, int64 [C,C]; None without a label.
      faults: faults of the label.
    """

    row: dict[str, Any]
    counts: np.ndarray
    confusion: np.ndarray | None = None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """The outputs to write, and their destination.

    Attributes:
      folder: output folder.
      classes: class names and colors.
      write: calls a function that writes files, and reports a full disk.
      key: whether to draw a class key below overlays.
      confidence: whether to write confidence maps.
      uncertainty: whether to write the uncertainty maps of dropout samples.
      frames: whether to write the class ids of each video frame.
      labels: label file of each source that has one.
      scoring: options for reading and scoring the labels; None without labels.
      reading: read options of the run.
      max_pixels: maximum number of pixels of an image.
    """

    folder: pathlib.Path
    classes: ClassTable
    write: Callable[[Callable[[], T]], T]
    key: bool = True
    confidence: bool = False
    uncertainty: bool = False
    frames: bool = False
    labels: Mapping[Source, Entry] = field(default_factory=dict)
    scoring: LabelScoring | None = None
    reading: ReadOptions = DEFAULTS
    max_pixels: int = MAX_PIXELS

    def read(self, source: Source) -> dict[str, Any]:
        """Return the keyword arguments of `read_image` for an image."""
        return {
            "exif": exif_for(source, self.labels.get(source), self.reading.exif),
            "image_range": self.reading.image_range,
            "pixels": self.reading.pixels,
            "max_pixels": self.max_pixels,
        }

    def image(self, source: Source, image: np.ndarray, prediction: Prediction) -> PredictionEntry:
        """Write the outputs of an image, uint8 or uint16 [H,W,C]; thread-safe."""
        with memory_budget.pictures.scope():
            memory_budget.pictures.announce(_BYTES_PER_PIXEL * image.shape[0] * image.shape[1])
            return self._image(source, image, prediction)

    def _image(self, source: Source, image: np.ndarray, prediction: Prediction) -> PredictionEntry:
        counts = self.count(prediction)
        picture = prediction_files.overlay_by_strips(displayable(image), prediction.class_ids, self.classes)
        if self.key:
            picture = add_class_key(picture, counts / prediction.class_ids.size, self.classes)
        data, suffix = prediction_files.picture_file(picture)
        files = prediction_files.class_files(prediction.class_ids, self.classes) | {OVERLAY + suffix: data}
        if self.confidence:
            files[CONFIDENCE] = prediction_files.gray_png(prediction.confidence)
        if self.uncertainty:
            files |= {
                f"_{name}.png": prediction_files.gray_png(values) for name, values in prediction.uncertainty.items()
            }
        confusion, faults = None, ()
        if source in self.labels:
            try:
                label = self.scoring.read(source, self.labels[source], image.shape[:2])
                confusion = self.scoring.confusion(label, prediction, len(self.classes))
                files[ERRORS] = prediction_files.rgb_png(error_map(label, prediction.class_ids))
            except UserError as error:
                faults = error.faults
        for suffix, data in files.items():
            path = self.folder / f"{source.name}{suffix}"
            self.write(partial(atomic_write_bytes, path, data))
        row = self.row(source, image.shape[:2], list(files), counts, prediction.confidence.mean())
        row["milliseconds"] = prediction.milliseconds
        if confusion is not None and confusion.any():
            found = scores(confusion)
            row |= {"miou": found.miou, "global_accuracy": found.global_accuracy}
        return PredictionEntry(row, counts, confusion, faults)

    def frame(self, source: Source, number: int, class_ids: np.ndarray) -> None:
        """Write the class ids of a video frame."""
        data = prediction_files.index_png(class_ids, self.classes)
        self.write(lambda: atomic_write_bytes(self.frames_of(source) / f"{number:06}.png", data))

    def frames_of(self, source: Source) -> pathlib.Path:
        """Return the folder of a video's frames."""
        return self.folder / f"{source.name}{FRAMES}"

    @property
    def no_counts(self) -> np.ndarray:
        """Zero pixels of every class, int64 [C]."""
        return np.zeros(len(self.classes), np.int64)

    def count(self, prediction: Prediction) -> np.ndarray:
        """Count the pixels of each predicted class, int64 [C]."""
        if self.classes.multi_label:
            return count_bits(memory_budget.count_values(prediction.class_ids, 256), len(self.classes))
        return memory_budget.count_values(prediction.class_ids, len(self.classes))

    def row(
        self,
        source: Source,
        size: tuple[int, int],
        suffixes: Sequence[str],
        counts: np.ndarray,
        confidence: float,
        num_frames: int = 1,
    ) -> dict[str, Any]:
        """Return an input's row of the summary; `confidence` is its mean, 0..255."""
        fractions = zip(self.classes.names, (counts / (size[0] * size[1] * num_frames)).tolist(), strict=True)
        return {
            "input": source.display_name,
            "kind": source.kind,
            "height": size[0],
            "width": size[1],
            "outputs": [shown(str(self.folder / f"{source.name}{suffix}")) for suffix in suffixes],
            "class_fractions": dict(fractions),
            "mean_confidence": float(confidence) / 255,
        }


def print_totals(
    entries: Sequence[PredictionEntry], out: pathlib.Path, seconds: float, classes: ClassTable
) -> dict[str, Any]:
    """Print class fractions and scores over all inputs, and return them for the summary."""
    echo(f"segmented {len(entries)} inputs in {seconds:.1f} s: {out}")
    if not entries:
        return {}
    counts, rows = sum(entry.counts for entry in entries), [entry.row for entry in entries]
    fractions = counts / sum(each["height"] * each["width"] * each.get("num_frames", 1) for each in rows)
    order = np.argsort(-fractions, kind="stable")
    echo(f"pixels: {', '.join(f'{classes.names[i]} {percent(fractions[i])}' for i in order if counts[i])}")
    totals = {"class_fractions": dict(zip(classes.names, fractions.tolist(), strict=True))}
    confusions = [entry.confusion for entry in entries if entry.confusion is not None]
    if not np.any(confusions):
        return totals
    confusion = sum(confusions)
    print_table(scores(confusion), classes)
    echo(f"scored on the {len(confusions)} images that have a label")
    return totals | {"num_scored": len(confusions), "miou": scores(confusion).miou, "confusion": confusion}


def output_suffixes(
    source: Source,
    *,
    confidence: bool,
    frames: bool,
    errors: bool,
    uncertainty: bool = False,
    masks: Sequence[str] = (),
) -> list[str]:
    """Return the suffixes that the output files of a source may have; `masks` replace that of the class ids."""
    if source.kind == "video":
        return [VIDEO, *[FRAMES] * frames]
    maps = [f"_{name}.png" for name in UNCERTAINTIES] if uncertainty else []
    return [
        *(masks or [INDEX]),
        f"{OVERLAY}.jpg",
        f"{OVERLAY}.png",
        *[CONFIDENCE] * confidence,
        *[ERRORS] * errors,
        *maps,
    ]


def check_free(files: Iterable[pathlib.Path]) -> None:
    """Check that no output file exists, so that neither inputs nor earlier outputs are overwritten.

    Raises:
      UserError: If a file exists.
    """
    if existing := [str(path) for path in files if os.path.lexists(path)]:
        raise UserError(f"existing files are not overwritten: {listed(existing)}; choose another --out")
