"""How many pixels each class has in a split, counted once and kept by the data's fingerprint."""

import json
import os
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from segnet_jax.datasets.records import Split
from segnet_jax.files import atomic_write_json


@dataclass(frozen=True)
class LabelCounts:
    """Pixels of a split's labels, at the size on disk.

    Attributes:
      pixels: int64 [C], pixels of each class.
      image_pixels: int64 [C], all pixels, void included, of the images that contain the class.
      total: all pixels, void included.
    """

    pixels: np.ndarray
    image_pixels: np.ndarray
    total: int

    def __add__(self, other: "LabelCounts") -> "LabelCounts":
        return LabelCounts(self.pixels + other.pixels, self.image_pixels + other.image_pixels, self.total + other.total)


def count_labels(
    split: Split, num_classes: int, cache: pathlib.Path | None = None, on_record: Callable[[], None] = lambda: None
) -> LabelCounts:
    """Counts the pixels of each class in one pass over a split.

    Args:
      split: what to count.
      num_classes: C.
      cache: folder in which the counts are kept under the split's fingerprint; None keeps nothing.
      on_record: called after each record that is counted.
    """
    kept = cache / f"label_counts-{split.fingerprint}-{num_classes}.json" if cache else None
    if kept and kept.is_file():
        values = json.loads(kept.read_text())
        return LabelCounts(
            np.array(values["pixels"], np.int64), np.array(values["image_pixels"], np.int64), values["total"]
        )

    def count(index: int) -> LabelCounts:
        _, label = split.read(index)
        pixels = np.bincount(label.ravel(), minlength=256)[:num_classes].astype(np.int64)
        return LabelCounts(pixels, np.where(pixels > 0, label.size, 0), label.size)

    nothing = np.zeros(num_classes, np.int64)
    counts = LabelCounts(nothing, nothing, 0)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for one in pool.map(count, range(len(split))):
            counts += one
            on_record()
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(kept, vars(counts))
    return counts
