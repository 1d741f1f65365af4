"""Datasets and their splits, as every reader returns them."""

import dataclasses
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from segnet_jax.constants import RGB, Pixels
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.data.labels.label_mapping import LabelRule
from segnet_jax.system.errors import Fault, UserError, UserErrors


@dataclass(frozen=True)
class Split:
    """Samples of one split in a fixed order, decoded when read.

    Attributes:
      names: one unique name per sample, without folder and extension.
      read: function from a sample's index to its image, uint8 [H,W,3] RGB or as in `pixels`, and label, uint8 [H,W] of
        class ids and VOID, at the size on disk.
      fingerprint: hex sha256 of the samples' sources; equal fingerprints mean equal samples.
      files: name of each source file -> checksum; may be empty.
      pixels: format of the images' pixels.
    """

    names: tuple[str, ...]
    read: Callable[[int], tuple[np.ndarray, np.ndarray]]
    fingerprint: str
    files: Mapping[str, str] = field(default_factory=dict)
    pixels: Pixels = RGB

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Dataset:
    """A dataset, opened but not decoded.

    Attributes:
      name: name in the log and `result.json`, such as "camvid-tutorial".
      classes: class table.
      splits: "train", and "val" or "test" if present.
      notes: lines for the log.
      sizes: image (height, width) -> number of images; empty if unknown or rendered.
      label_rule: how label files are read; None if the dataset is not a folder of files.
      doubts: signs that the labels are misread, such as mostly void pixels; training refuses a dataset with any.
    """

    name: str
    classes: ClassTable
    splits: Mapping[str, Split]
    notes: tuple[str, ...] = ()
    sizes: Mapping[tuple[int, int], int] = field(default_factory=dict)
    label_rule: LabelRule | None = None
    doubts: tuple[Fault, ...] = ()


def report_all_faults(dataset: Dataset, where: object) -> Dataset:
    """Wrap the readers so that reading a faulty sample raises an error with the faults of all samples.

    The error names `where` and does not depend on the reading order or the number of threads.
    """
    lock = threading.Lock()
    found: list[UserErrors] = []

    def read(split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            return split.read(index)
        except UserError as error:
            with lock:
                if not found:
                    found.append(UserErrors(where, [*faults_of(dataset.splits.values()), *error.faults]))
            raise found[0] from None

    splits = {
        name: dataclasses.replace(split, read=functools.partial(read, split)) for name, split in dataset.splits.items()
    }
    return dataclasses.replace(dataset, splits=splits)


def faults_of(splits: Iterable[Split]) -> list[Fault]:
    """Read all samples of the splits and return their faults."""
    reads = [functools.partial(split.read, index) for split in splits for index in range(len(split))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [fault for faults in pool.map(_faults, reads) for fault in faults]


def _faults(read: Callable[[], object]) -> tuple[Fault, ...]:
    try:
        read()
    except UserError as error:
        return error.faults
    return ()


def regroup(
    dataset: Dataset,
    name: str,
    parts: Mapping[str, Sequence[tuple[Split, int]]],
    sources: Sequence[Split],
    notes: Sequence[str] = (),
) -> Dataset:
    """Return a dataset whose samples are regrouped into new splits.

    Args:
      dataset: dataset to regroup.
      name: name of the new dataset.
      parts: new split -> its samples, as pairs of an old split and an index.
      sources: old splits that the samples come from; the new dataset has the other splits unchanged.
      notes: lines for the log, appended to those of `dataset`.
    """
    source = ",".join(split.fingerprint for split in sources)
    files = {name: digest for split in sources for name, digest in split.files.items()}
    splits = {}
    for each, places in parts.items():
        names = tuple(split.names[index] for split, index in places)
        digest = hashlib.sha256("\n".join((source, *names)).encode()).hexdigest()
        splits[each] = Split(names, functools.partial(_read_place, places), digest, files)
    others = {each: split for each, split in dataset.splits.items() if all(split is not other for other in sources)}
    return dataclasses.replace(dataset, name=name, splits=splits | others, notes=(*dataset.notes, *notes))


def _read_place(places: Sequence[tuple[Split, int]], index: int) -> tuple[np.ndarray, np.ndarray]:
    split, place = places[index]
    return split.read(place)


def evenly_spaced(wanted: int, num_samples: int) -> list[int]:
    """Return at most `wanted` indices of `num_samples` samples, evenly spaced from the first to the last."""
    return sorted({round(index) for index in np.linspace(0, num_samples - 1, min(wanted, num_samples))})
