"""Our own names, in an `.npz` file: `conv1_1/kernel`, `conv1_1/bias`, `preprocessing/mean`, `preprocessing/std`.

Kernels are [3,3,in,out] for RGB input; mean and std have three numbers, RGB, 0..255. A VGG with BatchNorm has
`conv1_1_bn/scale`, `/bias`, `/mean`, `/var` too, and `batch_norm_epsilon`.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segnet_jax.errors import UserError
from segnet_jax.files import atomic_write_bytes
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.weights.vgg import VGG, StoredTensor, Table, assemble, conv_channels

_MEAN, _STD, _EPSILON = "preprocessing/mean", "preprocessing/std", "batch_norm_epsilon"


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
    return VGG(encoder, convs, Preprocessing(mean, std), epsilon)


def read(path: Path, encoder: str) -> VGG:
    """Reads an `.npz` file; a member's header is checked before its data is read, and pickled arrays are refused."""
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
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
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"{member} has the .npy version {version}")
        shape, _, dtype = read_header[version](file)
        if dtype.kind != "f":
            raise ValueError(f"{member} holds {dtype}, and weights are floating-point numbers")

    def read_array() -> np.ndarray:
        with archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    return StoredTensor(shape, read_array)
