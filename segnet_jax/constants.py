"""Constants and types that several rooms share."""

from typing import Literal

VOID = 255
"""The class id of pixels that carry no label; readers turn a data set's own void id into it."""
Exif = Literal["refuse", "apply", "ignore"]
"""What becomes of a picture that says it lies on its side: an error, turned upright, or taken as its pixels are."""
