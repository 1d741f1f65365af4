"""Our own names, in an `.npz` file: `conv1_1/kernel`, `conv1_1/bias`, `preprocessing/mean`, `preprocessing/std`.

Kernels are [3,3,in,out] for RGB input; mean and std have three numbers, RGB, 0..255. A VGG with BatchNorm has
`conv1_1_bn/scale`, `/bias`, `/mean`, `/var` too, and `batch_norm_epsilon`.
"""

import io
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_bytes
from segnet_jax.system.zips import check_zip
from segnet_jax.weights.containers.stored import StoredTensor
from segnet_jax.weights.vgg import VGG, Table, assemble, conv_channels

_MEAN, _STD, _EPSILON = "preprocessing/mean", "preprocessing/std", "batch_norm_epsilon"

# A `.npy` header is a Python literal. It is not read as one: this is the one form in which numpy writes it.
_NPY_HEADER = re.compile(
    rb"\{'descr': '([^'\\]{1,40})', 'fortran_order': (True|False), 'shape': (\([\d, ]{0,160}\)), \} *\n"
)
_NPY_HEADER_BYTES = 10_000
_FLOATS = ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8")


def table(encoder: str, batch_norm: bool) -> Table:
    """Our names -> places."""
    entries: Table = {}
    for conv in conv_channels(encoder):
        entries[f"{conv}/kernel"] = (conv, "kernel")
        entries[f"{conv}/bias"] = (conv, "bias")
        if batch_norm:
            entries[f"{conv}_bn/scale"] = (conv, "bn_scale")
            entries[f"{conv}_bn/bias"] = (conv, "bn_bias")
            entries[f"{conv}_bn/mean"] = (conv, "bn_mean")
            entries[f"{conv}_bn/var"] = (conv, "bn_var")
    return entries


def read_own_names(tensors: Mapping[str, StoredTensor], encoder: str) -> VGG:
    """Reads a VGG from tensors that carry our names.

    Raises:
      ValueError: the tensors do not fit the table.
    """
    batch_norm = "conv1_1_bn/scale" in tensors
    extras = {_MEAN: (3,), _STD: (3,)} | ({_EPSILON: ()} if batch_norm else {})
    if absent := [name for name, shape in extras.items() if name not in tensors or tensors[name].shape != shape]:
        raise ValueError(
            f"lacks {' and '.join(absent)} (what the weights were trained on: 3 numbers each, RGB, 0..255)"
        )
    convs = assemble(
        tensors,
        encoder,
        lambda name: table(name, batch_norm),
        unused=extras.keys(),
        layout="HWIO",
        channel_order="RGB",
    )
    mean, std = (tuple(float(value) for value in tensors[name].read()) for name in (_MEAN, _STD))
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and min(std) > 0):
        raise ValueError(f"has the preprocessing mean {mean} and std {std}: finite numbers, std above 0")
    epsilon = float(tensors[_EPSILON].read()) if batch_norm else None
    if epsilon is not None and not 0 < epsilon <= 1:
        raise ValueError(f"has the {_EPSILON} {epsilon}: above 0, 1 at most")
    return VGG(encoder, convs, Preprocessing(mean, std), epsilon)


def read(path: Path, encoder: str) -> VGG:
    """Reads an `.npz` file; a member's header is checked before its data is read, and pickled arrays are refused."""
    check_zip(path)
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        if len(set(members)) != len(members):
            raise ValueError("holds an array twice")
        return read_own_names({name.removesuffix(".npy"): _stored(archive, name) for name in members}, encoder)


def save_npz(path: Path, vgg: VGG) -> None:
    """Writes a VGG under our names, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    arrays = {_MEAN: np.float64(vgg.preprocessing.mean), _STD: np.float64(vgg.preprocessing.std)}
    if vgg.batch_norm_epsilon is not None:
        arrays[_EPSILON] = np.float64(vgg.batch_norm_epsilon)
    for conv, weights in vgg.convs.items():
        arrays[f"{conv}/kernel"], arrays[f"{conv}/bias"] = weights.kernel, weights.bias
        if weights.batch_norm:
            for part in ("scale", "bias", "mean", "var"):
                arrays[f"{conv}_bn/{part}"] = getattr(weights.batch_norm, part)
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    try:
        atomic_write_bytes(path, packed.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _stored(archive: zipfile.ZipFile, member: str) -> StoredTensor:
    with archive.open(member) as file:
        dtype, fortran_order, shape = _npy_header(file, member)
        start = file.tell()
    num_bytes = math.prod(shape) * dtype.itemsize
    if archive.getinfo(member).file_size != start + num_bytes:
        raise ValueError(f"{member} has the shape {shape} and not as many numbers")

    def read_array() -> np.ndarray:
        with archive.open(member) as file:
            data = file.read(start + num_bytes)[start:]  # from the beginning, for zipfile to check its sum
        if len(data) != num_bytes:
            raise ValueError(f"{member} is cut off")
        return np.ndarray(shape, dtype, data, order="F" if fortran_order else "C")

    return StoredTensor(shape, read_array)


def _npy_header(file: BinaryIO, member: str) -> tuple[np.dtype, bool, tuple[int, ...]]:
    magic, version = file.read(6), file.read(2)
    if magic != b"\x93NUMPY" or version not in (b"\1\0", b"\2\0"):
        raise ValueError(f"{member} is no .npy of version 1 or 2")
    length = int.from_bytes(file.read(2 * version[0]), "little")
    header = _NPY_HEADER.fullmatch(file.read(length)) if length <= _NPY_HEADER_BYTES else None
    if header is None:
        raise ValueError(f"{member} has no header as numpy writes it for an array of numbers")
    kind, fortran_order, shape = (part.decode("latin1") for part in header.groups())
    if kind not in _FLOATS:
        raise ValueError(f"{member} holds {kind}, and weights are floating-point numbers")
    sizes = tuple(int(size) for size in re.findall(r"\d+", shape))
    if str(sizes) != shape or len(sizes) > 8:
        raise ValueError(f"{member} has the shape {shape}, not as numpy writes it")
    return np.dtype(kind), fortran_order == "True", sizes
