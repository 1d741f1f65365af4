"""Test SegNet-Basic, alternative decoders and dropout against PyTorch's layers and hand-computed values."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from segnet_jax.nn.dropout import drop, fold_in_layer
from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.segnet import SegNet
from segnet_jax.nn.segnet_basic import SegNetBasic, local_response_normalization
from segnet_jax.nn.upsampling import bilinear_kernel, upsample

EPSILON = 1e-5
VARIANTS = [
    {},
    {"pooling": "ceil", "conv_bias": True},
    {"decoder": "single-channel"},
    {"encoder_addition": True, "pooling": "ceil"},
    {"upsampling": "bilinear"},
    {"upsampling": "learnt"},
]


def evaluated(model):
    """Return a jitted function of variables and image that returns the logits in evaluation mode."""
    return jax.jit(partial(model.apply, train=False))


def count(model):
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


# -- sizes


@pytest.mark.parametrize(
    "variant, expected",
    [
        # 7*7*3*64 + 6 * 7*7*64*64 + 7*7*64*64 + 64*11 kernels, 8 * 64 + 11 biases, 8 * 128 of BatchNorm
        ({}, 1_416_587),
        ({"encoder_addition": True}, 1_416_587),
        ({"upsampling": "bilinear"}, 1_416_587),
        ({"upsampling": "learnt"}, 1_416_587 + 4 * 16 * 64),  # a kernel of 4x4 for each channel of four stages
        ({"decoder": "single-channel"}, 1_416_587 - 4 * 7 * 7 * 64 * 63),
    ],
)
def test_segnet_basic_and_its_variants_have_the_published_number_of_parameters(variant, expected):
    assert count(SegNetBasic(11, conv_bias=True, **variant)) == expected
    assert variant or round(expected / 1.425e6, 2) == 0.99  # the paper states 1.425 million


@pytest.mark.parametrize(
    "variant, more",
    [({"encoder_addition": True}, 0), ({"upsampling": "bilinear"}, 0), ({"upsampling": "learnt"}, 16 * 1472)],
)
def test_variants_of_the_full_network_add_what_they_learn(variant, more):
    assert count(SegNet(11, **variant)) - count(SegNet(11)) == more  # 1472 = 64 + 128 + 256 + 512 + 512


def test_no_depth_beyond_four():
    with pytest.raises(ValueError, match="1 to 4, got 5"):
        count(SegNetBasic(11, depth=5))


# -- the forward pass, layer by layer in PyTorch


def in_torch(variables, image, depth=4, pooling="floor", decoder="full", encoder_addition=False, upsampling="indices"):
    """Return SegNet-Basic's logits in evaluation mode, float64 [B,H,W,C], computed by PyTorch's layers."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    params, statistics = variables["params"], variables["batch_stats"]

    def tensor(array):
        return torch.from_numpy(np.array(array, np.float64))

    def convolved(x, name, groups=1):
        layer = params[name]
        bias = tensor(layer["bias"]) if "bias" in layer else None
        kernel = tensor(layer["kernel"]).permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2, groups=groups)

    def normalized(x, name):
        norm, running = params[f"{name}_bn"], statistics[f"{name}_bn"]
        arrays = map(tensor, (running["mean"], running["var"], norm["scale"], norm["bias"]))
        return functional.batch_norm(x, *arrays, eps=EPSILON)

    x = functional.local_response_norm(tensor(image).permute(0, 3, 1, 2), size=5, alpha=1e-4, beta=0.75, k=1.0)
    pooled = []
    for stage in range(1, depth + 1):
        maps = functional.relu(normalized(convolved(x, f"conv{stage}"), f"conv{stage}"))
        x, indices = functional.max_pool2d(maps, 2, 2, ceil_mode=pooling == "ceil", return_indices=True)
        pooled.append((maps, indices))
    for stage in range(depth, 0, -1):
        maps, indices = pooled.pop()
        size = maps.shape[-2:]
        if upsampling == "indices":
            x = functional.max_unpool2d(x, indices, 2, 2, output_size=size)
        elif upsampling == "bilinear":
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        else:
            kernel = tensor(params[f"upsample{stage}"]["kernel"]).permute(3, 2, 0, 1)
            x = functional.pad(x, (1, 1, 1, 1), mode="replicate")
            x = functional.conv_transpose2d(x, kernel, stride=2, padding=3, groups=x.shape[1])
        name = f"conv_decode{stage}"
        x = normalized(convolved(x, name, groups=x.shape[1] if decoder == "single-channel" else 1), name)
        x = x + maps if encoder_addition else x
    return convolved(x, "conv_classifier").permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_forward_pass_is_that_of_pytorchs_layers(variant):
    pytest.importorskip("torch")
    size = (45, 61) if variant.get("pooling") == "ceil" or not variant else (48, 64)  # interpolation: see below
    variables = random_variables(SegNetBasic(5, width=1 / 16, **variant))
    with jax.enable_x64(True):
        model = SegNetBasic(5, width=1 / 16, dtype=jnp.float64, **variant)
        image = np.random.default_rng(1).integers(0, 256, (2, *size, 3)).astype(np.float64)
        ours = evaluated(model)(jax.tree.map(np.float64, variables), image)
    expected = in_torch(variables, image, **{name: variant[name] for name in variant if name != "conv_bias"})
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()  # the last step is float32


