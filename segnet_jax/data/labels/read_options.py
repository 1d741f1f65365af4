"""Read options: how the files of a folder are read, where its owner says more than the folder does."""

from dataclasses import dataclass
from typing import Literal

from segnet_jax.constants import Exif

LabelsAs = Literal["auto", "values", "colors"]
"""What palette and grey label files store: class ids, or colors of the class table. auto: the one that fits."""


@dataclass(frozen=True)
class Reading:
    """Read options; each has a flag and a config field of its name.

    Attributes:
      images: glob that image names must match; empty for all.
      label_files: glob that the paths of label files (below the dataset folder) must match; empty for all.
      label_suffix: what follows the image's name in the name of its label; empty to find it.
      map: (value in label files, value that it stands for), for values that were written wrongly.
      labels_start_at: value in label files of the first class; smaller ones are void. -1: not stated, which is 0 where
        nothing speaks against it.
      labels_as: what palette and grey labels store.
      threshold: two classes, of which the second has values from this one on; 0 for none.
      unknown_color: whether colors in label files that mean no class are an error, or void.
      mostly_void: whether labels may be void in more than half of their pixels.
      exif: what to do with images that carry an EXIF rotation.
      resize_labels: whether a label of another size than its image is resized to it.
      image_range: (black, white) of images with 16 bits per channel; (0, 0) refuses them.
      follow_links: whether links that lead out of the folder are followed.
      val_fraction: fraction of the training and validation images to split off anew for validation; 0 keeps the splits.
    """

    images: str = ""
    label_files: str = ""
    label_suffix: str = ""
    map: tuple[tuple[int, int], ...] = ()
    labels_start_at: int = -1
    labels_as: LabelsAs = "auto"
    threshold: int = 0
    unknown_color: Literal["error", "ignore"] = "error"
    mostly_void: bool = False
    exif: Exif = "refuse"
    resize_labels: Literal["off", "nearest"] = "off"
    image_range: tuple[int, int] = (0, 0)
    follow_links: bool = False
    val_fraction: float = 0.0


PLAIN = Reading()
"""The defaults."""
