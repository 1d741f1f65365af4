"""Compare operations on joined small arrays with the same operations on each array."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segnet_jax.training.small_arrays import all_finite, join_small, select

SHAPES = {"kernel": (3, 3, 32, 64), "scale": (64,), "step": (), "long": (5000,), "small kernel": (3, 3, 3, 8)}


def drawn(seed):
    """Return a tree of small and large arrays of several dtypes."""
    rng = np.random.default_rng(seed)
    floats = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
    half = jnp.asarray(rng.normal(size=7), jnp.bfloat16)
    return {"floats": floats, "half": [half], "count": jnp.int32(seed), "finite": jnp.bool_(seed % 2), "none": None}


def assert_same(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert np.array_equal(one, other, equal_nan=one.dtype == jnp.float32)


@pytest.mark.parametrize("condition", [True, False])
def test_a_whole_tree_is_selected(condition):
    one, other = drawn(1), drawn(2)
    one["floats"]["scale"] = one["floats"]["scale"].at[3].set(jnp.nan)  # which must not reach the other
    assert_same(jax.jit(select)(jnp.bool_(condition), one, other), one if condition else other)


def test_what_is_cut_from_one_vector_is_what_it_was_made_of():
    tree = drawn(1)
    assert_same(jax.jit(join_small)(tree), tree)
    assert_same(join_small({}), {})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(value):
    tree = drawn(1)
    finite = jax.jit(all_finite)
    assert finite(tree)
    for name, shape in SHAPES.items():
        place = tuple(np.random.default_rng(0).integers(shape))
        bad = tree | {"floats": tree["floats"] | {name: tree["floats"][name].at[place].set(value)}}
        assert not finite(bad), name
    assert not finite(tree | {"half": [tree["half"][0].at[6].set(value)]})


def test_the_vectors_of_a_network_are_one_operand():
    """Check that there is one check for all vectors together and one for each large array."""
    many = [jnp.ones(64)] * 50 + [jnp.ones((3, 3, 64, 64))] * 2
    tests = jax.make_jaxpr(all_finite)(many).pretty_print().count("is_finite")
    chosen = jax.make_jaxpr(partial(select, jnp.bool_(True)))(many, many).pretty_print()
    assert tests == 3
    assert chosen.count("f32[3200]") and chosen.count("optimization_barrier") == 1
