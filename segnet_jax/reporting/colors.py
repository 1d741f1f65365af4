"""Labels made visible."""

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import ClassTable


def colorize(label: np.ndarray, classes: ClassTable) -> np.ndarray:
    """Paints each pixel in the colour of its class, VOID in black.

    Args:
      label: uint8 [...,H,W] of class ids or VOID.
      classes: gives the colours.

    Returns:
      uint8 [...,H,W,3] RGB.
    """
    known = label[label != VOID]
    assert known.max(initial=0) < len(classes), f"class id {known.max()} among {len(classes)} classes"
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(classes)] = classes.colors
    return palette[label]


def overlay(image: np.ndarray, label: np.ndarray, classes: ClassTable, transparency: float = 0.4) -> np.ndarray:
    """Lays the colours of the classes over an image, VOID pixels left as they are.

    Args:
      image: uint8 [...,H,W,3] RGB.
      label: uint8 [...,H,W] of class ids or VOID.
      classes: gives the colours.
      transparency: share of the image that shines through, 0..1; 0.4 is what the MATLAB example uses.

    Returns:
      uint8 [...,H,W,3] RGB.
    """
    mixed = np.rint(transparency * image + (1 - transparency) * colorize(label, classes)).astype(np.uint8)
    return np.where((label == VOID)[..., None], image, mixed)
