"""Check a dataset before training: faults, warnings, pixel counts, and suggested settings."""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.data.images.fit import Fit
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.input_pipeline.class_counts import LabelCounts, count_labels
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.system.console import bar
from segnet_jax.system.errors import Fault, UserError, listed
from segnet_jax.training.class_weights import sqrt_frequency_weights

logger = logging.getLogger(__name__)

_MAX_PIXELS = 360 * 480  # of a suggested size: CamVid's, at which this project's speed is measured
_CPU_PIXELS = 120 * 160  # of a suggested size without a GPU or TPU: a CPU trains on it in minutes
_MIN_SIDE = 32  # for five poolings
_STEP = 8  # suggested heights and widths are multiples of it
_MAX_RATIO = 256  # of the sides of a suggested size; more elongated images are letterboxed
_SAME_SHAPE = 0.02  # relative difference of aspect ratios that counts as equal
_UNEVEN = 1.7  # ratio of the largest to the smallest class weight from which on weighting is suggested


@dataclass(frozen=True)
class DatasetReport:
    """The result of `check_dataset`.

    Attributes:
      dataset: None if it could not be opened.
      counts: pixel counts of each split's labels, at the size on disk.
      faults: problems that prevent training.
      warnings: problems that do not.
    """

    dataset: Dataset | None
    counts: Mapping[str, LabelCounts]
    faults: tuple[Fault, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suggestion:
    """Suggested settings for a dataset.

    Attributes:
      image_size: height and width.
      fit: how images are brought to that size.
      class_weights: rule of the class weights.
      batch_size_per_device: batch size for one device.
      weights: float32 [C], by the rule auto-sqrt.
    """

    image_size: tuple[int, int]
    fit: Fit
    class_weights: str
    batch_size_per_device: int
    weights: np.ndarray

    def flags(self) -> list[str]:
        """Return the flags for these settings, without fit and batch size if they are the defaults."""
        height, width = map(str, self.image_size)
        flags = ["--image-size", height, width, "--class-weights", self.class_weights]
        flags += ["--fit", self.fit] if self.fit != Config.fit else []
        batch = self.batch_size_per_device
        return flags + (["--batch-size-per-device", str(batch)] if batch != Config.batch_size_per_device else [])


def check_dataset(open_data: Callable[[], Dataset]) -> DatasetReport:
    """Open a dataset and read every sample.

    Args:
      open_data: function that opens the dataset, or raises UserError with its faults.
    """
    dataset, counts = None, {}
    try:
        dataset = open_data()
        for name, split in dataset.splits.items():
            with bar(f"reading {name}", len(split)) as advance:
                classes, read = dataset.classes, functools.partial(_label, split)
                counts[name] = count_labels(read, len(split), len(classes), advance, classes.multi_label)
    except UserError as error:
        return DatasetReport(dataset, {}, error.faults)
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    faults, warnings = check_counts(dataset.classes, counts, sizes)
    return DatasetReport(dataset, counts, (*dataset.doubts, *faults), tuple(warnings))


def _label(samples: Split | CachedSplit, index: int) -> np.ndarray:
    return samples.read(index)[1]


def check_counts(
    classes: ClassTable, counts: Mapping[str, LabelCounts], num_labels: Mapping[str, int]
) -> tuple[list[Fault], list[str]]:
    """Find labels without labeled pixels, and classes that are absent or occur only outside the training split.

    Args:
      classes: class table of the dataset.
      counts: split -> its label counts; the first is the training split.
      num_labels: split -> number of its labels.

    Returns:
      Faults, and warnings of one line each.
    """
    faults, warnings = [], []
    trained, occurring = None, set()
    total = sum(counts.values(), start=LabelCounts.zero(len(classes)))
    for split, split_counts in counts.items():
        if split_counts.num_void == num_labels[split]:
            message = f"all {num_labels[split]} {split} labels are entirely void: no pixel can be used"
            faults.append(Fault("no-usable-label", "", message, "label them, or check how their values are read"))
            continue
        if split_counts.num_void:
            warnings.append(f"{split_counts.num_void} of {num_labels[split]} {split} labels are entirely void")
        present = {name for name, pixels in zip(classes.names, split_counts.pixels, strict=True) if pixels}
        trained, occurring = trained or present, occurring | present
        if untrained := [name for name in classes.names if name in present - trained]:
            warnings.append(f"{listed(untrained)} only in {split}: no training pixel, so it cannot be learned")
        if absent := [name for name in classes.names if name not in present]:
            warnings.append(f"no {split} pixel of {listed(absent)}; in its scores it is reported as absent")
    if classes.multi_label:
        return faults, warnings
    if occurring == {classes.names[0]} and len(classes) > 1 and total.pixels.sum() < total.total:
        message = (
            f"the labels have only void and {classes.names[0]}, so no other class can be learned: are they masks of 0 "
            "and 255?"
        )
        faults.append(Fault("mask-0-255", "", message, "check how the values of the labels are read"))
    elif occurring and classes.names[0] not in occurring:
        last = len(classes) - 1
        warnings.append(f"no label has the id 0, {classes.names[0]}: do they start at 1? Class ids are 0..{last}")
    return faults, warnings


def suggest(dataset: Dataset, counts: Mapping[str, LabelCounts], has_accelerator: bool = True) -> Suggestion:
    """Suggest settings for a dataset without faults.

    Args:
      dataset: dataset with a split "train".
      counts: pixel counts of its labels.
      has_accelerator: whether it is to be trained on a GPU or TPU; a CPU gets smaller images.
    """
    size, fit = suggested_size(dataset.sizes or {dataset.splits["train"].read(0)[1].shape: 1}, has_accelerator)
    train = counts["train"]
    weights = sqrt_frequency_weights(train.pixels, train.image_pixels)
    seen = weights[weights > 0]
    uneven = seen.size > 0 and seen.max() / seen.min() > _UNEVEN
    batch = min(Config.batch_size_per_device, len(dataset.splits["train"]))
    return Suggestion(size, fit, "auto-sqrt" if uneven else "none", batch, weights)


def suggested_size(sizes: Mapping[tuple[int, int], int], has_accelerator: bool = True) -> tuple[tuple[int, int], Fit]:
    """Suggest a height and width for images of these sizes, and how to bring them to it.

    Images of a single size that is not large keep it; otherwise the most frequent aspect ratio is used, with about as
    many pixels as 360x480.

    Args:
      sizes: (height, width) -> number of images.
      has_accelerator: see `suggest`.
    """
    max_pixels = _MAX_PIXELS if has_accelerator else _CPU_PIXELS
    if len(sizes) == 1 and math.prod(size := next(iter(sizes))) <= max_pixels and min(size) >= _MIN_SIDE:
        return size, "stretch"
    shapes: dict[float, int] = {}
    for (height, width), images in sizes.items():
        ratio = height / width
        shape = next((other for other in shapes if abs(other / ratio - 1) < _SAME_SHAPE), ratio)
        shapes[shape] = shapes.get(shape, 0) + images
    frequent = max(shapes, key=lambda shape: shapes[shape])
    ratio = min(max(frequent, 1 / _MAX_RATIO), _MAX_RATIO)
    pixels = min(max_pixels, max(map(math.prod, sizes)))
    height, width = math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)
    scale = max(1.0, _MIN_SIDE / min(height, width))
    size = tuple(_STEP * round(scale * side / _STEP) for side in (height, width))
    return size, "stretch" if len(shapes) == 1 and ratio == frequent else "letterbox"


