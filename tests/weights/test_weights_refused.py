"""Test weight files that do not fit, are damaged or malicious: each is rejected with one line that names the fault."""

import io
import os
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import weight_files as files
from safetensors.numpy import save_file

from segnet_jax.nn.segnet import ENCODERS
from segnet_jax.system.errors import UserError
from segnet_jax.weights.load import read_vgg

WRITERS = {
    "torch-zip": lambda path, state: files.write_torch_zip(path, state),
    "torch-legacy": lambda path, state: files.write_torch_legacy(path, state),
    "safetensors": lambda path, state: save_file(dict(state), path),
}


@pytest.fixture
def small(monkeypatch):
    return files.shrink(monkeypatch, ENCODERS)


def complaint(path, encoder="vgg16"):
    """Return the one-line error for a file."""
    with pytest.raises(UserError) as caught:
        read_vgg(path, encoder)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


# tensors


@pytest.mark.parametrize("form", WRITERS)
def test_a_missing_an_unknown_a_misshapen_and_a_broken_tensor_are_named(form, small, tmp_path):
    path, good = tmp_path / "weights", files.state_dict(small)

    def refused(**changed):
        state = {name: changed.get(name.replace(".", "_"), array) for name, array in good.items()}
        state |= {name.replace("_", "."): array for name, array in changed.items()}
        WRITERS[form](path, {name: array for name, array in state.items() if array is not None})
        return complaint(path)

    assert "1 missing: features.5.weight" in refused(features_5_weight=None)
    assert "1 unknown: decoder.weight" in refused(decoder_weight=np.zeros((2, 2), np.float32))
    transposed = np.ascontiguousarray(good["features.5.weight"].T)
    assert "features.5.weight 3x3x3x4 instead of 4x3x3x3" in refused(features_5_weight=transposed)
    for value in (np.nan, np.inf):
        broken = good["features.28.bias"].copy()
        broken[1] = value
        assert "features.28.bias has 1 numbers that are not finite" in refused(features_28_bias=broken)
    whole = good["features.0.bias"].astype(np.int64)
    assert "features.0.bias has type int64" in refused(features_0_bias=whole)


def test_the_other_formats_name_their_tensors_too(small, tmp_path):
    keras, caffe, own = tmp_path / "w.h5", tmp_path / "w.caffemodel", tmp_path / "w.npz"
    kernel, bias = small["conv2_1"]
    nan = np.full_like(bias, np.nan)
    for convs, fault in (
        ({k: v for k, v in small.items() if k != "conv2_1"}, "2 missing"),
        (small | {"conv2_1": (kernel[:, :, :2], bias)}, "1 of the wrong shape"),
        (small | {"conv6_1": (kernel, bias)}, "2 unknown"),
        (small | {"conv2_1": (kernel, nan)}, "not finite"),
    ):
        files.write_keras(keras, convs)
        files.write_caffe(caffe, convs)
        files.write_npz(own, files.own_names(convs))
        conv = "conv6_1" if "conv6_1" in convs else "conv2_1"
        for path, name in ((keras, f"block{conv[4]}_conv1/"), (caffe, f"{conv}/"), (own, f"{conv}/")):
            message = complaint(path)
            assert fault in message and name in message


def test_more_than_five_misfits_are_counted(small, tmp_path):
    files.write_torch_zip(tmp_path / "w.pth", {f"layer{i}": np.zeros(2, np.float32) for i in range(7)})
    message = complaint(tmp_path / "w.pth")
    assert "26 missing: features.0.weight" in message and "and 21 more" in message
    assert "7 unknown: layer0, layer1, layer2, layer3, layer4, and 2 more" in message


def test_a_vgg19_in_place_of_a_vgg16_is_called_that(small, tmp_path):
    convs = files.random_vgg(files.SMALL19)
    files.write_keras(tmp_path / "w.h5", convs)
    files.write_torch_legacy(tmp_path / "w.pth", files.state_dict(convs, features=files.FEATURES_19))
    for filename in ("w.h5", "w.pth"):
        assert "the weights of vgg19, but the encoder is vgg16" in complaint(tmp_path / filename)


def test_our_own_names_need_the_preprocessing(small, tmp_path):
    arrays = files.own_names(small)
    files.write_npz(tmp_path / "w.npz", {name: array for name, array in arrays.items() if "std" not in name})
    assert "lacks preprocessing/std" in complaint(tmp_path / "w.npz")
    files.write_npz(tmp_path / "w.npz", arrays | {"preprocessing/std": np.zeros(3)})
    assert "std above 0" in complaint(tmp_path / "w.npz")


def test_a_negative_variance_is_refused(small, tmp_path):
    batch_norm = {conv: -values for conv, values in files.random_batch_norm(small).items()}
    files.write_torch_zip(tmp_path / "w.pth", files.state_dict(small, batch_norm))
    assert "features.1.running_var is a variance" in complaint(tmp_path / "w.pth")


