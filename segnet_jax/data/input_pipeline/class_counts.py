"""Pixel counts per class of a split, cached by the split's fingerprint."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from operator import add

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.dataset import Split
from segnet_jax.nn.label_bits import count_bits
from segnet_jax.system import memory_budget
from segnet_jax.system.files import atomic_write_json


@dataclass(frozen=True)
class LabelCounts:
    """Pixel counts of a split's labels.

    Attributes:
      pixels: int64 [C], pixels of each class.
      image_pixels: int64 [C], all pixels, void included, of the images that contain the class.
      total: all pixels, void included.
      num_void: labels that are entirely void.
    """

    pixels: np.ndarray
    image_pixels: np.ndarray
    total: int
    num_void: int

    def __add__(self, other: "LabelCounts") -> "LabelCounts":
        return LabelCounts(*map(add, astuple(self), astuple(other)))

    @classmethod
    def zero(cls, num_classes: int) -> "LabelCounts":
        """Return counts of zero labels."""
        nothing = np.zeros(num_classes, np.int64)
        return cls(nothing, nothing, 0, 0)


def count_labels(
    labels: Callable[[int], np.ndarray],
    num_labels: int,
    num_classes: int,
    on_label: Callable[[], None] = lambda: None,
    multi_label: bool = False,
) -> LabelCounts:
    """Count the pixels of each class in one pass.

    Args:
      labels: function from an index to a label, uint8 [H,W] of class ids and VOID.
      num_labels: number of labels.
      num_classes: number of classes.
      on_label: called after each label.
      multi_label: whether a pixel may have several classes, see `nn.label_bits`; it counts for each of them.
    """

    def count(index: int) -> LabelCounts:
        with memory_budget.pictures.scope():
            return count_one(labels(index))

    def count_one(label: np.ndarray) -> LabelCounts:
        values = memory_budget.count_values(label, 256)
        pixels, is_void = values[:num_classes], not values[:num_classes].any()
        if multi_label:
            pixels, is_void = count_bits(values, num_classes), values[VOID] == label.size
        return LabelCounts(pixels, np.where(pixels > 0, label.size, 0), label.size, int(is_void))

    counts = LabelCounts.zero(num_classes)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for one in pool.map(count, range(num_labels)):
            counts += one
            on_label()
    return counts


def count_split(
    split: Split,
    num_classes: int,
    cache: pathlib.Path,
    on_label: Callable[[], None] = lambda: None,
    multi_label: bool = False,
) -> LabelCounts:
    """Count a split's labels at the size on disk, or load cached counts.

    Invalid cached counts are recomputed, and failures to write them are ignored, as counting takes only seconds.
    `on_label` is called after each counted label.
    """
    kept = cache / f"label_counts-{split.fingerprint}-{num_classes}.json"
    if (counts := _read(kept, num_classes)) is not None:
        return counts
    counts = count_labels(lambda index: split.read(index)[1], len(split), num_classes, on_label, multi_label)
    with contextlib.suppress(OSError):  # the cache is full or read-only
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(kept, vars(counts))
    return counts


def _read(path: pathlib.Path, num_classes: int) -> LabelCounts | None:
    """Load counts, or return None if the file is absent or invalid."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        pixels, image_pixels = (np.array(stored[name], np.int64) for name in ("pixels", "image_pixels"))
        counts = LabelCounts(pixels, image_pixels, int(stored["total"]), int(stored["num_void"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):  # absent or invalid
        return None
    return counts if pixels.shape == image_pixels.shape == (num_classes,) else None
