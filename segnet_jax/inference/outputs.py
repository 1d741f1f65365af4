"""What `predict` leaves of each input: pictures beside each other in one folder, and a row of its summary."""

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.images.picture_header import check_sizes
from segnet_jax.data.label_files.decode_labels import read_label
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.inference.predictor import Prediction
from segnet_jax.inference.sampling import MEASURES
from segnet_jax.inference.sources import Source
from segnet_jax.metrics.confusion import count_confusion, scores
from segnet_jax.reporting import overlay
from segnet_jax.reporting.figures import error_map
from segnet_jax.system.errors import Fault, UserError, listed, shown
from segnet_jax.system.files import atomic_write_bytes

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
      classes: names and colours.
      write: carries out a write, and tells of a full disk.
      key: whether overlays have a key of the classes beneath.
      confidence: whether a picture of the confidence is written too.
      uncertainty: whether pictures of each measure of uncertainty are, of samples.
      frames: whether a video's frames are written one by one too, as class ids.
      labels: of the sources that have one, its file.
      void: the id that stands for void in them.
    """

    folder: pathlib.Path
    classes: ClassTable
    write: Callable[[Callable[[], T]], T]
    key: bool = True
    confidence: bool = False
    uncertainty: bool = False
    frames: bool = False
    labels: Mapping[Source, pathlib.Path] = field(default_factory=dict)
    void: int = VOID

    def image(self, source: Source, image: np.ndarray, prediction: Prediction) -> Entry:
        """Writes what was asked for of an image, uint8 [H,W,3]; safe to be called from several threads."""
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
                label = self._label(source, image.shape[:2])
                confusion = count_confusion(label, prediction.class_ids, len(self.classes))
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

    def _label(self, source: Source, size: tuple[int, int]) -> np.ndarray:
        path = self.labels[source]
        label = read_label(path, str(path), len(self.classes), void=self.void)
        check_sizes(size[::-1], label.shape[::-1], source.told, str(path))
        return label


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


def find_labels(sources: Sequence[Source], folder: str, say: Callable[[str], None]) -> dict[Source, pathlib.Path]:
    """The label of each image that has one in a folder: a.png, a_L.png or a_P.png for a.jpg.

    Raises:
      UserError: there is no such folder, or no image has a label.
    """
    place = pathlib.Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"no folder {folder} for --labels", kind="no-folder", file=folder)
    images = [source for source in sources if source.kind == "image"]
    found = {}
    for source in images:
        stem = source.path.stem
        paths = [path for suffix in ("", "_L", "_P") if (path := place / f"{stem}{suffix}.png").is_file()]
        if paths:
            found[source] = paths[0]
    if without := [source.told for source in images if source not in found]:
        what = f"{len(without)} of {len(images)} images have no label in {folder}: {listed(without)}"
        if not found:
            raise UserError(
                f"{what}; looked for {pathlib.Path(without[0]).stem}.png", kind="missing-label", file=folder
            )
        say(f"warning: {what}")
    return found
