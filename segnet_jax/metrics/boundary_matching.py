"""Count one-to-one pairs between the boundaries of a label and a prediction, as in BSDS's `correspondPixels`.

`correspondPixels` minimizes the sum of distances, where an unpaired pixel costs a hundred times the tolerance. Its
number of pairs, which is all that precision and recall need, is therefore the size of a maximum bipartite matching.
This is computed exactly on the host: greedy matching with the farthest free pixel comes within about 10 % (with the
nearest, within 15 %), and maximum flow completes the matching.
"""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from segnet_jax.constants import VOID
from segnet_jax.metrics.boundary_tolerance import half_widths
from segnet_jax.nn.label_bits import unpack


def count_pairs(label: np.ndarray, prediction: np.ndarray, num_classes: int, multi_label: bool = False) -> np.ndarray:
    """Count, for each class, the pixels of the two boundaries that can be paired one to one within the tolerance.

    Args:
      label: uint8 [H,W], class ids below num_classes, or VOID.
      prediction: uint8 [H,W], class ids below num_classes.
      num_classes: C.
      multi_label: whether both are bit masks of classes, see `nn.label_bits`.

    Returns:
      int64 [C].
    """
    if multi_label:  # class by class, each against the rest, which has the id 1
        has_class = [~(unpack(each, num_classes) & (each != VOID)[..., None]) for each in (label, prediction)]
        ids = [np.moveaxis(each.astype(np.uint8), -1, 0) for each in has_class]
        return np.array([count_pairs(*pair, 1)[0] for pair in zip(*ids, strict=True)], np.int64)
    height, width = label.shape
    disc = half_widths(height, width)
    reach = len(disc) - 1
    steps = [(y, x) for y in range(-reach, reach + 1) for x in range(-disc[abs(y)], disc[abs(y)] + 1)]
    steps.sort(key=lambda step: step[0] ** 2 + step[1] ** 2, reverse=True)
    padded = (num_classes, height + 2 * reach, width + 2 * reach)
    classes, *places = _boundary_pixels(label, num_classes)
    other_classes, *other_places = _boundary_pixels(prediction, num_classes)
    here = np.ravel_multi_index((classes, *(place + reach for place in places)), padded)
    there = np.full(padded, -1, np.int32)  # index of the other boundary's pixel, if any
    there[other_classes, *(place + reach for place in other_places)] = np.arange(len(other_classes))
    candidates = np.stack([there.ravel()[here + y * padded[2] + x] for y, x in steps])
    return np.bincount(classes[_has_partner(candidates, len(other_classes))], minlength=num_classes)


def _boundary_pixels(ids: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the boundary pixels (see `boundary.boundaries`) of all classes as int [N] arrays (class, row, column).

    A pixel whose 2x2 block contains several ids is on the boundary of each of them.
    """
    wide = np.pad(ids, (0, 1), mode="edge")
    block = [wide[:-1, :-1], wide[:-1, 1:], wide[1:, :-1], wide[1:, 1:]]
    rows, columns = np.nonzero((block[0] != block[1]) | (block[0] != block[2]) | (block[0] != block[3]))
    mixed = np.stack([each[rows, columns] for each in block])
    here = [np.flatnonzero((mixed == class_id).any(axis=0)) for class_id in range(num_classes)]
    pixels = np.concatenate(here)
    return np.repeat(np.arange(num_classes), [len(each) for each in here]), rows[pixels], columns[pixels]


def _has_partner(candidates: np.ndarray, num_others: int) -> np.ndarray:
    """Return a bool mask [N] of the nodes with a partner in a maximum matching.

    Args:
      candidates: int32 [K,N], possible partners of each node or -1; unique within a row.
      num_others: number of possible partners.
    """
    num_nodes = candidates.shape[1]
    real = candidates >= 0
    partner, taken = np.full(num_nodes, -1, np.int32), np.zeros(num_others + 1, bool)
    taken[-1] = True  # the index -1
    free = np.flatnonzero(real.any(axis=0)).astype(np.int32)
    for row in candidates:
        chosen = row[free]
        pairs = ~taken[chosen]
        partner[free[pairs]], taken[chosen[pairs]] = chosen[pairs], True
        free = free[~pairs]
    matched, free_others = partner >= 0, np.flatnonzero(~taken).astype(np.int32)
    if not len(free) or not len(free_others):
        return matched
    # Augmenting paths alternate between candidates and their current partners, from a free node to a free candidate.
    edges = np.flatnonzero(real)
    node, other = (edges % num_nodes).astype(np.int32), candidates.ravel()[edges]
    back, other = partner[node] == other, other + np.int32(num_nodes)
    source, sink = num_nodes + num_others, num_nodes + num_others + 1
    starts = [np.where(back, other, node), np.full(len(free), source, np.int32), num_nodes + free_others]
    ends = [np.where(back, node, other), free, np.full(len(free_others), sink, np.int32)]
    starts, ends = np.concatenate(starts), np.concatenate(ends)
    graph = csr_array((np.ones(len(starts), np.int32), (starts, ends)), shape=(sink + 1, sink + 1))
    flow = maximum_flow(graph, source, sink).flow
    of_source = slice(*flow.indptr[[source, source + 1]])
    matched[flow.indices[of_source][flow.data[of_source] > 0]] = True
    return matched
