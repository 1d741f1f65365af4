"""Check that folding BatchNorm into convolutions gives the same logits with fewer operations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from segnet_jax.nn import SegNet, fold_batch_norm

TINY = {"width": 1 / 16, "batch_norm_epsilon": 0.2}  # an epsilon so large that omitting it would be noticed


def evaluate(model):
    return jax.jit(partial(model.apply, train=False))


def random_image(*shape):
    return np.random.default_rng(0).normal(size=shape)


def off(ours, expected):
    """Return the largest difference relative to the largest value."""
    return np.abs(np.asarray(ours, np.float64) - np.asarray(expected, np.float64)).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "settings, shape",
    [
        pytest.param({"depth": 2}, (2, 9, 14, 3), marks=pytest.mark.slow),
        ({"depth": 2, "conv_bias": True}, (2, 9, 14, 3)),
        ({"depth": 2, "final_batch_norm": True, "pooling": "ceil"}, (2, 9, 14, 3)),
        ({"depth": 2, "final_batch_norm": True, "conv_bias": True}, (1, 7, 5, 3)),
        pytest.param({"depth": 5}, (1, 33, 45, 3), marks=pytest.mark.slow),
        pytest.param({"depth": 5, "conv_bias": True, "pooling": "ceil"}, (1, 33, 45, 3), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_folded_network_computes_the_same_logits(settings, shape):
    model = SegNet(11, **TINY, **settings)
    variables, image = random_variables(model), random_image(*shape)
    folded = fold_batch_norm(variables, model)
    ours = evaluate(model.clone(folded=True))(folded, np.float32(image))
    expected = evaluate(model)(variables, np.float32(image))
    assert np.ptp(expected, axis=(0, 1, 2)).max() > 0.05  # some values pass the last ReLU
    assert off(ours, expected) < 1e-4

    with jax.enable_x64(True):
        model, variables = model.clone(dtype=jnp.float64), jax.tree.map(np.float64, variables)
        folded = fold_batch_norm(variables, model)
        ours = evaluate(model.clone(folded=True))(folded, image)
        assert off(ours, evaluate(model)(variables, image)) < 1e-6  # logits are rounded to float32 at last


@pytest.mark.parametrize(
    "settings", [{}, {"conv_bias": True}, {"final_batch_norm": True}, {"encoder": "vgg19"}], ids=str
)
def test_folded_variables_have_the_names_and_shapes_that_the_folded_network_wants(settings):
    model, image = SegNet(11, **settings), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    init = [partial(each.init, train=False) for each in (model, model.clone(folded=True))]
    variables, expected = (jax.eval_shape(each, jax.random.key(0), image) for each in init)
    folded = jax.eval_shape(partial(fold_batch_norm, model=model), variables)
    assert folded == expected
    assert folded.keys() == {"params"} and {len(layer) for layer in folded["params"].values()} == {2}


def test_the_folded_program_has_no_batch_norm():
    model, image = SegNet(11, **TINY), jnp.zeros((1, 33, 45, 3))
    variables = random_variables(model)
    whole = evaluate(model).lower(variables, image).as_text()
    folded = evaluate(model.clone(folded=True)).lower(fold_batch_norm(variables, model), image).as_text()
    assert whole.count("stablehlo.rsqrt") == 25
    assert "stablehlo.rsqrt" not in folded and "stablehlo.subtract" not in folded
