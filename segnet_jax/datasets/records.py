"""What every reader gives: splits of (image, label, name) records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from segnet_jax.datasets.labels import ClassTable
from segnet_jax.datasets.legend import LabelRule
from segnet_jax.errors import Fault


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
class DataSet:
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