def test_the_folded_network_computes_the_same():
    for variant in VARIANTS[2:4]:
        model = SegNetBasic(5, width=1 / 16, **variant)
        variables = random_variables(model, 0)
        image = np.random.default_rng(1).integers(0, 256, (1, 16, 32, 3)).astype(np.float32)
        folded = evaluated(model.clone(folded=True))(fold_batch_norm(variables, model), image)
        expected = np.asarray(evaluated(model)(variables, image))
        assert np.abs(folded - expected).max() < 1e-3 * np.abs(expected).max()


def test_local_response_normalization_of_a_pixel_by_hand():
    pixel = jnp.array([[[[3.0, 4.0, 12.0]]]])  # squares 9 + 16 + 144 = 169
    expected = np.array([3.0, 4.0, 12.0]) / (1 + 0.5 / 5 * 169) ** 0.75
    np.testing.assert_allclose(local_response_normalization(pixel, alpha=0.5)[0, 0, 0], expected, rtol=1e-6)


# -- upsampling


@pytest.mark.parametrize("height, width", [(6, 10), (7, 11), (5, 9)])
def test_the_bilinear_kernel_interpolates_halfway_between_pixels(height, width):
    """Check that a linear ramp stays one; edge pixels are repeated beyond the border."""
    rows, columns = np.arange(3.0, dtype=np.float32), np.arange(5.0, dtype=np.float32)
    plane = jnp.asarray(10 * rows[:, None] + columns)[None, :, :, None]
    ours = upsample(plane, bilinear_kernel(1), height, width)[0, :, :, 0]
    down = np.clip((np.arange(height) + 0.5) / 2 - 0.5, 0, 2)
    across = np.clip((np.arange(width) + 0.5) / 2 - 0.5, 0, 4)
    np.testing.assert_allclose(ours, 10 * down[:, None] + across, rtol=1e-6)


def test_a_learnt_kernel_is_a_transposed_convolution_of_each_channel():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 3, 2, 4)).astype(np.float32), rng.normal(size=(4, 4, 1, 4)).astype(np.float32)
    expected = np.zeros((1, 12, 10, 4))
    edged = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    for i, j in np.ndindex(edged.shape[1:3]):
        expected[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += edged[:, i, j][:, None, None] * kernel[:, :, 0]
    np.testing.assert_allclose(upsample(x, kernel, 6, 4), expected[:, 3:9, 3:7], rtol=1e-5, atol=1e-5)


# -- dropout


def test_dropped_numbers_are_zero_and_the_others_make_up_for_them():
    x = jnp.ones((64, 8, 8, 16))
    dropped = np.asarray(drop(x, jax.random.split(jax.random.key(0), 64), 0.25))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert abs((dropped == 0).mean() - 0.25) < 0.01  # 65,536 draws: a standard deviation is 0.0017


def test_an_images_mask_does_not_depend_on_its_place_in_the_batch():
    x, keys = jnp.ones((3, 4, 4, 8)), jax.random.split(jax.random.key(0), 3)
    together = drop(x, keys, 0.5)
    for i in range(3):
        np.testing.assert_array_equal(drop(x[i : i + 1], keys[i : i + 1], 0.5), together[i : i + 1])
    assert not np.array_equal(together[0], together[1])
    assert not np.array_equal(drop(x, fold_in_layer(keys, 1), 0.5), drop(x, fold_in_layer(keys, 2), 0.5))


@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_a_mask_is_the_same_in_every_precision(rate):
    x, keys = np.ones((2, 16, 16, 8)), jax.random.split(jax.random.key(0), 2)
    mask = np.asarray(drop(jnp.asarray(x, jnp.float32), keys, rate)) == 0
    for dtype in (jnp.bfloat16, jnp.float16):
        np.testing.assert_array_equal(drop(jnp.asarray(x, dtype), keys, rate) == 0, mask)
    with jax.enable_x64(True):  # as in the float64 reference of `portability measure`
        dropped = np.asarray(drop(jnp.asarray(x, jnp.float64), keys, rate))
    assert dropped.dtype == np.float64
    np.testing.assert_array_equal(dropped == 0, mask)
    np.testing.assert_array_equal(dropped[~mask], 1 / (1 - rate))


@pytest.mark.parametrize(
    "model, places",
    [
        (SegNet(3, width=1 / 32, dropout=0.5), 6),
        (SegNet(3, width=1 / 32, depth=3, dropout=0.5), 2),
        (SegNetBasic(3, width=1 / 16, dropout=0.5), 4),
    ],
)
def test_dropout_is_at_the_published_places_and_needs_keys(model, places, monkeypatch):
    seen = []
    monkeypatch.setattr("segnet_jax.nn.segnet.drop", lambda x, keys, rate: seen.append((x.shape[1], rate)) or x)
    image = jnp.zeros((1, 32, 32, 3))
    init = partial(model.init, jax.random.key(0), image, train=False)
    jax.eval_shape(init)
    assert not seen
    jax.eval_shape(partial(init, keys=jax.random.split(jax.random.key(0), 1)))
    sizes = {6: [4, 2, 1, 2, 4, 8], 2: [4, 8], 4: [4, 2, 4, 8]}[places]  # rows: after poolings, after decoder stages
    assert seen == [(size, 0.5) for size in sizes]
