"""torchvision's VGG files, `.pth`, in both formats of torch.save, read without torch and without running code.

Since torch 1.6 the file is a zip with a pickle and one member per storage. Before, it was five pickles, of which the
fourth describes the tensors and the fifth lists the storage keys, then the length (int64) and bytes of each storage.
Kernels are [out,in,3,3], for RGB images.
"""

import io
import math
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from segnet_jax.nn.preprocessing import CAFFE, TORCH, Preprocessing
from segnet_jax.nn.segnet import ENCODERS
from segnet_jax.system.zips import check_zip
from segnet_jax.weights.containers.pickled import Storage, Tensor, read_pickle
from segnet_jax.weights.containers.stored_tensors import StoredTensor
from segnet_jax.weights.formats.published_sums import is_published
from segnet_jax.weights.vgg import VGG, Table, assemble

LEGACY_SIGNATURE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of the magic number
BATCH_NORM_EPSILON = 1e-5

OXFORD = Preprocessing(mean=(0.48235 * 255, 0.45882 * 255, 0.40784 * 255), std=(1.0, 1.0, 1.0))
"""Preprocessing of the VGG authors' weights converted to RGB, torchvision's `vgg16_features-amdegroot-88682ab5.pth`."""

UNUSED = {  # the classifier in torchvision and in timm, and BatchNorm's batch counters
    f"{layer}.{part}"
    for layer in ("classifier.0", "classifier.3", "classifier.6", "pre_logits.fc1", "pre_logits.fc2", "head.fc")
    for part in ("weight", "bias")
} | {f"features.{index}.num_batches_tracked" for index in range(53)}
_PICKLE_BYTES = 1 << 20  # a VGG's pickle has about ten thousand


def table(encoder: str, batch_norm: bool) -> Table:
    """Map torchvision's names to parts of the network; `features` counts all layers, including ReLU and pooling."""
    entries: Table = {}
    index = 0
    for stage, (_, num_convolutions) in enumerate(ENCODERS[encoder], start=1):
        for i in range(1, num_convolutions + 1):
            conv = f"conv{stage}_{i}"
            entries[f"features.{index}.weight"] = (conv, "kernel")
            entries[f"features.{index}.bias"] = (conv, "bias")
            if batch_norm:
                index += 1
                entries[f"features.{index}.weight"] = (conv, "bn_scale")
                entries[f"features.{index}.bias"] = (conv, "bn_bias")
                entries[f"features.{index}.running_mean"] = (conv, "bn_mean")
                entries[f"features.{index}.running_var"] = (conv, "bn_var")
            index += 2  # past this layer and its ReLU
        index += 1  # past the pooling
    return entries


def read_torchvision_names(tensors: dict[str, StoredTensor], encoder: str, preprocessing: Preprocessing) -> VGG:
    """Build a VGG, with or without BatchNorm, from tensors under torchvision's names.

    Raises:
      ValueError: If the tensors do not fit the table.
    """
    batch_norm = "features.1.running_mean" in tensors
    convs = assemble(
        tensors,
        encoder,
        lambda name: table(name, batch_norm),
        unused=UNUSED,
        layout="OIHW",
        channel_order="RGB",
    )
    if is_published(convs, encoder):  # Keras' weights under torchvision's names
        preprocessing = CAFFE
    return VGG(encoder, convs, preprocessing, BATCH_NORM_EPSILON if batch_norm else None)


def read(path: Path, encoder: str) -> VGG:
    """Read a `.pth` file in either format."""
    preprocessing = OXFORD if "amdegroot" in Path(path).name else TORCH
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip:
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            return read_torchvision_names(_zip_tensors(archive), encoder, preprocessing)
    return read_torchvision_names(_legacy_tensors(path), encoder, preprocessing)


def _zip_tensors(archive: zipfile.ZipFile) -> dict[str, StoredTensor]:
    """Return the tensors of a file in the zip format, which torch has written since 1.6."""
    members = {info.filename: info for info in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise ValueError("contains a member twice")
    pickles = [name for name in members if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError(f"contains {len(pickles)} members named data.pkl; a torch file has one")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in members and _read_some(archive, f"{root}byteorder", 16) != b"little":
        raise ValueError("was written on a big-endian machine; save it on a little-endian one")
    state = read_pickle(io.BytesIO(_read_some(archive, pickles[0], _PICKLE_BYTES)))

    def read_bytes(storage: Storage, start: int, count: int) -> bytes:
        member = f"{root}data/{storage.key}"
        if member not in members or members[member].file_size != storage.num_items * storage.dtype.itemsize:
            raise ValueError(f"the storage {member} is missing or does not have {storage.num_items} numbers")
        return _read_some(archive, member, count, start)

    return _stored(state, read_bytes)


def _legacy_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file in the older format, five pickles in a row."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        pickles = io.BytesIO(file.read(5 * _PICKLE_BYTES))
        _, version, system, state, keys = (read_pickle(pickles) for _ in range(5))
        if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("is not a torch file of protocol 1001 from a little-endian machine")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("has no list of storages")
        storages = {tensor.storage.key: tensor.storage for tensor in _tensors(state).values()}
        if len(set(keys)) != len(keys) or set(keys) != storages.keys():
            raise ValueError("does not list the storages that its tensors use")
        spans, position = {}, pickles.tell()
        for key in keys:
            num_items, num_bytes = storages[key].num_items, storages[key].num_items * storages[key].dtype.itemsize
            file.seek(position)
            if file.read(8) != num_items.to_bytes(8, "little") or position + 8 + num_bytes > size:
                raise ValueError(f"is cut off or damaged at byte {position} of {size}")
            spans[key] = (position + 8, position + 8 + num_bytes)
            position += 8 + num_bytes

    def read_bytes(storage: Storage, start: int, count: int) -> bytes:
        first, end = spans[storage.key]
        with open(path, "rb") as file:
            file.seek(first + start)
            return file.read(max(0, min(count, end - first - start)))

    return _stored(state, read_bytes)


def _read_some(archive: zipfile.ZipFile, member: str, count: int, start: int = 0) -> bytes:
    """Read up to `count` bytes; zipfile verifies the CRC of a member only if it is read completely."""
    with archive.open(member) as file:
        if start:
            file.seek(start)
        return file.read(count)


def _tensors(state: object) -> dict[str, Tensor]:
    if not isinstance(state, dict):
        raise ValueError("is not a dictionary of tensors; save the network's `state_dict()`")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"contains {name[:40]!r}, which is not a tensor; save only the network's `state_dict()`")
    return state


def _stored(state: object, read_bytes: Callable[[Storage, int, int], bytes]) -> dict[str, StoredTensor]:
    def read(tensor: Tensor) -> np.ndarray:
        dtype = tensor.storage.dtype
        num_bytes = math.prod(tensor.shape) * dtype.itemsize
        data = read_bytes(tensor.storage, tensor.offset * dtype.itemsize, num_bytes)
        if len(data) != num_bytes:
            raise ValueError(f"the storage {tensor.storage.key} is cut off")
        return np.ndarray(tensor.shape, dtype, data, strides=[stride * dtype.itemsize for stride in tensor.strides])

    return {name: StoredTensor(tensor.shape, partial(read, tensor)) for name, tensor in _tensors(state).items()}
