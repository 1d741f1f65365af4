"""Boundary F1: agreement between the class boundaries of a prediction and those of the label.

The boundary of a class is defined as in SegNet-Tutorial's script (BSDS's `seg2bdry`, class against rest): the pixels
whose 2x2 block (itself, right, below, below right) contains the class in one to three of its four cells. Images are
padded with their edge pixels, so the image border is not a boundary. As in the script, VOID is part of the rest, so a
class that borders on VOID has a boundary there.

A boundary pixel is correct if the other boundary of its class has a pixel within 0.75 % of the image's diagonal (4.5
pixels at 360x480). Precision is the correct fraction of the prediction's boundary, and recall is the correct fraction
of the label's.

| | `paper` | `script` |
|---|---|---|
| a pixel is correct if it has | any pixel within the tolerance | a partner within it, in a one-to-one matching |
| an image's F1 is the mean over | classes with a boundary in the label | classes with one in label or prediction |
| the F1 is the mean over | images with such a class | all images; one without boundaries counts 0 |

`paper` follows the SegNet paper, by distance as in Csurka et al. 2013; it runs on the device. `script` follows
`computeBFmeasure.m`; `boundary_matching.py` counts the pairs of its `correspondPixels` on the host. The `paper` F1 of a
class in an image is never less than the `script` F1. Precision or recall without pixels is 0, as in the script.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.constants import VOID
from segnet_jax.metrics.boundary_tolerance import half_widths

KNOWN, KNOWN_NEAR, PREDICTED, PREDICTED_NEAR = range(4)
"""Indices of the counts of `boundary_counts`, along its last axis."""


def class_words(ids: jax.Array, num_classes: int) -> jax.Array:
    """Encode class ids as one-hot bits; VOID and other ids of at least C set no bit.

    Args:
      ids: uint8 [...].
      num_classes: C.

    Returns:
      uint16 [1,...] for up to 16 classes, which is faster; otherwise uint32 [K,...], 32 classes per word.
    """
    kind, bits = (jnp.uint16, 16) if num_classes <= 16 else (jnp.uint32, 32)
    ids, firsts = ids.astype(kind), range(0, num_classes, bits)
    return jnp.stack([_bits_of(ids - kind(first), min(bits, num_classes - first)) for first in firsts])


def _words_of_bits(label: jax.Array, num_classes: int) -> jax.Array:
    """Return the words of a label that consists of bits already; VOID sets none."""
    return jnp.where(label == VOID, 0, label).astype(jnp.uint16)[None]


def _bits_of(index: jax.Array, num_bits: int) -> jax.Array:
    """Return words with the bit at `index` set, or 0 where `index` is out of range, even by wrapping below 0."""
    kind = index.dtype.type
    return jnp.where(index < kind(num_bits), kind(1) << index, kind(0))


def boundaries(words: jax.Array) -> jax.Array:
    """Return all classes' boundaries in words [...,H,W]: the bits set in some but not all cells of a 2x2 block."""
    right = jnp.concatenate([words[..., 1:], words[..., -1:]], axis=-1)
    some, every = words | right, words & right
    some_below, every_below = (jnp.concatenate([row[..., 1:, :], row[..., -1:, :]], axis=-2) for row in (some, every))
    return (some | some_below) & ~(every & every_below)


def spread(words: jax.Array, disc: list[int]) -> jax.Array:
    """Dilate each bit of words [...,H,W] by a disc from `half_widths`."""
    height, width = words.shape[-2:]
    reach = len(disc) - 1
    margins = [(0, 0)] * (words.ndim - 2)
    padded = jnp.pad(words, [*margins, (0, 0), (reach, reach)])
    rows = [words]  # rows[x]: dilated by x pixels to either side
    for x in range(1, disc[0] + 1):
        left = lax.slice_in_dim(padded, reach - x, reach - x + width, axis=-1)
        right = lax.slice_in_dim(padded, reach + x, reach + x + width, axis=-1)
        rows.append(rows[-1] | left | right)
    rows = lax.optimization_barrier(rows)
    dilated = rows[disc[0]]
    for y in range(1, reach + 1):
        tall = jnp.pad(rows[disc[y]], [*margins, (y, y), (0, 0)])
        dilated = dilated | tall[..., :height, :] | tall[..., 2 * y :, :]
    return dilated


