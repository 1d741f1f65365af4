"""Boundary F1: how well the boundaries of a prediction's classes lie on those of the label's.

A class's boundary is what SegNet-Tutorial's script takes, BSDS's `seg2bdry` of the class against all else: the pixels
whose 2x2 block (itself, right, below, right below) holds the class, but not in all four places. At the frame the block
repeats its pixels, so the frame is no boundary. VOID is one of "all else" and is not masked, as in the script: where a
class of the label ends at VOID, it has a boundary.

A pixel of one boundary is right if the other boundary of its class has a pixel within 0.75 % of the image's diagonal:
4.5 pixels at 360x480. Precision is the right share of the prediction's boundary, recall that of the label's.

| | `paper` | `script` |
|---|---|---|
| a pixel is right that has | some pixel within the tolerance | one there of its own: they are paired one to one |
| an image's F1 is the mean over | classes with a boundary in the label | those with one in label or prediction |
| the F1 is the mean over | images with such a class | all images; one without boundaries counts 0 |

`paper` is what the SegNet paper says, by distance as in Csurka et al. 2013: on the device, all classes and images of a
batch at once. `script` is `computeBFmeasure.m`; how many pairs its `correspondPixels` finds, `matching.py` tells on the
host. By distance a class's F1 is at least what it is one to one. A precision or recall without pixels is 0, as there.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.metrics.tolerance import half_widths

KNOWN, KNOWN_NEAR, PREDICTED, PREDICTED_NEAR = range(4)
"""What `boundary_counts` counts, along its last axis."""


def class_words(ids: jax.Array, num_classes: int) -> jax.Array:
    """One bit for each class, set where a pixel is of it; VOID and what else is no class sets none.

    Args:
      ids: uint8 [...].
      num_classes: C.

    Returns:
      uint16 [1,...] for up to 16 classes, which is the faster; else uint32 [K,...], 32 classes in each.
    """
    kind, bits = (jnp.uint16, 16) if num_classes <= 16 else (jnp.uint32, 32)
    ids, firsts = ids.astype(kind), range(0, num_classes, bits)
    return jnp.stack([_bits_of(ids - kind(first), min(bits, num_classes - first)) for first in firsts])


def _bits_of(place: jax.Array, num_bits: int) -> jax.Array:
    """The word whose bit at a place is set; none where that lies beyond the bits, as it does after wrapping below 0."""
    kind = place.dtype.type
    return jnp.where(place < kind(num_bits), kind(1) << place, kind(0))


def boundaries(words: jax.Array) -> jax.Array:
    """The boundary of every class at once: of class words [...,H,W], the bits of those in some of a 2x2 block."""
    right = jnp.concatenate([words[..., 1:], words[..., -1:]], axis=-1)
    some, every = words | right, words & right
    some_below, every_below = (jnp.concatenate([row[..., 1:, :], row[..., -1:, :]], axis=-2) for row in (some, every))
    return (some | some_below) & ~(every & every_below)


def spread(words: jax.Array, disc: list[int]) -> jax.Array:
    """Sets each bit wherever it is set within the disc: words [...,H,W]."""
    height, width = words.shape[-2:]
    reach = len(disc) - 1
    margins = [(0, 0)] * (words.ndim - 2)
    padded = jnp.pad(words, [*margins, (0, 0), (reach, reach)])
    rows = [words]  # rows[x] holds each bit up to x pixels to either side
    for x in range(1, disc[0] + 1):
        left = lax.slice_in_dim(padded, reach - x, reach - x + width, axis=-1)
        right = lax.slice_in_dim(padded, reach + x, reach + x + width, axis=-1)
        rows.append(rows[-1] | left | right)
    rows = lax.optimization_barrier(rows)
    found = rows[disc[0]]
    for y in range(1, reach + 1):
        tall = jnp.pad(rows[disc[y]], [*margins, (y, y), (0, 0)])
        found = found | tall[..., :height, :] | tall[..., 2 * y :, :]
    return found


def boundary_counts(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """Counts boundary pixels, and those within the tolerance of the other's boundary.

    Args:
      label: uint8 [B,H,W], class ids below num_classes, or VOID.
      prediction: uint8 [B,H,W], class ids below num_classes.
      num_classes: C.

    Returns:
      int32 [B,C,4]: pixels of the label's boundary, those of them near the prediction's, and the two the other way.
    """
    disc = half_widths(*label.shape[-2:])

    def count(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        words = lax.optimization_barrier([class_words(ids, num_classes) for ids in pair])
        known, predicted = lax.optimization_barrier([boundaries(each) for each in words])
        found = jnp.stack([known, known & spread(predicted, disc), predicted, predicted & spread(known, disc)])
        return _count_bits(found, num_classes).T

    return lax.map(count, (label, prediction))  # one image after another: it stays in the processor's cache


def _count_bits(words: jax.Array, num_classes: int) -> jax.Array:
    """How many pixels have each class's bit: of words [...,K,H,W], int32 [...,C].

    Fifteen rows are added up before bits are told apart: four bits of a word, four places from each other, then count
    side by side without running into each other.
    """
    kind, bits = words.dtype.type, 8 * words.dtype.itemsize
    height, width = words.shape[-2:]
    lead = words.shape[:-2]
    words = jnp.pad(words, [(0, 0)] * len(lead) + [(0, -height % 15), (0, 0)]).reshape(*lead, -1, 15, width)
    every_fourth = kind(int("0001" * (bits // 4), 2))
    sums = [jnp.sum((words >> kind(i)) & every_fourth, axis=-2, dtype=words.dtype) for i in range(4)]
    fours = jnp.arange(0, bits, 4).astype(kind).reshape(-1, *(1,) * (len(lead) + 3))
    counts = jnp.sum(
        (jnp.stack(sums)[None] >> fours) & kind(15), axis=(-2, -1), dtype=jnp.int32
    )  # [fours, places, ...]
    return jnp.moveaxis(counts.reshape(bits, *lead), 0, -1).reshape(*lead[:-1], -1)[..., :num_classes]


@dataclass(frozen=True)
class BoundaryF1:
    """Boundary F1 over a split, fractions 0..1, by both definitions.

    Attributes:
      paper: mean over images of the mean over classes; NaN where no label has a boundary.
      script: likewise.
      paper_classes: float64 [C], a class's mean over the images that have it; NaN where none has.
      script_classes: likewise.
    """

    paper: float
    script: float
    paper_classes: np.ndarray
    script_classes: np.ndarray


def boundary_f1(counts: np.ndarray, pairs: np.ndarray) -> BoundaryF1:
    """Derives boundary F1 from what was counted of each image.

    Args:
      counts: integers [N,C,4], of `boundary_counts`.
      pairs: integers [N,C], of `matching.count_pairs`.
    """
    counts = np.asarray(counts, np.int64)
    known, predicted = counts[..., KNOWN], counts[..., PREDICTED]
    near = _f1(_share(counts[..., PREDICTED_NEAR], predicted), _share(counts[..., KNOWN_NEAR], known))
    paired = _f1(_share(pairs, predicted), _share(pairs, known))
    in_label, in_either = known > 0, (known > 0) | (predicted > 0)
    with_label = in_label.any(axis=1)
    return BoundaryF1(
        paper=float(_mean(_mean(near, in_label, axis=1), with_label, axis=0)),
        script=float(_mean(np.nan_to_num(_mean(paired, in_either, axis=1)), np.ones_like(with_label), axis=0)),
        paper_classes=_mean(near, in_label, axis=0),
        script_classes=_mean(paired, in_either, axis=0),
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The part over the whole; 0 where there is nothing, as the script has it."""
    return np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    return _share(2 * precision * recall, precision + recall)


def _mean(values: np.ndarray, where: np.ndarray, axis: int) -> np.ndarray:
    """The mean of some values; NaN where there are none."""
    total, number = np.sum(values, axis=axis, where=where), np.sum(where, axis=axis)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
