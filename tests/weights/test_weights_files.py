"""Check that every file format gives the same VGG."""

import io
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import weight_files as files
from safetensors.numpy import save_file

from segnet_jax.nn.preprocessing import CAFFE, RAW, TORCH, Preprocessing
from segnet_jax.nn.segnet import ENCODERS
from segnet_jax.weights.formats import torch as torch_files
from segnet_jax.weights.formats.npz import save_npz
from segnet_jax.weights.load import read_vgg

OWN = Preprocessing(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))


def torch_save(path, state, **how):
    """Save the tensors with torch itself."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, path, **how)


FORMS = {  # name -> file name, its preprocessing, writer
    "keras": ("w.h5", CAFFE, files.write_keras),
    "keras-3": ("w.weights.h5", CAFFE, files.write_keras3),
    "keras-3-archive": ("w.keras", CAFFE, files.write_keras3_archive),
    "onnx": ("w.onnx", TORCH, files.write_onnx),
    "torch-zip": ("w.pth", TORCH, lambda path, convs: files.write_torch_zip(path, files.state_dict(convs))),
    "torch-legacy": ("w.pth", TORCH, lambda path, convs: files.write_torch_legacy(path, files.state_dict(convs))),
    "torch-itself": ("w.pth", TORCH, lambda path, convs: torch_save(path, files.state_dict(convs))),
    "torch-itself-legacy": (
        "w.pth",
        TORCH,
        lambda path, convs: torch_save(path, files.state_dict(convs), _use_new_zipfile_serialization=False),
    ),
    "safetensors": ("w.safetensors", TORCH, lambda path, convs: save_file(files.state_dict(convs), path)),
    "npz": ("w.npz", OWN, lambda path, convs: files.write_npz(path, files.own_names(convs))),
    "caffe-2014": ("w.caffemodel", CAFFE, lambda path, convs: files.write_caffe(path, convs, "layers")),
    "caffe": ("w.caffemodel", CAFFE, lambda path, convs: files.write_caffe(path, convs, "layer")),
}

SMALL_FORMS = {
    "keras-2": lambda path, convs: files.write_keras(path, convs, "{layer}/kernel:0 {layer}/bias:0"),
    "keras-2-flat": lambda path, convs: files.write_keras(path, convs, "kernel:0 bias:0"),
    "keras-classifier": lambda path, convs: files.write_keras(path, convs, classifier=True),
    "keras-3-whole": lambda path, convs: files.write_keras(
        path, convs, "{layer}/kernel {layer}/bias", "model_weights/"
    ),
    "keras-3-nested": lambda path, convs: files.write_keras3(path, convs, "layers/functional/layers/"),
    "keras-3-larger": lambda path, convs: files.write_keras3_archive(path, convs, more=2),
    "onnx-constants": lambda path, convs: files.write_onnx(path, convs, style="constants"),
    "onnx-unfused": lambda path, convs: files.write_onnx(path, convs, style="unfused"),
    "onnx-typed": lambda path, convs: files.write_onnx(path, convs, form="typed"),
    "onnx-float64": lambda path, convs: files.write_onnx(path, convs, dtype=np.float64),
    "onnx-larger": lambda path, convs: files.write_onnx(path, convs | {"conv6_1": convs["conv1_1"]}),
    "caffe-unpacked": lambda path, convs: files.write_caffe(path, convs, "unpacked"),
    "caffe-classifier": lambda path, convs: files.write_caffe(path, convs, classifier=True),
    "npz-compressed": lambda path, convs: files.write_npz(path, files.own_names(convs), np.savez_compressed),
    "safetensors-own": lambda path, convs: save_file(files.own_names(convs), path),
    "torch-0.4": lambda path, convs: files.write_torch_legacy(path, files.state_dict(convs), files.REBUILD_V2),
    "torch-classifier": lambda path, convs: files.write_torch_zip(
        path, files.state_dict(convs) | {"classifier.0.weight": np.full((2, 2), np.nan, np.float32)}
    ),
}


@pytest.fixture
def small(monkeypatch):
    return files.shrink(monkeypatch, ENCODERS)


@pytest.fixture(scope="module")
def full():
    return files.random_vgg(files.VGG16)


def assert_holds(vgg, convs, batch_norm=None):
    assert list(vgg.convs) == list(convs)
    for conv, (kernel, bias) in convs.items():
        weights = vgg.convs[conv]
        assert weights.kernel.dtype == weights.bias.dtype == np.float32
        np.testing.assert_array_equal(weights.kernel, kernel, err_msg=conv)
        np.testing.assert_array_equal(weights.bias, bias, err_msg=conv)
        if batch_norm is None:
            assert weights.batch_norm is None
            continue
        for part, values in zip(("scale", "bias", "mean", "var"), batch_norm[conv], strict=True):
            np.testing.assert_array_equal(getattr(weights.batch_norm, part), values, err_msg=conv)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_full_size_vgg16_and_its_own_preprocessing(form, full, tmp_path):
    filename, preprocessing, write = FORMS[form]
    path = tmp_path / filename
    write(path, full)
    vgg = read_vgg(path, "vgg16")
    path.unlink()  # 59 MB each
    assert_holds(vgg, full)
    assert (vgg.encoder, vgg.preprocessing, vgg.batch_norm_epsilon) == ("vgg16", preprocessing, None)


@pytest.mark.parametrize("form", SMALL_FORMS)
def test_variants_of_a_form_give_the_same_vgg_under_any_file_name(form, small, tmp_path):
    path = tmp_path / "weights"
    SMALL_FORMS[form](path, small)
    assert_holds(read_vgg(path, "vgg16"), small)


@pytest.mark.parametrize("form", ["torch-zip", "torch-legacy", "torch-itself", "safetensors", "npz", "onnx"])
def test_batch_norm_comes_along(form, small, tmp_path):
    batch_norm = files.random_batch_norm(small)
    state, path = files.state_dict(small, batch_norm), tmp_path / "weights"
    match form:
        case "torch-zip":
            files.write_torch_zip(path, state)
        case "torch-legacy":  # the published file is older than the counters
            files.write_torch_legacy(path, {k: v for k, v in state.items() if "num_batches" not in k})
        case "torch-itself":
            torch_save(path, state)
        case "safetensors":
            save_file({name: np.array(array) for name, array in state.items()}, path)
        case "npz":
            files.write_npz(path, files.own_names(small, batch_norm))
        case "onnx":
            files.write_onnx(path, small, batch_norm)
    vgg = read_vgg(path, "vgg16")
    assert_holds(vgg, small, batch_norm)
    assert vgg.batch_norm_epsilon == (pytest.approx(1e-3) if form in ("npz", "onnx") else 1e-5)


def test_vgg19_is_read_by_its_own_table(small, tmp_path):
    convs = files.random_vgg(files.SMALL19)
    files.write_torch_legacy(tmp_path / "w.pth", files.state_dict(convs, features=files.FEATURES_19))
    files.write_keras(tmp_path / "w.h5", convs)
    files.write_caffe(tmp_path / "w.caffemodel", convs)
    files.write_keras3(tmp_path / "w.weights.h5", convs)
    files.write_onnx(tmp_path / "w.onnx", convs)
    for filename in ("w.pth", "w.h5", "w.caffemodel", "w.weights.h5", "w.onnx"):
        assert_holds(read_vgg(tmp_path / filename, "vgg19"), convs)


def test_a_vgg_survives_our_own_file(small, tmp_path):
    batch_norm = files.random_batch_norm(small)
    files.write_torch_zip(tmp_path / "w.pth", files.state_dict(small, batch_norm))
    vgg = read_vgg(tmp_path / "w.pth", "vgg16")
    save_npz(tmp_path / "w.npz", vgg)
    again = read_vgg(tmp_path / "w.npz", "vgg16")
    assert_holds(again, small, batch_norm)
    assert (again.preprocessing, again.batch_norm_epsilon) == (TORCH, 1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.npz", "w.pth"]


def test_the_oxford_weights_are_known_by_their_file_name_and_a_caller_may_say_otherwise(small, tmp_path):
    path = tmp_path / "vgg16_features-amdegroot-88682ab5.pth"
    files.write_torch_legacy(path, files.state_dict(small))
    oxford = read_vgg(path, "vgg16").preprocessing
    np.testing.assert_allclose(oxford.mean, (123.0, 117.0, 104.0), atol=1e-2)
    assert oxford.std == (1.0, 1.0, 1.0)
    assert read_vgg(path, "vgg16", preprocessing=RAW).preprocessing == RAW


def test_our_writer_of_torch_files_writes_torchs_own_pickle(small, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    state = OrderedDict(list(files.state_dict(small).items())[:3])
    files.write_torch_zip(tmp_path / "ours.pth", state)
    theirs = OrderedDict((name, torch.from_numpy(array)) for name, array in state.items())
    theirs._metadata = OrderedDict({"": {"version": 1}})
    torch.save(theirs, buffer := io.BytesIO())
    with zipfile.ZipFile(tmp_path / "ours.pth") as ours, zipfile.ZipFile(buffer) as archive:
        assert ours.read("archive/data.pkl") == archive.read("archive/data.pkl")


def test_torch_computes_with_its_kernel_what_we_compute_with_ours(small, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import jax

    state = files.state_dict(small)
    files.write_torch_zip(tmp_path / "w.pth", state)
    weights = read_vgg(tmp_path / "w.pth", "vgg16").convs["conv1_1"]
    image = np.random.default_rng(2).random((1, 5, 7, 3), np.float32)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(image).permute(0, 3, 1, 2),
        torch.from_numpy(state["features.0.weight"]),
        torch.from_numpy(state["features.0.bias"]),
        padding=1,
    ).permute(0, 2, 3, 1)
    dimensions = ("NHWC", "HWIO", "NHWC")
    ours = jax.lax.conv_general_dilated(image, weights.kernel, (1, 1), "SAME", dimension_numbers=dimensions)
    np.testing.assert_allclose(np.asarray(ours) + weights.bias, theirs.numpy(), atol=1e-5)


def test_a_kernel_trained_on_bgr_sees_the_same_in_an_rgb_image(small, tmp_path):
    import h5py

    files.write_keras(tmp_path / "w.h5", small)
    with h5py.File(tmp_path / "w.h5") as file:
        trained = file["block1_conv1/block1_conv1_W_1:0"][()]
    kernel = read_vgg(tmp_path / "w.h5", "vgg16").convs["conv1_1"].kernel
    rgb = np.random.default_rng(3).random((3, 3, 3), np.float32)
    np.testing.assert_allclose(np.tensordot(rgb, kernel, 3), np.tensordot(rgb[..., ::-1], trained, 3), rtol=1e-6)


def test_the_table_of_torchvision_is_the_published_one():
    for batch_norm in (False, True):
        table = torch_files.table("vgg16", batch_norm)
        for conv, indices in files.FEATURES.items():
            assert table[f"features.{indices[batch_norm]}.weight"] == (conv, "kernel")
            if batch_norm:
                assert table[f"features.{indices[1] + 1}.running_var"] == (conv, "bn_var")
    assert {table.get(f"features.{i}.weight") for table in [torch_files.table("vgg19", False)] for i in (28, 34)} == {
        ("conv5_1", "kernel"),
        ("conv5_4", "kernel"),
    }
