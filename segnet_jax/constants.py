"""Constants and types used throughout the package."""

from typing import Literal, NamedTuple

VOID = 255
"""Class id of unlabeled pixels; label readers map a dataset's own void id to it."""
MAX_CHANNELS = 64
"""Maximum number of image channels."""
Exif = Literal["refuse", "apply", "ignore", "by-label"]
"""How to read an image that has an EXIF rotation.

refuse: report a fault. apply: rotate it upright. ignore: keep the stored pixels. by-label: for each image, whichever of
apply and ignore gives the shape of its label.
"""


class Pixels(NamedTuple):
    """Format of an image's pixels: the number of channels, and 8 or 16 bits per channel."""

    channels: int = 3
    bits: int = 8

    @property
    def dtype(self) -> str:
        """Dtype of image arrays, "uint8" or "uint16"."""
        return f"uint{self.bits}"

    @property
    def num_bytes(self) -> int:
        """Bytes per pixel."""
        return self.channels * self.bits // 8

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' * (self.channels != 1)} of {self.bits} bits"


RGB = Pixels()
"""The default format, to which 8-bit images are converted; with any other format, images are read as stored."""
