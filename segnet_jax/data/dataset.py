"""What every reader returns: splits of (image, label, name), and all faults of a data set at once."""

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.data.labels.label_mapping import LabelRule
from segnet_jax.system.errors import Fault, UserError, UserErrors


@dataclass(frozen=True)
class Split:
    """The records of one split in a fixed order, decoded when read.

    Attributes:
      names: one name a record, unique, without folder and extension.
      read: index -> (image uint8 [H,W,3] RGB, label uint8 [H,W] of class ids or VOID), at the size on disk.
      fingerprint: hex sha256 of what the records are made from; equal fingerprints mean equal records.
      files: name -> checksum of each file that they are made from, to name the one that has changed; may be empty.
    """

    names: tuple[str, ...]
    read: Callable[[int], tuple[np.ndarray, np.ndarray]]
    fingerprint: str
    files: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Dataset:
    """A data set ready to be read.

    Attributes:
      name: what it is, for the log and `result.json`, such as "camvid-tutorial".
      classes: its class table.
      splits: "train", and "val" or "test" where the data set has them.
      notes: what its user should know of it although it is no fault; each a line.
      sizes: (height, width) of images -> how many have it; empty where it is not known or one for all.
      label_rule: the label mapping that its label files are read by; None where it does not come from a folder.
      doubts: what speaks against the labels being read right, such as more void than classes; a training is refused.
    """

    name: str
    classes: ClassTable
    splits: Mapping[str, Split]
    notes: tuple[str, ...] = ()
    sizes: Mapping[tuple[int, int], int] = field(default_factory=dict)
    label_rule: LabelRule | None = None
    doubts: tuple[Fault, ...] = ()


def told_together(dataset: Dataset, where: object) -> Dataset:
    """The same data set, but where one record cannot be read, all are looked at and the error tells all faults.

    Whoever reads, in whatever order and from however many threads, thus gets the same error.

    Args:
      dataset: its records raise UserError where they are at fault.
      where: the folder or archive that messages name.
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
    """What is wrong with the records of splits, after reading all of them."""
    reads = [functools.partial(split.read, index) for split in splits for index in range(len(split))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [fault for faults in pool.map(_faults, reads) for fault in faults]


def _faults(read: Callable[[], object]) -> tuple[Fault, ...]:
    try:
        read()
    except UserError as error:
        return error.faults
    return ()


def evenly_spaced(wanted: int, num_samples: int) -> list[int]:
    """Return at most `wanted` indices of `num_samples` samples, evenly spaced from the first to the last."""
    return sorted({round(index) for index in np.linspace(0, num_samples - 1, min(wanted, num_samples))})
