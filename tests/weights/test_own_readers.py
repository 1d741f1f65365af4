"""Our own small readers of others' formats against the libraries of those formats."""

import io

import fuzz_inputs
import h5py
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from segnet_jax.data.images.picture_bytes import essential, orientation
from segnet_jax.weights.containers.hdf5 import read_arrays
from segnet_jax.weights.formats import npz
from segnet_jax.weights.formats import safetensors as ours

FLOATS = ("f2", "f4", "f8")


def test_hdf5_arrays_are_those_that_h5py_reads(tmp_path):
    """Groups in groups, hundreds of names in one, attributes, every type and number of axes."""
    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = [b"layer" * 20] * 50
        for index in range(300):
            name = f"{'deep/' * (index % 4)}group{index % 7}/{'n' * (index % 60)}{index}"
            shape = random.integers(1, 5, index % 5)
            file.create_dataset(name, data=random.random(tuple(shape)).astype(FLOATS[index % 3]))
            file[name].attrs["note"] = "a" * index
        for index in range(2000):
            file.create_group(f"many/{index:05}")
        file["soft"] = h5py.SoftLink("/group1")
    expected = {}
    with h5py.File(tmp_path / "a.h5") as file:
        file.visititems(lambda name, item: expected.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    with open(tmp_path / "a.h5", "rb") as file:
        arrays = read_arrays(file)
        assert arrays.keys() == expected.keys() and len(arrays) == 300
        for name, array in arrays.items():
            assert array.shape == expected[name].shape and array.read().dtype == expected[name].dtype
            np.testing.assert_array_equal(array.read(), expected[name])


@pytest.mark.parametrize("options", [{"libver": "latest"}, {"userblock_size": 512}])
def test_hdf5_of_another_form_is_refused_and_not_misread(options, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", **options) as file:
        file["a"] = np.zeros(3, np.float32)
    with open(tmp_path / "a.h5", "rb") as file, pytest.raises(ValueError, match="form of HDF5"):
        read_arrays(file)


@pytest.mark.parametrize("more", [{"chunks": (1, 2)}, {"compression": "gzip"}, {"dtype": ">f4"}, {"dtype": "i4"}])
def test_hdf5_arrays_that_are_not_plain_floats_in_one_piece_are_refused(more, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", **{"data": np.ones((2, 2)), "dtype": "f4"} | more)
    with open(tmp_path / "a.h5", "rb") as file, pytest.raises(ValueError, match="tensor a"):
        read_arrays(file)["a"].read()


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
    read = ours._tensors(tmp_path / "a.safetensors")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].shape == array.shape and read[name].read().dtype == array.dtype
        np.testing.assert_array_equal(read[name].read(), array)


def test_what_is_left_out_of_a_picture_changes_none_of_its_pixels():
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