def boundary_counts(label: jax.Array, prediction: jax.Array, num_classes: int, multi_label: bool = False) -> jax.Array:
    """Count the boundary pixels of label and prediction, and those within the tolerance of the other boundary.

    Args:
      label: uint8 [B,H,W], class ids below num_classes, or VOID.
      prediction: uint8 [B,H,W], class ids below num_classes.
      num_classes: C.
      multi_label: whether both are bit masks of classes, see `nn.label_bits`.

    Returns:
      int32 [B,C,4]: the label's boundary pixels, those near the prediction's boundary, and the same for the prediction.
    """
    disc = half_widths(*label.shape[-2:])
    encode = _words_of_bits if multi_label else class_words

    def count(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        words = lax.optimization_barrier([encode(ids, num_classes) for ids in pair])
        known, predicted = lax.optimization_barrier([boundaries(each) for each in words])
        stacked = jnp.stack([known, known & spread(predicted, disc), predicted, predicted & spread(known, disc)])
        return _count_bits(stacked, num_classes).T

    return lax.map(count, (label, prediction))  # image by image, to stay in the CPU's cache


def _count_bits(words: jax.Array, num_classes: int) -> jax.Array:
    """Count the pixels with each class's bit: words [...,K,H,W] to int32 [...,C].

    Every fourth bit of a word is summed over 15 rows, so that each sum fits into four bits.
    """
    kind, bits = words.dtype.type, 8 * words.dtype.itemsize
    height, width = words.shape[-2:]
    lead = words.shape[:-2]
    words = jnp.pad(words, [(0, 0)] * len(lead) + [(0, -height % 15), (0, 0)]).reshape(*lead, -1, 15, width)
    every_fourth = kind(int("0001" * (bits // 4), 2))
    sums = [jnp.sum((words >> kind(i)) & every_fourth, axis=-2, dtype=words.dtype) for i in range(4)]
    fours = jnp.arange(0, bits, 4).astype(kind).reshape(-1, *(1,) * (len(lead) + 3))
    counts = jnp.sum((jnp.stack(sums)[None] >> fours) & kind(15), axis=(-2, -1), dtype=jnp.int32)  # [bits / 4, 4, ...]
    return jnp.moveaxis(counts.reshape(bits, *lead), 0, -1).reshape(*lead[:-1], -1)[..., :num_classes]


@dataclass(frozen=True)
class BoundaryF1:
    """Boundary F1 over a split, as fractions 0..1, by the definitions `paper` and `script`.

    Attributes:
      paper, script: mean over images of the mean over classes; NaN if no label has a boundary.
      paper_classes, script_classes: float64 [C], each class's mean over the images that contain it; NaN if none does.
    """

    paper: float
    script: float
    paper_classes: np.ndarray
    script_classes: np.ndarray


def boundary_f1(counts: np.ndarray, pairs: np.ndarray) -> BoundaryF1:
    """Compute boundary F1 from each image's `boundary_counts` [N,C,4] and `boundary_matching.count_pairs` [N,C]."""
    counts = np.asarray(counts, np.int64)
    known, predicted = counts[..., KNOWN], counts[..., PREDICTED]
    near = _f1(_ratio(counts[..., PREDICTED_NEAR], predicted), _ratio(counts[..., KNOWN_NEAR], known))
    paired = _f1(_ratio(pairs, predicted), _ratio(pairs, known))
    in_label, in_either = known > 0, (known > 0) | (predicted > 0)
    with_label = in_label.any(axis=1)
    return BoundaryF1(
        paper=float(_mean(_mean(near, in_label, axis=1), with_label, axis=0)),
        script=float(_mean(np.nan_to_num(_mean(paired, in_either, axis=1)), np.ones_like(with_label), axis=0)),
        paper_classes=_mean(near, in_label, axis=0),
        script_classes=_mean(paired, in_either, axis=0),
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole with 0 / 0 = 0, as in the script."""
    return np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    return _ratio(2 * precision * recall, precision + recall)


def _mean(values: np.ndarray, where: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of the selected values, or NaN if there are none."""
    total, number = np.sum(values, axis=axis, where=where), np.sum(where, axis=axis)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
