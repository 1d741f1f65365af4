"""Check that the tests' cache reuses a compiled program only where compilation would give the same program."""

import functools

import jax.numpy as jnp
import numpy as np
import program_memo
import pytest

from segnet_jax.distributed.data_parallel import AheadOfTime, choose_devices, parallel_eval_step
from segnet_jax.training import losses


def scaled(factor):
    def step(state, inputs, store, power=1):
        return state * factor**power, losses.num_valid(inputs)

    return step


def take(step, state=2.0, count=3):
    """Run a step on one device; return its results and whether it was compiled for this."""
    before = program_memo.counts["compiled"]
    mapped = AheadOfTime(parallel_eval_step(step, choose_devices("1")), "the step", choose_devices("1"))
    result, valid = mapped(np.float32(state), np.zeros((1, count), np.uint8))
    return float(result), int(valid[0]), program_memo.counts["compiled"] > before


def test_equal_steps_are_compiled_once_and_others_each(monkeypatch):
    weights = jnp.float32([2.5])[0]
    assert take(scaled(weights)) == (5.0, 3, True)
    assert take(scaled(jnp.float32([2.5])[0]), state=4.0) == (10.0, 3, False)  # equal by value
    assert take(scaled(jnp.float32([3.0])[0])) == (6.0, 3, True)  # another closure
    assert take(functools.partial(scaled(weights), power=2)) == (12.5, 3, True)  # another setting
    assert take(scaled(weights), count=4) == (5.0, 4, True)  # another shape
    with monkeypatch.context() as patched:
        patched.setattr(losses, "num_valid", lambda label: jnp.int32(7))
        assert take(scaled(weights)) == (5.0, 7, True)  # another package
    assert take(scaled(weights)) == (5.0, 3, False)


@pytest.mark.parametrize("one, other", [([1, 2], (1, 2)), (1, 1.0), (np.zeros(2), np.zeros(2, np.float32))])
def test_values_of_another_type_are_another_key(one, other):
    assert program_memo.key_of(one) == program_memo.key_of(one) != program_memo.key_of(other)
