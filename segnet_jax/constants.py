"""Constants and types that several rooms share."""

from typing import Literal

VOID = 255
"""The class id of pixels that carry no label; readers turn a data set's own void id into it."""
Exif = Literal["refuse", "apply", "ignore", "by-label"]
"""What to do with an image that carries an EXIF rotation.

refuse: report it as a fault. apply: rotate it upright. ignore: keep the stored pixels. by-label: whichever of the two
has the shape of the image's label, for each file alone.
"""
