"""Test the safetensors export: PyTorch's SegNet loads the tensors by name and gives the network's logits."""

import json

import numpy as np
import pytest
from exported_networks import CLASSES, NETWORKS, ODD_NAMES, WIDTH, expected_of, images_of, subject_of

from segnet_jax.exporting import safetensors

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[peers]' runs these tests")

from safetensors import safe_open  # noqa: E402
from torch_segnet import LAST, TorchSegNet  # noqa: E402


@pytest.mark.parametrize("name", ["default", "caffe", pytest.param("matlab", marks=pytest.mark.slow)])
def test_pytorch_loads_the_tensors_by_name_and_gives_the_same_logits(name, tmp_path):
    subject = subject_of(name)
    safetensors.write(subject, tmp_path / "network.safetensors")
    settings = dict(NETWORKS[name])
    twin = TorchSegNet(CLASSES, WIDTH, ceil_mode=settings.pop("pooling", "floor") == "ceil", **settings)
    with safe_open(tmp_path / "network.safetensors", "pt") as file:
        state = {_in_twin(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    left = twin.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and all(key.endswith("num_batches_tracked") for key in left.missing_keys)
    images = images_of((2, 45, 61))
    normal = (images - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    with torch.no_grad():
        logits = twin.eval().double()(torch.tensor(normal.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    _, ours = safetensors.read(subject, tmp_path / "network.safetensors")(images)
    np.testing.assert_allclose(logits, expected_of(name, subject, images), rtol=1e-9)
    np.testing.assert_allclose(ours, logits, atol=1e-4 * max(1, np.abs(logits).max()))


def _in_twin(key):
    """Map SegNet-Tutorial's layer and PyTorch's tensor to the name in the PyTorch model."""
    layer, tensor = key.split(".")
    kind = "normalizations" if layer.endswith("_bn") else "convolutions"
    return f"{kind}.{layer.removesuffix('_bn')}.{tensor}"


def test_the_names_are_those_of_the_published_layers(tmp_path):
    safetensors.write(subject_of("default"), tmp_path / "network.safetensors")
    with safe_open(tmp_path / "network.safetensors", "np") as file:
        names, metadata = set(file.keys()), file.metadata()
    parts = ("weight", "bias", "running_mean", "running_var")
    assert {f"conv5_3_D_bn.{part}" for part in parts} | {"conv1_1.weight", f"{LAST}.weight", f"{LAST}.bias"} <= names
    assert len(names) == 26 + 1 + 25 * 4  # kernels, the last bias, BatchNorms: the prototxt's 26 and 25
    assert json.loads(metadata["classes"]) == ODD_NAMES


def test_a_file_with_an_unexpected_tensor_is_refused(tmp_path):
    safetensors.write(subject_of("default"), tmp_path / "network.safetensors")
    with pytest.raises(ValueError, match="conv5_3_bn.running_var"):
        safetensors.read(subject_of("matlab"), tmp_path / "network.safetensors")
