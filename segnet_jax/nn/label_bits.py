"""Labels with several classes per pixel: a byte per pixel, whose bit c is set if the pixel has class c.

The highest bit is left for void: VOID, 255, has it, and no set of classes does. Labels of this form can be moved,
flipped and resized by nearest neighbors like class ids, with the same fill value.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

MAX_CLASSES = 7
"""Classes that fit into a byte beside void."""


def unpack(label: Any, num_classes: int) -> Any:
    """Return bool [...,C], whether each pixel of a label, uint8 [...], has the class; VOID has all of them."""
    xp = np if isinstance(label, np.ndarray) else jnp
    bits = xp.left_shift(xp.ones(num_classes, np.uint8), xp.arange(num_classes, dtype=np.uint8))
    return (label[..., None] & bits.reshape((1,) * label.ndim + (num_classes,))) != 0


def pack(has_class: Any) -> Any:
    """Return the label, uint8 [...], of bool [...,C], the inverse of `unpack`."""
    xp = np if isinstance(has_class, np.ndarray) else jnp
    label = xp.zeros(has_class.shape[:-1], np.uint8)
    for class_id in range(has_class.shape[-1]):
        label = label | xp.left_shift(has_class[..., class_id].astype(np.uint8), xp.uint8(class_id))
    return label


def count_bits(pixels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the pixels of each class, int64 [C], of the pixels of each value 0..255, [256]; VOID counts for none."""
    values = np.arange(255, dtype=np.uint8)
    return (pixels[:255, None] * unpack(values, num_classes)).sum(axis=0)


def classes_above_half(logits: Any) -> Any:
    """Return the classes of probability above 0.5, uint8 [...] as `pack`, of logits [...,C], one sigmoid each."""
    return pack(logits > 0)