# files that are not weight files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "has an unknown format"),
        (b"\x80\x02}q\x00.", "contains code, which is not run"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), ""),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (struct.pack("<Q", 50) + b"{" + b"x" * 60, ""),
        (b"\n\xff\xff\xff\xff\x0f", "cut off"),
        (b"\n\x01a\x13", "unknown wire type 3"),
        (b"\n\x01a\x08" + b"\xff" * 11, "more than ten bytes"),
    ],
)
def test_a_file_without_weights_is_reported_in_one_line(content, words, tmp_path):
    (tmp_path / "weights").write_bytes(content)
    assert words in complaint(tmp_path / "weights")


def test_a_missing_file_a_folder_and_another_zip_are_distinguished(tmp_path):
    assert "no such file" in complaint(tmp_path / "absent.pth")
    assert "is not a file" in complaint(tmp_path)
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    assert "not written by torch, Keras or numpy" in complaint(tmp_path / "w.zip")


def every_form(small, folder):
    """Write one small file of each format; return the paths."""
    state = files.state_dict(small)
    files.write_torch_zip(folder / "zip.pth", state)
    files.write_torch_legacy(folder / "legacy.pth", state)
    files.write_keras(folder / "w.h5", small)
    files.write_caffe(folder / "w.caffemodel", small)
    files.write_onnx(folder / "w.onnx", small)
    files.write_npz(folder / "w.npz", files.own_names(small))
    save_file(state, folder / "w.safetensors")
    return sorted(folder.iterdir())


def test_a_file_that_is_cut_off_anywhere_is_refused(small, tmp_path):
    for path in every_form(small, tmp_path):
        content = path.read_bytes()
        for part in (0.02, 0.1, 0.5, 0.9, 0.999):
            path.write_bytes(content[: int(part * len(content))])
            complaint(path)


@pytest.mark.slow  # test_fuzz.py damages the same files
def test_flipped_bits_give_a_vgg_or_one_line_and_never_another_error(small, tmp_path):
    seed = 4
    chance = random.Random(seed)
    for path in every_form(small, tmp_path):
        content = path.read_bytes()
        headers = min(len(content), 6000)
        for _ in range(15 if path.suffix == ".h5" else 60):  # HDF5 is read by a process of its own
            damaged = bytearray(content)
            for _ in range(chance.choice((1, 5))):
                damaged[chance.randrange(headers)] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            try:
                read_vgg(path, "vgg16")
            except UserError as error:
                assert "\n" not in str(error)


# malicious files


class Payload:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"echo > {self.canary}",)


def in_zip(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")


def in_legacy(path, content, before=3):
    head = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(head[:before]) + content + pickle.dumps([], protocol=2))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["zip", "legacy tensors", "legacy version", "bare", "npz"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(place, protocol, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    content = pickle.dumps({"features.0.weight": Payload(canary)}, protocol=protocol)
    pickle.loads(content)
    assert canary.exists(), "the payload is live"
    canary.unlink()
    match place:
        case "zip":
            in_zip(path, content)
        case "legacy tensors":
            in_legacy(path, content)
        case "legacy version":
            in_legacy(path, content, before=1)
        case "bare":
            path.write_bytes(content)
        case "npz":
            files.write_npz(path, {"conv1_1/kernel": np.array([Payload(canary)], dtype=object)})
    message = complaint(path)
    assert not canary.exists()
    if place != "npz":
        assert "contains code, which is not run" in message
    if place in ("zip", "legacy tensors", "legacy version"):
        assert f"{os.system.__module__}.system" in message


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cbuiltins\neval\n.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02ccollections\nOrderedDict.fromkeys\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"(S'x'\nios\nsystem\n.",
        b"\x80\x02(ccollections\nOrderedDict\no.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02Pname\n.",
    ],
)
def test_steps_and_names_that_no_weight_file_needs_are_refused(content, tmp_path):
    in_zip(tmp_path / "w.pth", content)
    assert "contains code, which is not run" in complaint(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02.",  # nothing to return
        b"\x80\x02}q\x00h\x07.",  # a memo that was never written
        b"\x80\x02}r\xff\xff\xff\xff.",  # a memo number of four thousand million
        b"\x80\x02t.",  # a tuple without its mark
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # a class called as a function
        b"\x80\x02}]K\x01s.",  # a list as a key
        b"\x80\x02]]K\x01s.",  # an item put into a list as into a dictionary
        b"\x80\x02(K\x01K\x02tQ.",  # no storage
        b"\x80\x02(X\xff\xff\xff\x7fabc.",  # a string of two thousand million letters
        b"\x80\x02" + b"(" * 50_000 + b"t" * 50_000 + b".",  # deeply nested
        b"\x80\x02}(" + b")" + b"\x85" * 100_000 + b"K\x01u.",  # deeply nested, as a key
        b"\x80\x02}X\x00\x00\x20\x00" + b"a" * (2 << 20) + b"0.",  # much larger than a VGG's
    ],
)
def test_a_pickle_that_is_not_a_dict_of_tensors_is_refused(content, tmp_path):
    in_zip(tmp_path / "w.pth", content)
    complaint(tmp_path / "w.pth")