def as_json(report: DatasetReport, has_accelerator: bool = True) -> dict[str, Any]:
    """Return a report as JSON, for `--json`; `has_accelerator` as for `suggest`."""
    dataset, counts = report.dataset, report.counts
    values: dict[str, Any] = {
        "sound": not report.faults,
        "faults": [vars(fault) for fault in report.faults],
        "warnings": list(report.warnings),
    }
    if dataset is None:
        return values
    values |= {
        "name": dataset.name,
        "notes": list(dataset.notes),
        "splits": {name: len(split) for name, split in dataset.splits.items()},
        "sizes": [{"height": h, "width": w, "images": number} for (h, w), number in dataset.sizes.items()],
    }
    if report.faults:
        return values
    suggestion = suggest(dataset, counts, has_accelerator)
    rows = zip(dataset.classes.names, dataset.classes.colors, suggestion.weights, strict=True)
    values["classes"] = [
        {
            "name": name,
            "color": color,
            "weight": weight,
            "pixels": {split: each.pixels[index] for split, each in counts.items()},
        }
        for index, (name, color, weight) in enumerate(rows)
    ]
    values["suggested"] = {
        "image_size": suggestion.image_size,
        "fit": suggestion.fit,
        "class_weights": suggestion.class_weights,
        "batch_size_per_device": suggestion.batch_size_per_device,
    }
    return values


def check_labels(classes: ClassTable, **splits: CachedSplit) -> None:
    """Warn of absent classes and entirely void labels, after resizing to the network's image size.

    Args:
      classes: class table of the dataset.
      **splits: splits by name; the first is the training split.

    Raises:
      UserError: If a split has no labeled pixel.
    """
    counts = {
        split: count_labels(
            functools.partial(_label, samples), len(samples), len(classes), multi_label=classes.multi_label
        )
        for split, samples in splits.items()
    }
    faults, warnings = check_counts(classes, counts, {split: len(samples) for split, samples in splits.items()})
    if faults:
        raise UserError(faults[0].what, kind=faults[0].kind, file=faults[0].file, fix=faults[0].fix)
    for warning in warnings:
        logger.warning(warning)
