"""Labels with several classes per pixel: one byte per pixel, whose bit c is set if the pixel has class c.

The highest bit is set only in VOID, 255. Such labels can be shifted, flipped and resized by nearest neighbor like class
ids, with the same fill value.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

MAX_CLASSES = 7
"""Maximum number of classes: one bit of the byte is reserved for void."""


def unpack(label: Any, num_classes: int) -> Any:
    """Return the classes of a label, uint8 [...], as bool [...,C]; all True for VOID."""
    xp = np if isinstance(label, np.ndarray) else jnp
    bits = xp.left_shift(xp.ones(num_classes, np.uint8), xp.arange(num_classes, dtype=np.uint8))
    return (label[..., None] & bits.reshape((1,) * label.ndim + (num_classes,))) != 0


def pack(has_class: Any) -> Any:
    """Return the label, uint8 [...], for classes, bool [...,C]; the inverse of `unpack`."""
    xp = np if isinstance(has_class, np.ndarray) else jnp
    label = xp.zeros(has_class.shape[:-1], np.uint8)
    for class_id in range(has_class.shape[-1]):
        label = label | xp.left_shift(has_class[..., class_id].astype(np.uint8), xp.uint8(class_id))
    return label


def count_bits(pixels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the number of pixels per class, [C], from the number per label value, [256]; VOID is ignored."""
    values = np.arange(255, dtype=np.uint8)
    return (pixels[:255, None] * unpack(values, num_classes)).sum(axis=0)


def classes_above_half(logits: Any) -> Any:
    """Return the label, uint8 [...], with the classes whose sigmoids of logits [...,C] exceed 0.5."""
    return pack(logits > 0)
