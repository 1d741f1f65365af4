"""What can be said of a data set before anything is trained on it: faults, warnings, counts, and what would suit it."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.data.dataset import Dataset
from segnet_jax.data.images.fit import Fit
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.input_pipeline.class_counts import LabelCounts, count_labels
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.system.console import bar
from segnet_jax.system.errors import Fault, UserError, listed
from segnet_jax.training.class_weights import present_frequency_weights

logger = logging.getLogger(__name__)

_PIXELS = 360 * 480  # of an image that trains at the speed this project is measured at
_CPU_PIXELS = 120 * 160  # of an image that a CPU trains on in minutes
_SMALLEST = 32  # that five poolings need
_STEP = 8  # that a suggested height and width are multiples of
_MOST_RATIO = 256  # of the sides of a suggested size: a longer picture gets bars
_SAME_SHAPE = 0.02  # by which two ratios of height and width may differ
_UNEVEN = 3.0  # ratio of the largest to the smallest weight from which on weighting is worth it


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
      dataset: None where it could not be opened.
      counts: of each split's labels, at the size on disk.
      faults: what keeps it from being trained on.
      warnings: what does not, and should be known.
    """

    dataset: Dataset | None
    counts: Mapping[str, LabelCounts]
    faults: tuple[Fault, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suggestion:
    """What would suit a data set.

    Attributes:
      image_size: height and width.
      fit: how images come to it.
      class_weights: the rule.
      batch_size_per_device: on one device.
      weights: float32 [C], by the rule auto-present.
    """

    image_size: tuple[int, int]
    fit: Fit
    class_weights: str
    batch_size_per_device: int
    weights: np.ndarray

    def flags(self) -> list[str]:
        """The flags that say so, where they differ from what a training does by itself."""
        height, width = map(str, self.image_size)
        found = ["--image-size", height, width, "--class-weights", self.class_weights]
        found += ["--fit", self.fit] if self.fit != Config.fit else []
        batch = self.batch_size_per_device
        return found + (["--batch-size-per-device", str(batch)] if batch != Config.batch_size_per_device else [])


def examine(open_data: Callable[[], Dataset]) -> Examination:
    """Opens a data set and reads every record of it.

    Args:
      open_data: opens it, or raises UserError with what is wrong.
    """
    dataset, counts = None, {}
    try:
        dataset = open_data()
        for name, split in dataset.splits.items():
            with bar(f"looking at {name}", len(split)) as advance:
                counts[name] = count_labels(
                    lambda index, split=split: split.read(index)[1], len(split), len(dataset.classes), advance
                )
    except UserError as error:
        return Examination(dataset, {}, error.faults)
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    faults, warnings = look_at_counts(dataset.classes, counts, sizes)
    return Examination(dataset, counts, (*dataset.doubts, *faults), tuple(warnings))


def look_at_counts(
    classes: ClassTable, counts: Mapping[str, LabelCounts], num_labels: Mapping[str, int]
) -> tuple[list[Fault], list[str]]:
    """What the pixels of each class say: labels that hold nothing, classes that are nowhere or in one split alone.

    Args:
      classes: the data set's.
      counts: split -> of its labels; the first is what is trained on.
      num_labels: split -> how many it has.

    Returns:
      Faults, and warnings, each a line.
    """
    faults, warnings = [], []
    trained, found = None, set()
    total = sum(counts.values(), start=LabelCounts.zero(len(classes)))
    for split, of_split in counts.items():
        if of_split.num_void == num_labels[split]:
            what = f"none of the {num_labels[split]} {split} labels holds a usable pixel: all are void"
            faults.append(Fault("no-usable-label", "", what, "label them, or see what their values mean"))
            continue
        if of_split.num_void:
            warnings.append(
                f"{of_split.num_void} of {num_labels[split]} {split} labels hold no usable pixel, only void"
            )
        present = {name for name, pixels in zip(classes.names, of_split.pixels, strict=True) if pixels}
        trained, found = trained or present, found | present
        if untrained := [name for name in classes.names if name in present - trained]:
            warnings.append(f"{listed(untrained)} in {split} alone: no training pixel, so it cannot be learned")
        if absent := [name for name in classes.names if name not in present]:
            warnings.append(f"no {split} pixel of {listed(absent)}; where it is scored, it is reported as absent")
    if found == {classes.names[0]} and len(classes) > 1 and total.pixels.sum() < total.total:
        what = f"the labels hold only void and {classes.names[0]}: no other class would be learned; masks of 0 and 255?"
        faults.append(Fault("mask-0-255", "", what, "see what the values of the labels mean"))
    elif found and classes.names[0] not in found:
        last = len(classes) - 1
        warnings.append(f"no label holds the id 0, {classes.names[0]}: do they start at 1? Class ids are 0..{last}")
    return faults, warnings


def suggest(dataset: Dataset, counts: Mapping[str, LabelCounts], has_accelerator: bool = True) -> Suggestion:
    """What would suit a sound data set.

    Args:
      dataset: with a split "train".
      counts: of its labels.
      has_accelerator: whether it is to be trained on a GPU or TPU; a CPU gets smaller images.
    """
    size, fit = suggested_size(dataset.sizes or {dataset.splits["train"].read(0)[1].shape: 1}, has_accelerator)
    train = counts["train"]
    weights = present_frequency_weights(train.pixels, train.image_pixels)
    seen = weights[weights > 0]
    uneven = seen.size > 0 and seen.max() / seen.min() > _UNEVEN
    batch = min(Config.batch_size_per_device, len(dataset.splits["train"]))
    return Suggestion(size, fit, "auto-present" if uneven else "none", batch, weights)


def suggested_size(sizes: Mapping[tuple[int, int], int], has_accelerator: bool = True) -> tuple[tuple[int, int], Fit]:
    """A height and width for images of these sizes, and how to bring them to it.

    Images of one size that is not large keep it; else the most frequent shape is taken, at about 360x480 pixels.

    Args:
      sizes: (height, width) -> images that have it.
      has_accelerator: as for `suggest`.
    """
    most = _PIXELS if has_accelerator else _CPU_PIXELS
    if len(sizes) == 1 and math.prod(size := next(iter(sizes))) <= most and min(size) >= _SMALLEST:
        return size, "stretch"
    shapes: dict[float, int] = {}
    for (height, width), images in sizes.items():
        ratio = height / width
        near = next((other for other in shapes if abs(other / ratio - 1) < _SAME_SHAPE), ratio)
        shapes[near] = shapes.get(near, 0) + images
    frequent = max(shapes, key=lambda shape: shapes[shape])
    ratio = min(max(frequent, 1 / _MOST_RATIO), _MOST_RATIO)
    pixels = min(most, max(map(math.prod, sizes)))
    height, width = math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)
    larger = max(1.0, _SMALLEST / min(height, width))
    size = tuple(_STEP * round(larger * side / _STEP) for side in (height, width))
    return size, "stretch" if len(shapes) == 1 and ratio == frequent else "letterbox"


