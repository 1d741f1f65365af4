"""Test the StableHLO export: another process with only JAX gives PyTorch's logits at any size."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_networks import SHAPES, VARIANTS, assert_is_network, expected_of, images_of, subject_of
from jax import export
from random_variables import random_variables

from segnet_jax.exporting import stablehlo
from segnet_jax.exporting.exported_network import ExportedNetwork
from segnet_jax.nn import SegNet, fold_batch_norm
from segnet_jax.nn.preprocessing import RAW

ALONE = """
import sys
import numpy as np
from jax import export
folder, *names = sys.argv[1:]
found = {}
with np.load(f"{folder}/images.npz") as images:
    for number, name in enumerate(names):
        network = export.deserialize(bytearray(open(f"{folder}/{name}.stablehlo", "rb").read()))
        found[f"prediction{number}"], found[f"logits{number}"] = network.call(images[str(number)])
np.savez(f"{folder}/found.npz", **found)
assert not [name for name in sys.modules if name.split(".")[0] in ("segnet_jax", "flax")]
"""


CASES = [("default", SHAPES[0]), ("default", SHAPES[1]), ("caffe", SHAPES[0])]  # odd, then even: with floor a row is
MORE = [(name, SHAPES[0]) for name in ("vgg19", *VARIANTS)]  # missing, then none is


def found_alone(cases, folder):
    """Run each (name of a network, shape) in a process with only JAX; return predictions and logits."""
    for name in {name for name, _ in cases}:
        stablehlo.write(subject_of(name), folder / f"{name}.stablehlo")
    images = {str(number): _images(*case) for number, case in enumerate(cases)}
    np.savez(folder / "images.npz", **images)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    networks = [name for name, _ in cases]
    subprocess.run([sys.executable, "-c", ALONE, folder, *networks], cwd=folder, env=environment, check=True)
    with np.load(folder / "found.npz") as arrays:
        return [(arrays[f"prediction{number}"], arrays[f"logits{number}"]) for number in range(len(cases))]


@pytest.mark.slow
@pytest.mark.parametrize("cases", [CASES, MORE], ids=["published", "others"])
def test_jax_alone_gives_pytorchs_logits_from_the_file(cases, tmp_path):
    for (name, shape), found in zip(cases, found_alone(cases, tmp_path), strict=True):
        assert_is_network(*found, expected_of(name, subject_of(name), _images(name, shape)))


def _images(name, shape):
    return images_of(shape, pixels=subject_of(name).pixels)


def test_the_modules_for_cuda_and_tpu_deserialize_and_can_be_called_there(tmp_path):
    stablehlo.write(subject_of("default"), tmp_path / "network")
    network = export.deserialize(bytearray((tmp_path / "network").read_bytes()))
    assert network.platforms == ("cpu", "cuda", "tpu")
    images = jax.ShapeDtypeStruct((2, 45, 61, 3), jnp.uint8)
    for platform in network.platforms:  # a program that calls it is compiled for a platform that is not here
        there = export.export(jax.jit(network.call), platforms=[platform])(images)
        prediction, logits = export.deserialize(there.serialize()).out_avals
        assert (prediction.shape, prediction.dtype) == ((2, 45, 61), np.uint8)
        assert (logits.shape, logits.dtype) == ((2, 45, 61, 5), np.float32)


def test_an_image_too_small_for_the_poolings_is_refused(tmp_path):
    subject = subject_of("matlab")
    stablehlo.write(subject, tmp_path / "network")
    network = export.deserialize(bytearray((tmp_path / "network").read_bytes()))
    assert subject.smallest == 16
    network.call(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="refining shapes"):  # and JAX prints which: height >= 16
        network.call(np.zeros((1, 15, 40, 3), np.uint8))


def test_wide_convolutions_are_plain_ones_where_the_size_is_open(tmp_path):
    model = SegNet(2, depth=3)  # on a CPU, 256 channels use Winograd tiles if the size is known
    variables = fold_batch_norm(random_variables(model), model)
    subject = ExportedNetwork(model.clone(folded=True), variables, {}, RAW, {})
    traced = jax.jit(subject.predict).trace(jax.ShapeDtypeStruct((1, 360, 480, 3), jnp.uint8))
    assert "dot_general" in str(traced.jaxpr)
    stablehlo.write(subject, tmp_path / "network")
    text = export.deserialize(bytearray((tmp_path / "network").read_bytes())).mlir_module()
    assert "stablehlo.convolution" in text or "dynamic_conv" in text
    assert "dot_general" not in text
