"""Compare U-Net with its PyTorch twin, and check its size, its FLOPs and its parts in common with SegNet."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from segnet_jax.benchmarks.roofline import work_of
from segnet_jax.nn import SegNet, UNet, fold_batch_norm
from segnet_jax.nn.network_interface import encoder_convolutions, head_layers

CLASSES, WIDTH, SHAPE = 11, 1 / 16, (2, 45, 61, 3)  # odd at several stages
VARIANTS = [{}, {"pooling": "ceil", "conv_bias": True, "upsampling": "learnt"}]


def count(model):
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def error(ours, theirs):
    """Return the largest difference relative to the largest value."""
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def twin_of(model, variables, pooling="floor", **settings):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[peers]' runs these tests")
    from torch_segnet import load_flax
    from torch_unet import TorchUNet

    torch.set_num_threads(1)
    twin = TorchUNet(CLASSES, model.width, model.depth, ceil_mode=pooling == "ceil", **settings)
    load_flax(twin, variables)
    return twin


def in_torch(twin, image):
    import torch

    dtype = next(twin.parameters()).dtype
    return twin(torch.tensor(image.transpose(0, 3, 1, 2), dtype=dtype))


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_logits_in_float32_equal_the_twins_to_1e_4(settings):
    model = UNet(CLASSES, width=WIDTH, depth=3, **settings)
    apply = jax.jit(partial(model.apply, train=False))
    errors = []
    for seed in range(3):
        variables = random_variables(model, seed)
        image = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
        expected = in_torch(twin_of(model, variables, **settings).eval(), image).detach().numpy().transpose(0, 2, 3, 1)
        errors.append(error(apply(variables, image), expected))
    folded = jax.jit(partial(model.clone(folded=True).apply, train=False))
    errors.append(error(folded(fold_batch_norm(variables, model), image), expected))
    assert max(errors) < 1e-4, errors


@pytest.mark.parametrize("settings", [pytest.param(VARIANTS[0], marks=pytest.mark.slow), VARIANTS[1]], ids=str)
def test_a_training_steps_logits_and_every_parameters_gradient_equal_the_twins(settings):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[peers]' runs these tests")
    from torch.nn import functional
    from torch_segnet import to_flax

    model = UNet(CLASSES, width=WIDTH, depth=3, dtype=jnp.float64, **settings)
    variables = random_variables(model)
    twin = twin_of(model, variables, **settings).double()
    rng = np.random.default_rng(3)
    image, label = rng.normal(size=SHAPE), rng.integers(0, CLASSES, SHAPE[:3])

    def loss(params, statistics):
        variables = {"params": params, "batch_stats": statistics}
        logits, _ = model.apply(variables, image, train=True, mutable=["batch_stats"])
        known = jax.nn.one_hot(label, CLASSES, dtype=logits.dtype)
        return -(jax.nn.log_softmax(logits) * known).sum() / label.size, logits

    with jax.enable_x64(True):
        variables = jax.tree.map(np.float64, variables)
        gradients, logits = jax.device_get(
            jax.jit(jax.grad(loss, has_aux=True))(variables["params"], variables["batch_stats"])
        )
    theirs = in_torch(twin.train(), image)
    assert error(logits, theirs.detach().numpy().transpose(0, 2, 3, 1)) < 1e-6
    import torch

    functional.cross_entropy(theirs, torch.tensor(label)).backward()
    expected = to_flax(twin, lambda tensor: tensor.grad)
    assert {("params", layer, part) for layer, parts in gradients.items() for part in parts} == expected.keys()
    for (_, layer, part), their in expected.items():
        off = np.linalg.norm(gradients[layer][part] - their) / np.linalg.norm(their)
        # A convolution's bias before BatchNorm has no effect: its gradient is only rounding.
        assert off < 1e-5 or np.linalg.norm(their) < 1e-12, f"the gradient of {layer}/{part} is off by {off:.2g}"


def test_its_number_of_parameters_by_hand():
    """Count one stage of 64 channels: two convolutions, two in the middle, two above with 128 inputs, and the head."""
    kernels = 9 * (3 * 64 + 64 * 64 + 2 * 64 * 64 + 128 * 64 + 64 * 64) + 64 * CLASSES
    assert count(UNet(CLASSES, depth=1)) == kernels + 6 * 2 * 64 + CLASSES
    assert count(UNet(CLASSES, upsampling="learnt")) - count(UNet(CLASSES)) == 16 * (512 + 512 + 256 + 128 + 64)


def test_its_encoder_has_segnets_layers_and_its_head_is_one_layer():
    assert encoder_convolutions(UNet(CLASSES)) == encoder_convolutions(SegNet(CLASSES))
    assert UNet(CLASSES).encoder_layers == SegNet(CLASSES).encoder_layers
    assert head_layers(UNet(CLASSES)) == {"head"}


def test_its_flop_by_hand():
    """Count one stage of 2 channels at 8x12, the middle at 4x6, and the 1x1 head."""
    model = UNet(7, depth=1, width=1 / 32)
    full, half = 8 * 12 * 9, 4 * 6 * 9
    forward = full * (3 * 2 + 2 * 2) + half * (2 * 2 + 2 * 2) + full * (4 * 2 + 2 * 2) + 8 * 12 * 2 * 7
    work = work_of(model, 8, 12)
    assert work.infer_flop == 2 * forward
    assert work.train_flop == 2 * (3 * forward - full * 3 * 2)  # the image needs no gradient


def test_a_sigmoid_head_has_one_channel_and_gives_two_logits():
    model = UNet(2, depth=1, width=1 / 32, output="sigmoid")
    variables = random_variables(model)
    logits = model.apply(variables, jnp.ones((1, 8, 8, 3)), train=False)
    assert variables["params"]["head"]["kernel"].shape == (1, 1, 2, 1) and logits.shape == (1, 8, 8, 2)
    assert not logits[..., 0].any() and logits[..., 1].any()
