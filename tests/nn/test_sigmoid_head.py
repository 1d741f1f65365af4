"""Test the sigmoid head: one channel with binary cross-entropy, in training and in exported networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from segnet_jax.constants import VOID
from segnet_jax.exporting.exported_network import ExportedNetwork
from segnet_jax.nn import SegNet, SegNetBasic, fold_batch_norm
from segnet_jax.nn.network_interface import check_interface, head_layers
from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.training.losses import cross_entropy_sum

MODELS = [
    SegNet(2, width=1 / 16, depth=2, output="sigmoid"),
    SegNetBasic(2, width=1 / 16, depth=2, output="sigmoid"),
]


@pytest.mark.parametrize(
    "model", [pytest.param(MODELS[0], marks=pytest.mark.slow), *MODELS[1:]], ids=["segnet", "segnet-basic"]
)
def test_the_head_has_one_channel_and_the_first_class_the_logit_0(model):
    check_interface(model)
    variables = random_variables(model, 0)
    (head,) = head_layers(model)
    assert variables["params"][head]["kernel"].shape[-1] == variables["params"][head]["bias"].shape[-1] == 1
    image = jnp.float32(np.random.default_rng(0).normal(size=(2, 13, 18, 3)))
    logits = model.apply(variables, image, train=False)
    assert logits.shape == (2, 13, 18, 2) and logits.dtype == jnp.float32
    assert not logits[..., 0].any() and np.std(logits[..., 1]) > 0
    twin = model.clone(output="softmax")
    padded = {
        part: jnp.pad(each, [(0, 0)] * (each.ndim - 1) + [(1, 0)]) for part, each in variables["params"][head].items()
    }
    both = twin.apply(variables | {"params": variables["params"] | {head: padded}}, image, train=False)
    np.testing.assert_allclose(logits, both, atol=1e-5)
    folded = model.clone(folded=True).apply(fold_batch_norm(variables, model), image, train=False)
    np.testing.assert_allclose(folded, logits, atol=1e-3)


def test_its_cross_entropy_and_gradient_are_those_of_a_weighted_sigmoid():
    random = np.random.default_rng(1)
    z = random.normal(0, 3, (2, 4, 5))
    label = random.choice(np.array([0, 1, VOID], np.uint8), z.shape)
    weights = np.array([0.5, 3.0])

    def loss(z):
        return cross_entropy_sum(jnp.stack([jnp.zeros_like(z), z], -1), jnp.asarray(label), jnp.float32(weights))

    value, gradient = jax.value_and_grad(loss)(jnp.float32(z))
    p = 1 / (1 + np.exp(-z))
    valid, y = label != VOID, label == 1
    weight = np.where(y, weights[1], weights[0]) * valid
    np.testing.assert_allclose(value, -(weight * np.where(y, np.log(p), np.log(1 - p))).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, weight * (p - y), atol=1e-5)


@pytest.mark.slow
def test_onnx_has_the_networks_logits(tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from segnet_jax.exporting import onnx

    model = MODELS[0]
    variables = random_variables(model, 0)
    folded = jax.tree.map(np.asarray, fold_batch_norm(variables, model))
    about = {"classes": ["background", "disc"]}
    subject = ExportedNetwork(model.clone(folded=True), folded, variables, TORCH, about)
    onnx.write(subject, tmp_path / "network.onnx")
    images = np.random.default_rng(2).integers(0, 256, (2, 21, 30, 3), np.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    prediction, logits = session.run(None, {"images": images})
    expected = np.asarray(subject.predict(jnp.asarray(images))[1])
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    np.testing.assert_array_equal(prediction, logits[..., 1] > 0)
