"""Test the training step's residuals between forward and backward pass, traced at full size but not computed."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import ad_checkpoint

from segnet_jax.nn import SegNet, normalize
from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.training.losses import cross_entropy_sum
from segnet_jax.training.state import variable_shapes

BYTES = {"f32": 4, "bf16": 2, "f16": 2, "i32": 4, "u8": 1, "bool": 1}


def kept(dtype, capsys, **settings):
    """Return the megabytes of residuals of one 360x480 image, by kind."""
    model = SegNet(11, dtype=dtype, **settings)
    variables = variable_shapes(model)

    def loss(params, batch_stats, image, label):
        logits, _ = model.apply(
            {"params": params, "batch_stats": batch_stats},
            normalize(image, TORCH, model.dtype),
            train=True,
            mutable=["batch_stats"],
        )
        return cross_entropy_sum(logits, label, jnp.ones(11))

    image, label = (jax.ShapeDtypeStruct((1, 360, 480, *channels), jnp.uint8) for channels in ((3,), ()))
    ad_checkpoint.print_saved_residuals(loss, variables["params"], variables["batch_stats"], image, label)
    kinds = Counter()
    for line in capsys.readouterr().out.splitlines():
        kind, sizes, source = re.fullmatch(r"(\w+)\[([\d,]*)\] (.*)", line).groups()
        sizes = [int(size) for size in sizes.split(",") if size]
        kinds[part_of_step(sizes, source)] += BYTES[kind] * np.prod(sizes) / 1e6
    return kinds


def part_of_step(sizes, source):
    """Classify a residual by its shape and source line."""
    if source.startswith(("from the argument", "from a constant", "from a literal")):
        return "arguments"  # they are in memory anyway
    if "/nn/" not in source:
        return "loss"
    return "weights" if sizes[:2] == [3, 3] else "maps"


def describe(kinds):
    return ", ".join(f"{name} {megabytes:.1f} MB" for name, megabytes in kinds.items())


@pytest.mark.parametrize("pooling", ["floor", "ceil"])
def test_a_step_in_bfloat16_keeps_at_most_400_megabytes_an_image(pooling, capsys):
    kinds = kept(jnp.bfloat16, capsys, pooling=pooling)
    assert 300 < kinds["weights"] + kinds["maps"] + kinds["loss"] <= 400, describe(kinds)
    assert kinds["arguments"] < 0.1, describe(kinds)  # parameters are kept in 16 bits, once a step: 29.4 million
    assert 58.8 < kinds["weights"] < 59.0, describe(kinds)


@pytest.mark.parametrize("pooling", ["floor", "ceil"])
def test_the_network_in_float32_keeps_at_most_634_megabytes_an_image(pooling, capsys):
    kinds = kept(jnp.float32, capsys, pooling=pooling)
    assert 500 < kinds["maps"] <= 634, describe(kinds)
    assert kinds["weights"] == 0 and 117.7 < kinds["arguments"] < 117.9, describe(kinds)  # the parameters as they are
    assert kinds["loss"] < 10, describe(kinds)
