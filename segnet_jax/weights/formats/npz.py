"""VGGs in `.npz` files, under our names: `conv1_1/kernel`, `conv1_1/bias`, `preprocessing/mean`, `preprocessing/std`.

Kernels are [3,3,in,out] for RGB input; mean and std have three numbers, RGB, 0..255. A VGG with BatchNorm also has
`conv1_1_bn/scale`, `/bias`, `/mean`, `/var`, and `batch_norm_epsilon`.
"""

import io
import math
import tokenize
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_bytes
from segnet_jax.system.zips import check_zip
from segnet_jax.weights.containers.stored_tensors import StoredTensor
from segnet_jax.weights.vgg import VGG, Table, assemble, conv_channels

_MEAN, _STD, _EPSILON = "preprocessing/mean", "preprocessing/std", "batch_norm_epsilon"

_MAX_HEADER = 1000
"""Maximum bytes of a `.npy` header, which numpy parses as a Python literal: too few for deep nesting. A tensor needs
about 120."""


def table(encoder: str, batch_norm: bool) -> Table:
    """Map our names to parts of the network."""
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
    """Build a VGG from tensors under our names.

    Raises:
      ValueError: If the tensors do not fit the table.
    """
    batch_norm = "conv1_1_bn/scale" in tensors
    extras = {_MEAN: (3,), _STD: (3,)} | ({_EPSILON: ()} if batch_norm else {})
    if absent := [name for name, shape in extras.items() if name not in tensors or tensors[name].shape != shape]:
        raise ValueError(
            f"lacks {' and '.join(absent)}, the preprocessing that the weights expect (3 numbers each, RGB, 0..255)"
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
        raise ValueError(f"has the preprocessing mean {mean} and std {std}; both must be finite, and std above 0")
    epsilon = float(tensors[_EPSILON].read()) if batch_norm else None
    if epsilon is not None and not 0 < epsilon <= 1:
        raise ValueError(f"has {_EPSILON} {epsilon}; it must be above 0 and at most 1")
    return VGG(encoder, convs, Preprocessing(mean, std), epsilon)


def read(path: Path, encoder: str) -> VGG:
    """Read an `.npz` file; headers are checked before any data is read, and pickled arrays are rejected."""
    check_zip(path)
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        if len(set(members)) != len(members):
            raise ValueError("contains an array twice")
        return read_own_names({name.removesuffix(".npy"): _stored(archive, name) for name in members}, encoder)


def is_own_npz(head: bytes) -> bool:
    """Return whether a file that begins with `head` was written by `save_npz`."""
    return head.startswith(b"PK\x03\x04") and f"{_MEAN}.npy".encode() in head[:100]


def save_npz(path: Path, vgg: VGG) -> None:
    """Write a VGG to an `.npz` file atomically.

    Raises:
      UserError: If the file cannot be written.
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
    """Return an array to be read later, after checking that the size of its member matches its header."""
    with archive.open(member) as file:
        shape, dtype = _read_header(file, member)
        start = file.tell()
    if dtype.kind != "f":  # such as objects, which would be pickled
        raise ValueError(f"{member} has type {dtype}, but weights must be floating-point numbers")
    if archive.getinfo(member).file_size != start + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{member} does not have the number of bytes that its shape {shape} needs")

    def read_array() -> np.ndarray:
        with archive.open(member) as file:
            return npy.read_array(file, allow_pickle=False, max_header_size=_MAX_HEADER)

    return StoredTensor(shape, read_array)


def _read_header(file: BinaryIO, member: str) -> tuple[tuple[int, ...], np.dtype]:
    """Read a `.npy` header, leaving the file at the first number."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns about types and headers of Python 2
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
            shape, _, dtype = read(file, max_header_size=_MAX_HEADER)
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise ValueError(f"{member} has no valid .npy header: {error}") from None
    if any(size < 0 for size in shape):
        raise ValueError(f"{member} has the invalid shape {shape}")
    return shape, dtype
