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

_MAX_PIXELS = 360 * 480  # of a suggested size: CamVid's, which the benchmarks use too
_CPU_PIXELS = 120 * 160  # of a suggested size without a GPU or TPU, to train in minutes
_MIN_SIDE = 32  # for five poolings
_STEP = 8  # suggested heights and widths are multiples of this
_MAX_RATIO = 256  # of the sides of a suggested size; more elongated images are letterboxed
_SAME_SHAPE = 0.02  # relative difference of aspect ratios that counts as equal
_UNEVEN = 1.7  # class weights are suggested if the ratio of the largest to the smallest exceeds this


@dataclass(frozen=True)
class DatasetReport:
    """The result of `check_dataset`.

    Attributes:
      dataset: the opened dataset; None if opening failed.
      counts: pixel counts of each split's labels, at the size on disk.
      faults: problems that prevent training.
      warnings: problems that do not prevent training.
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
      fit: how images are resized to that size.
      class_weights: rule of the class weights.
      batch_size_per_device: batch size for one device.
      weights: class weights of the rule auto-sqrt, float32 [C].
    """

    image_size: tuple[int, int]
    fit: Fit
    class_weights: str
    batch_size_per_device: int
    weights: np.ndarray

    def flags(self) -> list[str]:
        """Return the flags for these settings; fit and batch size are omitted if they are the defaults."""
        height, width = map(str, self.image_size)
        flags = ["--image-size", height, width, "--class-weights", self.class_weights]
        flags += ["--fit", self.fit] if self.fit != Config.fit else []
        batch = self.batch_size_per_device
        return flags + (["--batch-size-per-device", str(batch)] if batch != Config.batch_size_per_device else [])


def check_dataset(open_data: Callable[[], Dataset]) -> DatasetReport:
    """Open a dataset with `open_data` and read every sample; a UserError is reported as faults."""
    dataset, counts = None, {}
    try:
        dataset = open_data()
        for name, split in dataset.splits.items():
            with bar(f"reading {name}", len(split)) as advance:
                classes, read = dataset.classes, functools.partial(_label, split)
                counts[name] = count_labels(read, len(split), len(classes), advance, classes.multi_label)
    except UserError as error:
        unknown = Fault("cannot-read", "", "the dataset cannot be read", "check its files, or report this as a bug")
        return DatasetReport(dataset, {}, error.faults or (unknown,))
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
            warnings.append(f"only {split} labels contain {listed(untrained)}, which therefore cannot be learned")
        if absent := [name for name in classes.names if name not in present]:
            warnings.append(f"no {split} pixel of {listed(absent)}, which the scores report as absent")
    if classes.multi_label:
        split, first = next(iter(counts.items()))
        if not faults and not first.pixels.any():
            message = f"no {split} label has a pixel of any class, so nothing can be learned"
            faults.append(Fault("no-usable-label", "", message, "label them, or check how their values are read"))
        return faults, warnings
    if occurring == {classes.names[0]} and len(classes) > 1 and total.pixels.sum() < total.total:
        message = (
            f"the labels have only void and {classes.names[0]}, so no other class can be learned: are they masks of 0 "
            "and 255?"
        )
        faults.append(Fault("mask-0-255", "", message, "check how the values of the labels are read"))
    elif occurring and classes.names[0] not in occurring:
        last = len(classes) - 1
        warnings.append(
            f"no label contains the id 0, {classes.names[0]}: do the ids start at 1? They must be 0..{last}"
        )
    return faults, warnings


def suggest(dataset: Dataset, counts: Mapping[str, LabelCounts], has_accelerator: bool = True) -> Suggestion:
    """Suggest settings for a dataset without faults, with smaller images if it is trained on a CPU."""
    size, fit = suggested_size(dataset.sizes or {dataset.splits["train"].read(0)[1].shape: 1}, has_accelerator)
    train = counts["train"]
    weights = sqrt_frequency_weights(train.pixels, train.image_pixels)
    seen = weights[weights > 0]
    uneven = seen.size > 0 and seen.max() / seen.min() > _UNEVEN
    batch = min(Config.batch_size_per_device, len(dataset.splits["train"]))
    return Suggestion(size, fit, "auto-sqrt" if uneven else "none", batch, weights)


def suggested_size(sizes: Mapping[tuple[int, int], int], has_accelerator: bool = True) -> tuple[tuple[int, int], Fit]:
    """Suggest a height and width for images of several sizes, and how to resize the images to it.

    If all images have one size that is not large, it is kept. Otherwise the suggestion has the most frequent aspect
    ratio and at most about as many pixels as 360x480, or as 120x160 without an accelerator. `sizes` maps (height,
    width) to the number of images.
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
    """Return a report as JSON for `--json`; see `suggest` for `has_accelerator`."""
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
    """Warn about absent classes and entirely void labels, after resizing to the network's image size.

    Args:
      classes: class table of the dataset.
      **splits: splits by name; the first is the training split.

    Raises:
      UserError: If a split has no labeled pixel, or the labels seem to be masks of 0 and 255.
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
