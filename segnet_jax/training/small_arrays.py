"""Operations on trees that treat all small arrays as one vector.

A network's numbers lie in a few large arrays, and beside them in a hundred vectors of a few hundred numbers each. On a
GPU, an operation on such a vector is a kernel of its own, whose launch takes longer than its work.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_MAX_SMALL = 1 << 12
"""Numbers of the largest array that is joined: BatchNorm's vectors and biases, but none of the wider kernels."""


def all_finite(tree: Any) -> jax.Array:
    """Return whether no array of a tree holds a NaN or an infinity, as a bool scalar."""
    leaves = jax.tree.leaves(tree)
    small, large = _divide(leaves)
    finite = [jnp.isfinite(_join([leaves[i] for i in group])) for group in small]
    # Along one axis alone, and behind a barrier: else a GPU would need two kernels for each large array, not one.
    finite += [jnp.all(jnp.isfinite(leaves[i]), axis=max(leaves[i].ndim - 2, 0)).ravel() for i in large]
    return jnp.all(lax.optimization_barrier(_join(finite)))


def select(condition: jax.Array, on_true: Any, on_false: Any) -> Any:
    """Return one of two trees of equal structure, shapes and dtypes: `jax.tree.map(partial(jnp.where, condition))`."""
    return jax.tree.map(lambda one, other: jnp.where(condition, one, other), cut_from_one(on_true), on_false)


def cut_from_one(tree: Any) -> Any:
    """Return a tree whose small arrays are computed as one vector and then cut from it; the numbers are the same.

    XLA computes arrays of one shape in one kernel where they read one array, but not where it sees that they read
    different parts of it. So it gets to see neither the parts that the vector was made of nor where they lie.
    """
    leaves, structure = jax.tree.flatten(tree)
    for group in _divide(leaves)[0]:
        joined, zero = lax.optimization_barrier((_join([leaves[i] for i in group]), jnp.int32(0)))
        start = 0
        for i in group:
            shape, size = leaves[i].shape, leaves[i].size
            leaves[i] = lax.dynamic_slice(joined, (zero + start,), (size,)).reshape(shape)
            start += size
    return jax.tree.unflatten(structure, leaves)


def _divide(leaves: Sequence[jax.Array]) -> tuple[list[list[int]], list[int]]:
    """Return the places of the small arrays, grouped by dtype, and those of the large ones."""
    small, large = defaultdict(list), []
    for i, leaf in enumerate(leaves):
        if leaf.size <= _MAX_SMALL:
            small[leaf.dtype].append(i)
        else:
            large.append(i)
    return list(small.values()), large


def _join(arrays: Sequence[jax.Array]) -> jax.Array:
    """Return arrays of one dtype as one vector."""
    return jnp.concatenate([array.ravel() for array in arrays])
