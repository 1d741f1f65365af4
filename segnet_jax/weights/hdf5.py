"""Read the floating-point arrays of an HDF5 file by h5py, without leaving the file.

Only hard links are followed, and arrays must lie in one piece inside the file: no external links, external storage,
virtual datasets, chunks or filters. Attributes and objects of other types are never opened.
"""

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o

from segnet_jax.weights.stored import StoredTensor

_MAX_LINKS = 20_000  # a VGG's file has about a hundred
_PIECES = (h5d.COMPACT, h5d.CONTIGUOUS)


@contextlib.contextmanager
def open_arrays(file: BinaryIO) -> Iterator[dict[str, StoredTensor]]:
    """Find the arrays in all groups of a file; they can be read until the context is left.

    Args:
      file: open for reading, anywhere in memory or on disk.

    Yields:
      Path such as "block1_conv1/block1_conv1/kernel:0" -> array.

    Raises:
      ValueError: the file is damaged or refers to something outside it.
    """
    with _as_value_errors(), h5py.File(file, "r") as opened:
        yield _find(opened.id, file.seek(0, 2))


@contextlib.contextmanager
def _as_value_errors() -> Iterator[None]:
    """Turn what h5py raises for damaged files into ValueError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, OverflowError, NotImplementedError) as error:
        raise ValueError(f"is damaged, or of a kind of HDF5 that is not read here: {error}") from error


def _find(root: h5g.GroupID, num_bytes: int) -> dict[str, StoredTensor]:
    """Walk over all groups; an object that is met twice would be a loop."""
    arrays: dict[str, StoredTensor] = {}
    groups, seen = [("", root)], {h5o.get_info(root).addr}
    while groups:
        folder, group = groups.pop()
        names: list[bytes] = []
        group.links.iterate(names.append)
        for name in names:
            link = group.links.get_info(name)
            if link.type != h5l.TYPE_HARD:
                continue
            path = folder + name.decode(errors="replace")
            if link.u in seen or len(seen) > _MAX_LINKS:
                raise ValueError(f"{path} is a second name of another object" if link.u in seen else "has too many links")
            seen.add(link.u)
            target = h5o.open(group, name)
            if isinstance(target, h5g.GroupID):
                groups.append((f"{path}/", target))
            elif isinstance(target, h5d.DatasetID):
                arrays[path] = StoredTensor(target.shape or (), partial(_read, target, path, num_bytes))
    return arrays


def _read(dataset: h5d.DatasetID, path: str, num_bytes: int) -> np.ndarray:
    """Read an array that lies inside the file in one piece."""
    storage = dataset.get_create_plist()
    if storage.get_layout() not in _PIECES:
        raise ValueError(f"tensor {path} is chunked or virtual; write it without chunks and compression")
    if storage.get_external_count():
        raise ValueError(f"tensor {path} keeps its data in another file")
    dtype = dataset.dtype
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(f"tensor {path} holds {dtype}, and weights are floating-point numbers")
    needed = math.prod(dataset.shape) * dtype.itemsize
    start = dataset.get_offset() if storage.get_layout() == h5d.CONTIGUOUS else 0
    if start is None or start + needed > num_bytes:
        raise ValueError(f"tensor {path} of shape {dataset.shape} reaches beyond the file's {num_bytes} bytes")
    return h5py.Dataset(dataset)[()]
