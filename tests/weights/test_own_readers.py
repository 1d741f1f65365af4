"""Compare our readers with the formats' libraries, without our checks."""

import io
import json

import fuzz_inputs
import h5py
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from safetensors import safe_open

from segnet_jax.data.images.picture_bytes import essential, orientation
from segnet_jax.weights.containers import hdf5
from segnet_jax.weights.containers.hdf5 import read_arrays
from segnet_jax.weights.formats import npz
from segnet_jax.weights.formats import safetensors as ours

FLOATS = ("f2", "f4", "f8")


def test_hdf5_arrays_are_those_that_h5py_wrote(tmp_path):
    """Check nested groups, hundreds of names in one group, attributes, and every dtype and rank."""
    random, expected = np.random.default_rng(0), {}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = [b"layer" * 20] * 50
        for index in range(300):
            name = f"{'deep/' * (index % 4)}group{index % 7}/{'n' * (index % 60)}{index}"
            shape = random.integers(1, 5, index % 5)
            expected[name] = np.asarray(random.random(tuple(shape)), FLOATS[index % 3])
            file.create_dataset(name, data=expected[name])
            file[name].attrs["note"] = "a" * index
        for index in range(2000):
            file.create_group(f"many/{index:05}")
        file["soft"] = h5py.SoftLink("/group1")
    with open(tmp_path / "a.h5", "rb") as file:
        arrays = read_arrays(file)
        assert arrays.keys() == expected.keys() and len(arrays) == 300
        for name, array in arrays.items():
            assert array.shape == expected[name].shape and array.read().dtype == expected[name].dtype
            np.testing.assert_array_equal(array.read(), expected[name])


@pytest.mark.parametrize("options", [{"libver": "latest"}, {"userblock_size": 512}, {"track_order": True}])
def test_hdf5_of_other_versions_is_read_too(options, tmp_path):
    numbers = np.random.default_rng(0).random((3, 2)).astype(">f4")
    with h5py.File(tmp_path / "a.h5", "w", **options) as file:
        file["a/b"] = numbers
    with open(tmp_path / "a.h5", "rb") as file:
        arrays = read_arrays(file)
        np.testing.assert_array_equal(arrays["a/b"].read(), numbers)


@pytest.mark.parametrize(
    "more",
    [{"chunks": (1, 2)}, {"compression": "gzip"}, {"dtype": "i4"}, {"data": np.zeros(2, "f4,f4"), "dtype": None}],
)
def test_hdf5_arrays_that_are_not_plain_floats_in_one_piece_are_refused(more, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", **{"data": np.ones((2, 2)), "dtype": "f4"} | more)
    with open(tmp_path / "a.h5", "rb") as file, pytest.raises(ValueError, match="tensor a"):
        read_arrays(file)["a"].read()


def test_an_hdf5_array_that_was_never_written_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (1 << 20,), "f4", fillvalue=1)
    with open(tmp_path / "a.h5", "rb") as file, pytest.raises(ValueError, match="not stored contiguously"):
        read_arrays(file)["a"].read()


def test_an_hdf5_file_that_crashes_the_library_is_refused_and_crashes_nothing(tmp_path):
    """Read a file with a tree node that is its own child: the library recurses until the stack overflows."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = np.ones(3)
    data = bytearray((tmp_path / "a.h5").read_bytes())
    tree = data.index(b"TREE")
    data[tree + 5], data[tree + 32 : tree + 40] = 1, tree.to_bytes(8, "little")
    for file in (io.BytesIO(data), open(tmp_path / "a.h5", "r+b")):
        with file:
            file.write(data)
            file.flush()
            with pytest.raises(ValueError, match=r"the HDF5 library crashed on it \(signal"):
                read_arrays(file)


def test_an_hdf5_file_that_hangs_the_library_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "_SECONDS", 0.001)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = np.ones(3)
    with (
        open(tmp_path / "a.h5", "rb") as file,
        pytest.raises(ValueError, match="did not finish within 0.001 seconds"),
    ):
        read_arrays(file)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_arrays_are_those_that_numpy_wrote(save, tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        f"{order}{dtype}{axes}": np.asarray(random.random((3, 2, 4, 1)[:axes]), dtype, order=order)
        for order in "CF"
        for dtype in ("<f2", "<f4", "<f8", ">f4")
        for axes in range(5)
    }
    save(tmp_path / "a.npz", **arrays)
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        for name, array in arrays.items():
            stored = npz._stored(archive, f"{name}.npy")
            assert stored.shape == array.shape
            np.testing.assert_array_equal(stored.read(), array)


def test_safetensors_arrays_are_those_that_the_library_wrote(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        f"{kind}{axes}": np.asarray(random.integers(0, 100, (3, 2, 4, 1)[:axes]), kind)
        for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?")
        for axes in range(5)
    } | {"empty": np.zeros((0, 3), "f4")}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "np"})
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        for name, array in arrays.items():
            stored = ours._stored(file, name)
            assert stored.shape == array.shape and stored.read().dtype == array.dtype
            np.testing.assert_array_equal(stored.read(), array)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_safetensors_of_types_that_numpy_lacks_are_refused(dtype, tmp_path):
    size = {"BF16": 2}.get(dtype, 1)
    header = json.dumps({"a": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3 * size))
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        with pytest.raises(ValueError, match=f"tensor a has type {dtype}, which is not supported; save it as F32"):
            ours._stored(file, "a").read()


def test_ignored_parts_of_an_image_do_not_change_its_pixels():
    for data in fuzz_inputs.picture_seeds():
        whole, rest = (Image.open(io.BytesIO(each)) for each in (data, essential(data)))
        assert whole.mode == rest.mode
        np.testing.assert_array_equal(np.asarray(whole), np.asarray(rest))
        np.testing.assert_array_equal(whole.getpalette() or [], rest.getpalette() or [])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("order", ["II", "MM"])
def test_orientations_are_those_that_pillow_finds(kind, order):
    for turned in range(1, 9):
        exif = Image.Exif()
        exif.endian = {"II": "<", "MM": ">"}[order]
        exif[0x010F], exif[0x0112], exif[0x0131] = "maker", turned, "software"
        Image.new("RGB", (8, 6)).save(file := io.BytesIO(), kind, exif=exif)
        assert orientation(file.getvalue()) == Image.open(file).getexif()[0x0112] == turned
    Image.new("RGB", (8, 6)).save(file := io.BytesIO(), kind)
    assert orientation(file.getvalue()) == 1
