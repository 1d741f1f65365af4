"""Labels that `predict` scores its predictions against, read and scored as `evaluate` does."""

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from segnet_jax.datasets.decode import read_label_by, resize_label
from segnet_jax.datasets.fitting import fit_label
from segnet_jax.datasets.headers import check_sizes
from segnet_jax.datasets.legend import LabelRule
from segnet_jax.datasets.matching import label_of_name
from segnet_jax.datasets.reading import Exif, Reading
from segnet_jax.datasets.turning import check_stated, exif_of_pair
from segnet_jax.errors import UserError, listed
from segnet_jax.metrics.confusion import count_confusion
from segnet_jax.prediction.predictor import Prediction, Sizing
from segnet_jax.prediction.sources import Source


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


def find_labels(
    sources: Sequence[Source], folder: str, suffix: str, say: Callable[[str], None]
) -> dict[Source, pathlib.Path]:
    """Find the label of each image that has one in a folder, by the names that a dataset folder may use.

    Args:
      sources: what is predicted.
      folder: of the labels.
      suffix: that the run's labels have behind the image's name; empty to find it.
      say: prints a line.

    Raises:
      UserError: there is no such folder, no image has a label, or one has two.
    """
    place = pathlib.Path(folder).expanduser()
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
        say(f"warning: {what}")
    return found