def as_json(examination: Examination) -> dict[str, Any]:
    """All that was found, for `--json`."""
    dataset, counts = examination.dataset, examination.counts
    told: dict[str, Any] = {
        "sound": not examination.faults,
        "faults": [vars(fault) for fault in examination.faults],
        "warnings": list(examination.warnings),
    }
    if dataset is None:
        return told
    told |= {
        "name": dataset.name,
        "notes": list(dataset.notes),
        "splits": {name: len(split) for name, split in dataset.splits.items()},
        "sizes": [{"height": h, "width": w, "images": number} for (h, w), number in dataset.sizes.items()],
    }
    if examination.faults:
        return told
    suggestion = suggest(dataset, counts)
    rows = zip(dataset.classes.names, dataset.classes.colors, suggestion.weights, strict=True)
    told["classes"] = [
        {
            "name": name,
            "color": color,
            "weight": weight,
            "pixels": {split: each.pixels[place] for split, each in counts.items()},
        }
        for place, (name, color, weight) in enumerate(rows)
    ]
    told["suggested"] = {
        "image_size": suggestion.image_size,
        "fit": suggestion.fit,
        "class_weights": suggestion.class_weights,
        "batch_size_per_device": suggestion.batch_size_per_device,
    }
    return told


def warn_of_labels(classes: ClassTable, **splits: CachedSplit) -> None:
    """Says which classes the labels, as the network gets them, lack, and how many labels hold nothing but void.

    Args:
      classes: the data set's.
      **splits: by name; the first is what is trained on.

    Raises:
      UserError: if a split has no labelled pixel at all.
    """
    counts = {
        split: count_labels(lambda index, samples=samples: samples.read(index)[1], len(samples), len(classes))
        for split, samples in splits.items()
    }
    faults, warnings = look_at_counts(classes, counts, {split: len(samples) for split, samples in splits.items()})
    if faults:
        raise UserError(faults[0].what, kind=faults[0].kind, file=faults[0].file, fix=faults[0].fix)
    for warning in warnings:
        logger.warning(warning)
