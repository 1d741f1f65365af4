"""Constants and types used throughout the package."""

from typing import Literal

VOID = 255
"""Class id of unlabeled pixels; label readers map a dataset's own void id to it."""
Exif = Literal["refuse", "apply", "ignore", "by-label"]
"""How to read an image that has an EXIF rotation.

refuse: report a fault. apply: rotate it upright. ignore: keep the stored pixels. by-label: for each image, whichever of
apply and ignore gives the shape of its label.
"""
