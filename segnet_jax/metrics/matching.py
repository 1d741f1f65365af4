"""One-to-one pairs between the boundaries of a label and a prediction, as BSDS's `correspondPixels` makes them.

It seeks the pairs with the smallest sum of distances, where a pixel left alone costs a hundred times the tolerance: so
it makes as many pairs as there can be, and their number is all that precision and recall take of it. That number is
found here exactly, on the host, as the largest matching of a bipartite graph: the nearest pixels are paired first,
which comes within some fifteen percent, and the largest flow between those left over on either side adds the rest.
"""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from segnet_jax.metrics.boundary import half_widths


def count_pairs(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """How many pixels of the two boundaries can be paired one to one within the tolerance, for each class.

    Args:
      label: uint8 [H,W], class ids below num_classes, or VOID.
      prediction: uint8 [H,W], class ids below num_classes.
      num_classes: C.

    Returns:
      int64 [C].
    """
    height, width = label.shape
    disc = half_widths(height, width)
    reach = len(disc) - 1
    steps = [(y, x) for y in range(-reach, reach + 1) for x in range(-disc[abs(y)], disc[abs(y)] + 1)]
    steps = np.array(sorted(steps, key=lambda step: step[0] ** 2 + step[1] ** 2))
    classes, places = _boundary_pixels(label, num_classes)
    other_classes, other_places = _boundary_pixels(prediction, num_classes)
    there = np.full((num_classes, height + 2 * reach, width + 2 * reach), -1, np.int32)  # which of the others is where
    there[other_classes, *(other_places + reach).T] = np.arange(len(other_places))
    here = np.ravel_multi_index((classes, *(places + reach).T), there.shape)
    candidates = np.stack([there.ravel()[here + y * there.shape[2] + x] for y, x in steps])
    return np.bincount(classes[_has_partner(candidates, len(other_places))], minlength=num_classes)


def _boundary_pixels(ids: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """All classes' boundaries, as `boundary.boundaries` has them: the class of each pixel, int [N], its place, [N,2].

    A pixel whose 2x2 block holds several ids is on the boundary of each of them.
    """
    wide = np.pad(ids, (0, 1), mode="edge")
    block = np.stack([wide[:-1, :-1], wide[:-1, 1:], wide[1:, :-1], wide[1:, 1:]])
    mixed = (block != block[0]).any(axis=0)
    block, place = block[:, mixed], np.argwhere(mixed)
    here = [np.flatnonzero((block == class_id).any(axis=0)) for class_id in range(num_classes)]
    return np.repeat(np.arange(num_classes), [len(each) for each in here]), place[np.concatenate(here)]


def _has_partner(candidates: np.ndarray, num_others: int) -> np.ndarray:
    """Which nodes have a partner in a largest matching, bool [N].

    Args:
      candidates: int [K,N], the possible partners of each node, the nearest first, -1 where there is none; no two nodes
        have the same one at the same place.
      num_others: how many there are to choose from.
    """
    num_nodes = candidates.shape[1]
    partner, taken = np.full(num_nodes, -1), np.zeros(num_others + 1, bool)
    free = np.flatnonzero((candidates >= 0).any(axis=0))
    for wanted in candidates:
        chosen = wanted[free]
        pairs = (chosen >= 0) & ~taken[chosen]
        partner[free[pairs]], taken[chosen[pairs]] = chosen[pairs], True
        free = free[~pairs]
    found, free_others = partner >= 0, np.flatnonzero(~taken[:-1])
    if not len(free) or not len(free_others):
        return found
    # One more pair is a way from a free node to a candidate, back to the node that has it, and so on to a free one.
    place, node = np.nonzero(candidates >= 0)
    other = candidates[place, node]
    back = partner[node] == other
    source, sink = num_nodes + num_others, num_nodes + num_others + 1
    starts = [np.where(back, num_nodes + other, node), np.full(len(free), source), num_nodes + free_others]
    ends = [np.where(back, node, num_nodes + other), free, np.full(len(free_others), sink)]
    starts, ends = np.concatenate(starts), np.concatenate(ends)
    graph = csr_array((np.ones(len(starts), np.int32), (starts, ends)), shape=(sink + 1, sink + 1))
    flow = maximum_flow(graph, source, sink).flow
    found[free] = flow[[source], :].toarray()[0, free] > 0
    return found
