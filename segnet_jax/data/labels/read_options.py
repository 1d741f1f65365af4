"""Read options: how the files of a folder are read."""

from dataclasses import dataclass
from typing import Literal

from segnet_jax.constants import Exif, Pixels

LabelsAs = Literal["auto", "values", "colors"]
"""Meaning of palette and gray label files: class ids, or colors of the class file; auto: whichever fits."""

Unmasked = Literal["auto", "background", "void"]
"""Meaning of pixels that are in none of the masks of one class each."""


@dataclass(frozen=True)
class ReadOptions:
    """Read options; each has a flag and a config field of the same name.

    Attributes:
      images: glob for image names; empty for all.
      label_files: glob for paths of label files, relative to the dataset folder; empty for all.
      label_suffix: suffix of label names after the image's name; empty to detect it.
      map: pairs (value in label files, value to read it as).
      labels_start_at: value of the first class in label files; smaller values are void. -1 means 0, unless the labels
        contradict it.
      labels_as: what palette and gray labels store.
      threshold: value from which pixels belong to the second of two classes; 0 for none.
      unknown_color: whether label colors without a class are an error or void.
      mask_order: classes whose masks may overlap, of masks of one class each; later ones cover earlier ones.
      unmasked: what pixels in none of these masks are; auto: whichever is the only one that fits.
      multi_label: whether a pixel has the classes of all its masks.
      mostly_void: whether labels may be void in more than half of their pixels.
      exif: how images with an EXIF rotation are read.
      resize_labels: whether labels are resized to their images.
      image_range: values of black and white in 16-bit images; (0, 0) refuses them.
      channels: channels of the images; 3 converts them to RGB, others read them as stored.
      image_bits: bits per channel; "16" reads images of 16 bits as stored.
      follow_links: whether links may leave the folder.
      val_fraction: fraction of the training and validation images to use for validation; 0 keeps the dataset's split.
    """

    images: str = ""
    label_files: str = ""
    label_suffix: str = ""
    map: tuple[tuple[int, int], ...] = ()
    labels_start_at: int = -1
    labels_as: LabelsAs = "auto"
    threshold: int = 0
    unknown_color: Literal["error", "ignore"] = "error"
    mask_order: tuple[str, ...] = ()
    unmasked: Unmasked = "auto"
    multi_label: bool = False
    mostly_void: bool = False
    exif: Exif = "refuse"
    resize_labels: Literal["off", "nearest"] = "off"
    image_range: tuple[int, int] = (0, 0)
    channels: int = 3
    image_bits: Literal["8", "16"] = "8"
    follow_links: bool = False
    val_fraction: float = 0.0

    @property
    def pixels(self) -> Pixels:
        """Format of the images' pixels."""
        return Pixels(self.channels, int(self.image_bits))


DEFAULTS = ReadOptions()
"""Default read options."""
