"""Check that every network implements the interface, and that violations are detected."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from random_variables import random_variables

from segnet_jax.nn import NETWORKS, SegNet, SegNetBasic, fold_batch_norm, max_pool_with_code, network_interface, segnet
from segnet_jax.nn.batch_norm import BatchNormReLU
from segnet_jax.nn.convolution import Convolution
from segnet_jax.nn.network_interface import (
    LayerSpec,
    check_interface,
    collect_taps,
    convolution_block,
    encoder_convolutions,
    frozen_layers,
    head_layers,
    role_mask,
    section_layers,
    tap,
)

FORMS = [
    *(network(7, width=1 / 16) for network in NETWORKS.values()),
    SegNet(7, width=1 / 16, depth=3, conv_bias=True, final_batch_norm=True, upsampling="learnt"),
    SegNet(7, width=1 / 16, stage_convolutions=(1, 3), pooling="ceil", upsampling="bilinear"),
    SegNetBasic(7, width=1 / 16, depth=2, conv_bias=True, upsampling="learnt", decoder="single-channel"),
]


@pytest.mark.parametrize("model", FORMS, ids=range(len(FORMS)))
def test_every_network_implements_the_interface(model):
    check_interface(model)


class Small(nn.Module):
    """The smallest network that implements the interface; `fault` names a violation."""

    num_classes: int = 3
    folded: bool = False
    frozen_stages: int = 0
    batch_norm_epsilon: float = 0.1
    sync_axis: str | None = None
    dtype: jnp.dtype = jnp.float32
    fault: str = ""

    @property
    def layers(self):
        layers = (*convolution_block("in", "encoder", 1), LayerSpec("out", "convolution", "head"))
        further = {"layer": (LayerSpec("more", "convolution", "decoder"),), "twice": layers[-1:]}
        return (*layers, *further.get(self.fault, ()))

    @nn.compact
    def __call__(self, image, *, train, keys=None):
        x = Convolution(4, use_bias=self.folded and self.fault != "folded", name="in")(image)
        if not self.folded:
            x = BatchNormReLU(0.9, self.batch_norm_epsilon, name="in_bn")(x, train=train)
        if self.fault != "tap":
            tap(self, 1, x, max_pool_with_code(x)[1])
        if self.fault == "part":
            x += self.param("free", nn.initializers.zeros, (4,))[None, None, None]
        return Convolution(self.num_classes, name="out")(x)


@pytest.mark.parametrize(
    "fault, message",
    [
        ("layer", r"differ in \['more'\]"),
        ("twice", "contains out more than once"),
        ("part", r"differ in \['free'\]"),
        ("folded", r"folded convolution in must have a kernel and a bias, got \['kernel'\]"),
        ("tap", r"does not call `tap` in encoder stages \[1\]"),
    ],
)
def test_a_network_that_does_not_implement_the_interface_is_named_with_what_it_breaks(fault, message):
    check_interface(Small())
    with pytest.raises(ValueError, match=message):
        check_interface(Small(fault=fault))


def test_a_part_that_its_kind_does_not_have_is_found(monkeypatch):
    monkeypatch.setitem(network_interface.PARTS, "convolution", {"kernel": "kernel"})
    with pytest.raises(ValueError, match=r"convolution out may only have .*, got \['bias'\]"):
        check_interface(Small())


def test_folding_asks_the_interface_and_no_name():
    """Check that `Small`'s BatchNorm is folded into its layer "in", although no other network has such a name."""
    model, image = Small(), np.random.default_rng(0).normal(size=(1, 8, 9, 3)).astype(np.float32)
    variables = random_variables(model)
    expected = model.apply(variables, image, train=False)
    folded = fold_batch_norm(variables, model)
    assert folded["params"].keys() == {"in", "out"}
    found = nn.relu(Convolution(4, name="in").apply({"params": folded["params"]["in"]}, image))
    found = Convolution(3, name="out").apply({"params": folded["params"]["out"]}, found)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_roles_stages_and_head_of_segnet_by_hand():
    model = SegNet(
        5, width=1 / 16, depth=2, conv_bias=True, final_batch_norm=True, upsampling="learnt", frozen_stages=1
    )
    params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    first = {"conv1_1", "conv1_1_bn", "conv1_2", "conv1_2_bn"}
    assert encoder_convolutions(model) == [["conv1_1", "conv1_2"], ["conv2_1", "conv2_2"]]
    assert frozen_layers(model) == first
    assert section_layers(model, "encoder") == first | {"conv2_1", "conv2_1_bn", "conv2_2", "conv2_2_bn"}
    assert head_layers(model) == {"conv1_1_D", "conv1_1_D_bn"}

    def having(role):
        mask = role_mask(model, role)(params)
        return {(layer, part) for layer, parts in mask.items() for part, is_chosen in parts.items() if is_chosen}

    convolutions = {layer for layer, parts in params.items() if layer.startswith("conv") and "kernel" in parts}
    norms = {f"{layer}_bn" for layer in convolutions}
    assert having("kernel") == {(layer, "kernel") for layer in {*convolutions, "upsample1", "upsample2"}}
    assert having("bias") == {(layer, "bias") for layer in convolutions}
    assert having("scale") == {(layer, "scale") for layer in norms}
    assert having("shift") == {(layer, "bias") for layer in norms}
    with pytest.raises(KeyError):
        role_mask(model, "kernel")({"unknown": {"kernel": 0}})


@pytest.mark.parametrize("network, end", [(SegNet, "_2_bn"), (SegNetBasic, "_bn")])
def test_taps_are_the_pooled_maps_and_cost_nothing_if_not_collected(network, end, monkeypatch):
    model = network(5, width=1 / 16, depth=2)
    variables, image = random_variables(model), np.random.default_rng(0).normal(size=(2, 9, 14, 3)).astype(np.float32)
    logits, taps = collect_taps(model, variables, image, kinds=("batch_norm",))
    np.testing.assert_array_equal(logits, model.apply(variables, image, train=False))
    for stage in (1, 2):
        np.testing.assert_array_equal(taps[f"features{stage}"], taps[f"conv{stage}{end}"])
        np.testing.assert_array_equal(taps[f"code{stage}"], max_pool_with_code(taps[f"features{stage}"])[1])

    def program():
        return jax.jit(lambda *given: model.apply(*given, train=False)).lower(variables, image).as_text()

    tapped = program()
    monkeypatch.setattr(segnet, "tap", lambda *_: None)
    assert program() == tapped
