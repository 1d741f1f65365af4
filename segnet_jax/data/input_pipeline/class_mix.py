"""ClassMix: paste half of the classes of another image.

Source: Olsson et al. 2021 (arXiv 2007.07936), with labels in place of predictions.
"""

from types import ModuleType
from typing import Any

from segnet_jax.constants import VOID


def class_mix(image: Any, label: Any, other_image: Any, other_label: Any, seed: Any, xp: ModuleType) -> tuple[Any, Any]:
    """Paste the pixels and labels of half of another image's classes onto an image.

    Void pixels are not pasted. An image that is mixed with itself does not change.

    Args:
      image: uint8 or uint16 [H,W,C].
      label: uint8 [H,W].
      other_image: the other image, in the same dtype and shape.
      other_label: its label.
      seed: int32, for `choose_classes`.
      xp: numpy or jax.numpy.
    """
    is_pasted = xp.take(choose_classes(other_label, seed, xp), other_label.astype(xp.int32), mode="clip")
    return xp.where(is_pasted[..., None], other_image, image), xp.where(is_pasted, other_label, label)


def choose_classes(label: Any, seed: Any, xp: ModuleType) -> Any:
    """Choose half of the classes in a label, rounded down; every choice is equally likely.

    Args:
      label: uint8 [H,W].
      seed: int32.
      xp: numpy or jax.numpy.

    Returns:
      bool [256], by class id.
    """
    ids = xp.arange(256, dtype=xp.uint32)
    # The set of classes is stored as bits of eight words, because a table of 256 counts would need a scatter.
    word, bit = label >> 5, xp.left_shift(xp.uint32(1), (label & 31).astype(xp.uint32))
    words = [xp.bitwise_or.reduce(xp.where(word == i, bit, xp.uint32(0)), axis=None) for i in range(8)]
    is_present = ((xp.repeat(xp.stack(words), 32) >> (ids & 31)) & 1).astype(bool) & (ids != VOID)
    keys = _hash(ids + xp.asarray(seed).astype(xp.uint32) * xp.uint32(256), xp)  # unique; 2^24 permutations
    rank = (is_present[None] & (keys[None] < keys[:, None])).sum(axis=1)
    return is_present & (rank < is_present.sum() // 2)


def _hash(x: Any, xp: ModuleType) -> Any:
    """Hash 32-bit numbers without collisions, by Wellons' lowbias32 (https://github.com/skeeto/hash-prospector)."""
    x = (x ^ (x >> 16)) * xp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * xp.uint32(0x846CA68B)
    return x ^ (x >> 16)
