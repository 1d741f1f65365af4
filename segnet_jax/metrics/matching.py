"""One-to-one pairs between two boundaries, as BSDS's `correspondPixels` makes them: on the host, exactly.

`correspondPixels` looks for the pairs with the smallest sum of distances, where leaving a pixel alone costs a hundred
times the tolerance: so it makes as many pairs as there can be, and their number is all that precision and recall take of
it. That number is the largest matching of a bipartite graph. Nearest pixels are paired first, which comes within some
percent of it; the largest flow from those left over on one side to those on the other tells what is lacking.
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
    (node_class, nodes), (other_class, others) = (_boundary_pixels(ids, num_classes) for ids in (label, prediction))
    there = np.full((num_classes, height + 2 * reach, width + 2 * reach), -1, np.int32)  # which of the others
    there[other_class, *(others + reach).T] = np.arange(len(others))
    partners = there[node_class, *(nodes.T[:, None] + reach + steps.T[:, :, None])]
    return np.bincount(node_class[_largest_matching(partners, len(others))], minlength=num_classes)


def _mixed_blocks(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels whose 2x2 block holds several ids, int [N,2], and their blocks [N,4].

    Such a pixel is on the boundary of each of them.
    """
    wide = np.pad(ids, (0, 1), mode="edge")
    blocks = np.stack([wide[:-1, :-1], wide[:-1, 1:], wide[1:, :-1], wide[1:, 1:]], axis=-1)
    mixed = (blocks != blocks[..., :1]).any(axis=-1)
    return np.argwhere(mixed), blocks[mixed]


def _largest_matching(partners: np.ndarray, num_others: int) -> int:
    """The number of pairs in the largest matching.

    Args:
      partners: int [N,K], the possible partners of each of N nodes, the nearest first; -1 is none.
      num_others: how many partners there are.
    """
    possible = partners >= 0
    if not possible.any():
        return 0
    partner_of = np.full(len(partners), -1)
    taken_by = np.full(num_others, -1)
    for wanted in partners.T:  # no two nodes have the same partner at the same step from them
        free = np.flatnonzero((partner_of < 0) & (wanted >= 0))
        free = free[taken_by[wanted[free]] < 0]
        partner_of[free], taken_by[wanted[free]] = wanted[free], free
    paired = int((partner_of >= 0).sum())
    left, left_others = np.flatnonzero((partner_of < 0) & possible.any(axis=1)), np.flatnonzero(taken_by < 0)
    if not len(left) or not len(left_others):
        return paired
    # A path that makes one pair more goes from a node left over to a partner, back to whose node it is, and so on.
    node, other = np.nonzero(possible)[0], partners[possible] + len(partners)
    back = partner_of[node] + len(partners) == other
    source = len(partners) + num_others
    ways = np.concatenate(
        [
            np.where(back, [other, node], [node, other]),
            [np.full(len(left), source), left],
            [left_others + len(partners), np.full(len(left_others), source + 1)],
        ],
        axis=1,
    )
    graph = csr_array((np.ones(ways.shape[1], np.int32), tuple(ways.astype(np.int32))), shape=(source + 2, source + 2))
    return paired + int(maximum_flow(graph, source, source + 1).flow_value)
