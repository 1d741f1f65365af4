"""How the files of a folder are to be taken, where its owner says more than the folder does."""

from dataclasses import dataclass
from typing import Literal

from segnet_jax.constants import Exif


@dataclass(frozen=True)
class Reading:
    """The wishes of a folder's owner; each has a flag of its name.

    Attributes:
      images: glob that images must match to be taken; empty for all.
      map: (value in label files, value that it stands for), for values that were written wrongly.
      labels_start_at: value in label files of the first class; smaller ones are void.
      unknown_colour: whether colours in label files that mean no class are an error, or void.
      exif: what becomes of images that carry a rotation.
      resize_labels: whether a label of another size than its image is brought to it.
      val_fraction: share of the training and validation images to be dealt anew to validation; 0 leaves them as they are.
    """

    images: str = ""
    map: tuple[tuple[int, int], ...] = ()
    labels_start_at: int = 0
    unknown_colour: Literal["error", "ignore"] = "error"
    exif: Exif = "refuse"
    resize_labels: Literal["off", "nearest"] = "off"
    val_fraction: float = 0.0


PLAIN = Reading()
"""No wishes."""