def pickled_tensor(num_items=4, offset=0, shape=(2, 2), strides=(2, 1), view=()):
    """Return the pickle of a state with one tensor of the given description."""
    stub = files.TensorStub(
        np.zeros((1,), np.float32), ("storage", files.STORAGES["float32"], "0", "cpu", num_items) + view, files.REBUILD
    )
    stub.reduced = stub.reduced[0], (stub.reduced[1][0], offset, shape, strides)
    files.Pickler(buffer := io.BytesIO(), protocol=2).dump({"features.0.weight": stub})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"offset": 1}, "beyond"),
        ({"num_items": 3}, "beyond"),
        ({"num_items": -4}, "damaged"),
        ({"offset": -1}, "damaged"),
        ({"shape": (1 << 39, 1 << 39), "strides": (1, 1)}, "gaps or overlaps"),
        ({"shape": (1000, 1000), "strides": (0, 0)}, "gaps or overlaps"),
        ({"shape": (2, 2), "strides": (3, 1), "num_items": 9}, "gaps or overlaps"),
        ({"shape": (2, 2), "strides": (2,)}, "strides"),
        ({"shape": (True, 4), "strides": (4, 1)}, "damaged"),
        ({"view": (("1", 2, 4),)}, "beyond"),
        ({}, "missing"),  # well described, but not what a VGG contains
    ],
)
def test_a_tensor_that_reaches_out_of_its_storage_is_refused(tensor, words, tmp_path):
    in_zip(tmp_path / "w.pth", pickled_tensor(**tensor))
    assert words in complaint(tmp_path / "w.pth")


def test_storages_of_a_wrong_length_are_refused(small, tmp_path):
    path, state = tmp_path / "w.pth", files.state_dict(small)
    files.write_torch_zip(path, state)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for content in (members["archive/data/0"][:-4], members["archive/data/0"] + bytes(4)):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, content if name == "archive/data/0" else data)
        assert "archive/data/0 is missing or does not have" in complaint(path)
    files.write_torch_legacy(path, state)
    path.write_bytes(path.read_bytes() + b"more")  # after the last storage: not read, not harmful
    read_vgg(path, "vgg16")


def test_a_flipped_bit_in_a_zips_weights_is_noticed(small, tmp_path):
    path = tmp_path / "w.pth"
    files.write_torch_zip(path, files.state_dict(small))
    content = bytearray(path.read_bytes())
    content[content.index(files.oihw(small["conv3_1"][0]).tobytes()) + 5] ^= 1
    path.write_bytes(content)
    assert "Bad CRC-32" in complaint(path)


def test_a_zip_bomb_costs_no_memory(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as file:
        for _ in range(100):
            file.write(bytes(1 << 20))
    for name, kind, count in (("long", "<f4", 1 << 33), ("wide", "|V1000000000", 3)):
        header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({count},), }}".encode().ljust(117) + b"\n"
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in ("conv1_1/kernel.npy", "preprocessing/mean.npy", "preprocessing/std.npy"):
                archive.writestr(member, np.lib.format.magic(1, 0) + struct.pack("<H", 118) + header)
    tracemalloc.start()
    try:
        complaint(path)
        complaint(tmp_path / "long")
        assert "weights must be floating-point numbers" in complaint(tmp_path / "wide")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_keras_file_is_not_followed_into_other_files(small, tmp_path):
    import h5py

    files.write_keras(tmp_path / "other.h5", small)
    files.write_keras(tmp_path / "w.h5", small)
    with h5py.File(tmp_path / "w.h5", "a") as file:
        del file["block1_conv1"]
        file["block1_conv1"] = h5py.ExternalLink("other.h5", "block1_conv1")
    assert "2 missing: block1_conv1/block1_conv1_W_1:0" in complaint(tmp_path / "w.h5")
    files.write_keras(tmp_path / "w.h5", small)
    (tmp_path / "secret").write_bytes(bytes(324))
    with h5py.File(tmp_path / "w.h5", "a") as file:
        name = "block1_conv1/block1_conv1_W_1:0"
        del file[name]
        file.create_dataset(name, (3, 3, 3, 3), "f4", external=[(str(tmp_path / "secret"), 0, 324)])
        assert not file[name][()].any()  # h5py itself would follow it
    assert f"{name} is not stored contiguously" in complaint(tmp_path / "w.h5")
