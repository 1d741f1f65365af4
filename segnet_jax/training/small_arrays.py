"""Tree operations that process all small arrays as one vector.

A network has a few large arrays and about a hundred vectors with a few hundred elements each. On a GPU, launching a
kernel for each of these vectors takes longer than its work.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_MAX_SMALL = 1 << 12
"""Maximum number of elements of an array to join: includes BatchNorm's vectors and biases, not the wider kernels."""


def all_finite(tree: Any) -> jax.Array:
    """Return a bool scalar: True if no array of the tree has a NaN or an infinity."""
    leaves = jax.tree.leaves(tree)
    small, large = _split_by_size(leaves)
    finite = [jnp.isfinite(_join([leaves[i] for i in group])) for group in small]
    # Reduced along the last axis, with a barrier before the rest: otherwise a GPU needs two kernels per large array.
    finite += [jnp.all(jnp.isfinite(leaves[i]), axis=-1).ravel() for i in large]
    return jnp.all(lax.optimization_barrier(_join(finite)))


def select(condition: jax.Array, on_true: Any, on_false: Any) -> Any:
    """Return `on_true` or `on_false`, trees of equal structure, shapes and dtypes: `jnp.where` on each leaf."""
    return jax.tree.map(lambda one, other: jnp.where(condition, one, other), join_small(on_true), on_false)


def join_small(tree: Any) -> Any:
    """Return a tree with its small arrays computed as slices of one vector.

    XLA fuses operations on arrays of one shape into one kernel if they read the same array, but not if it can see that
    they read different slices of it. The barrier hides the parts of the vector and the offsets of the slices.
    """
    leaves, structure = jax.tree.flatten(tree)
    for group in _split_by_size(leaves)[0]:
        joined, zero = lax.optimization_barrier((_join([leaves[i] for i in group]), jnp.int32(0)))
        start = 0
        for i in group:
            shape, size = leaves[i].shape, leaves[i].size
            leaves[i] = lax.dynamic_slice(joined, (zero + start,), (size,)).reshape(shape)
            start += size
    return jax.tree.unflatten(structure, leaves)


def _split_by_size(leaves: Sequence[jax.Array]) -> tuple[list[list[int]], list[int]]:
    """Return the indices of the small arrays, grouped by dtype, and of the large ones."""
    small, large = defaultdict(list), []
    for i, leaf in enumerate(leaves):
        if leaf.size <= _MAX_SMALL:
            small[leaf.dtype].append(i)
        else:
            large.append(i)
    return list(small.values()), large


def _join(arrays: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate([array.ravel() for array in arrays])
