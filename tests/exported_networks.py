"""Small networks to export, and their PyTorch equivalents as reference."""

from functools import partial

import jax
import numpy as np
import pytest
from random_variables import random_variables

from segnet_jax.constants import RGB, Pixels
from segnet_jax.exporting.exported_network import ExportedNetwork
from segnet_jax.nn import SegNet, SegNetBasic, UNet, fold_batch_norm
from segnet_jax.nn.preprocessing import RAW, TORCH, Preprocessing

CLASSES = 5
WIDTH = 0.0625
NETWORKS = {
    "default": {},
    "caffe": {"pooling": "ceil", "conv_bias": True},
    "matlab": {"depth": 4, "final_batch_norm": True},
    "vgg19": {"encoder": "vgg19", "depth": 3, "pooling": "ceil"},
}
VARIANTS = {  # without a PyTorch twin here: upsampling with both poolings, encoder addition, SegNet-Basic, U-Net
    "bilinear": partial(SegNet, depth=2, upsampling="bilinear"),
    "bilinear-caffe": partial(SegNetBasic, depth=2, upsampling="bilinear", pooling="ceil"),
    "learnt": partial(SegNetBasic, depth=2, upsampling="learnt", encoder_addition=True),
    "learnt-caffe": partial(SegNet, depth=2, upsampling="learnt", pooling="ceil", encoder_addition=True),
    "single-channel": partial(SegNetBasic, depth=2, decoder="single-channel"),
    "channels": partial(SegNet, depth=2, channels=5),
    "unet": partial(UNet, depth=3),
    "unet-learnt": partial(UNet, depth=2, upsampling="learnt", pooling="ceil", output="sigmoid"),
}
SHAPES = [(1, 45, 61), (3, 32, 38)]  # 45-22-11-5-2-1 with floor, 45-23-12-6-3-2 with ceil
ODD_NAMES = ["<script>alert(1)</script>", "Straße 道路", 'a "quoted", b', "tab\tnewline\n", "\U0001f6b2"]


def subject_of(name, seed=0):
    """Return a random network of NETWORKS or VARIANTS, ready for export."""
    build = VARIANTS.get(name) or partial(SegNet, **NETWORKS[name])
    model = build(2 if build.keywords.get("output") == "sigmoid" else CLASSES, width=WIDTH)
    variables = random_variables(model, seed)
    folded = jax.tree.map(np.asarray, fold_batch_norm(variables, model))
    preprocessing, pixels = RAW if isinstance(model, SegNetBasic) else TORCH, RGB
    if model.channels != 3:
        preprocessing, pixels = Preprocessing((20_000.0,) * 5, (9_000.0,) * 5), Pixels(5, 16)
    about = {"classes": ODD_NAMES, "step": 7}
    return ExportedNetwork(model.clone(folded=True), folded, variables, preprocessing, about, pixels=pixels)


def images_of(shape, seed=0, pixels=RGB):
    """Return images of random color blocks, which cause ties in many windows."""
    shape_in_blocks = shape[0], -(-shape[1] // 4), -(-shape[2] // 4), pixels.channels
    blocks = np.random.default_rng(seed).integers(0, 2**pixels.bits, shape_in_blocks, pixels.dtype)
    return blocks.repeat(4, 1).repeat(4, 2)[:, : shape[1], : shape[2]]


def expected_of(name, subject, images):
    """Return float64 logits of the PyTorch equivalent, or of the trained network if there is none (VGG-19, VARIANTS).

    test_segnet_basic.py and test_unet.py compare VARIANTS with PyTorch layers.
    """
    if name in VARIANTS:
        return subject.jitted(subject.model.clone(folded=False), subject.trained)(images)[1]
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[peers]' runs these tests")
    from torch_segnet import TorchSegNet, load_flax

    settings = dict(NETWORKS[name])
    if settings.pop("encoder", "vgg16") == "vgg19":
        return subject.jitted(subject.model.clone(folded=False), subject.trained)(images)[1]
    twin = TorchSegNet(CLASSES, WIDTH, ceil_mode=settings.pop("pooling", "floor") == "ceil", **settings)
    load_flax(twin, subject.trained)
    mean, std = (np.array(each) for each in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    normal = torch.tensor(((images - mean) / std).transpose(0, 3, 1, 2))
    with torch.no_grad():
        return twin.eval().double()(normal).numpy().transpose(0, 2, 3, 1)


def assert_is_network(prediction, logits, expected):
    """Assert equality within float32 rounding, and that predictions are the argmax of the logits."""
    assert prediction.dtype == np.uint8 and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()), rtol=0)
    np.testing.assert_array_equal(prediction, np.argmax(logits, axis=-1))
    assert (prediction == np.argmax(expected, axis=-1)).mean() >= 0.9999
