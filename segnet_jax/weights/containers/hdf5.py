"""Reads the arrays of an HDF5 file as Keras writes it, without the HDF5 library.

That library is a large program in C that follows whatever addresses a file holds, into other files too. Here the
earliest form of the file alone is read, which h5py writes unless told otherwise: superblock 0, groups as symbol tables,
arrays in one piece. Attributes and links to elsewhere are passed over; whatever else the form can say is refused.
Source: HDF5 File Format Specification, version 3.0; its sections stand beside what they describe.
"""

import math
import struct
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

import numpy as np

from segnet_jax.weights.containers.stored import StoredTensor

_SUPERBLOCK = struct.Struct("<8s8B2HI4Q2Q")  # II.A, version 0
_FLOATS = {  # IV.A.2.d: a datatype message less its first byte, the version and class -> type
    struct.pack("<3BI2H4BI", 0x20, sign, 0, size, 0, 8 * size, exponent_at, exponent, 0, exponent_at, bias): dtype
    for dtype, size, sign, exponent_at, exponent, bias in (
        ("<f2", 2, 15, 10, 5, 15),
        ("<f4", 4, 31, 23, 8, 127),
        ("<f8", 8, 63, 52, 11, 1023),
    )
}
_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _CONTINUATION, _SYMBOLS = 1, 3, 7, 8, 16, 17  # IV.A.2: header messages
_SHARED = 2  # flag of a message that lies elsewhere
_HARD_LINK_TYPES = (0, 1)  # III.C: of a symbol table's entry; 2 is a soft link
_MOST_STEPS = 100_000
"""Of what is looked at in one file: blocks, messages and names. A VGG's file takes some thousand."""
_NAME_BYTES = 256


def read_arrays(file: BinaryIO) -> dict[str, StoredTensor]:
    """Finds the floating-point arrays in all groups of a file; those of other types are found and cannot be read.

    Args:
      file: stays open until the arrays are read.

    Returns:
      Path such as "block1_conv1/block1_conv1/kernel:0" -> array.

    Raises:
      ValueError: the file is damaged, or of another form of HDF5.
    """
    reader = _Reader(file)
    arrays: dict[str, StoredTensor] = {}
    groups, seen = [("", reader.root)], {reader.root}
    while groups:
        folder, address = groups.pop()
        for name, target in reader.links(address):
            if target in seen or f"{folder}{name}" in arrays:
                raise ValueError(f"{folder}{name} is there twice, or is another array or group too")
            seen.add(target)
            if _SYMBOLS in (messages := reader.messages(target)):
                groups.append((f"{folder}{name}/", target))
            else:
                arrays[f"{folder}{name}"] = _array(reader, f"{folder}{name}", messages)
    return arrays


class _Reader:
    """The structures of a file, every one of which lies inside it and is counted."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._size = file.seek(0, 2)
        self._left = _MOST_STEPS
        fields = _SUPERBLOCK.unpack(self.read(0, _SUPERBLOCK.size))
        # Versions of it and its parts, sizes of an offset and of a length, and where addresses count from.
        if fields[1:4] != (0, 0, 0) or fields[5:8] != (0, 8, 8) or fields[12] != 0:
            raise ValueError("is written in a form of HDF5 that is not read here: write it by h5py without `libver`")
        if fields[14] > self._size:
            raise ValueError(f"is cut off after {self._size} of {fields[14]} bytes")
        self.root: int = fields[17]

    def read(self, address: int, count: int) -> bytes:
        """So many bytes from an address on."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"has more than {_MOST_STEPS} parts, which no network read here has")
        if address + count > self._size:
            raise ValueError(f"is cut off or damaged: {count} bytes at {address} lie beyond its end at {self._size}")
        self._file.seek(address)
        return self._file.read(count)

    def messages(self, address: int) -> dict[int, bytes]:
        """An object's header (IV.A.1.a): number of the message's type -> the first such message."""
        version, count, size = struct.unpack("<BxH4xI4x", self.read(address, 16))
        if version != 1:
            raise ValueError(f"the header at byte {address} is damaged, or of a form of HDF5 that is not read here")
        messages: dict[int, bytes] = {}
        blocks = [(address + 16, size)]
        while blocks:
            block = self.read(*blocks.pop(0))
            place = 0
            while place + 8 <= len(block) and count:
                self._left, count = self._left - 1, count - 1
                kind, length, flags = struct.unpack_from("<HHB", block, place)
                message = block[place + 8 : place + 8 + length]
                place += 8 + length
                if kind == _CONTINUATION and len(message) >= 16:
                    blocks.append(struct.unpack_from("<QQ", message))
                elif not flags & _SHARED:
                    messages.setdefault(kind, message)
        return messages

    def links(self, address: int) -> Iterator[tuple[str, int]]:
        """A group's hard links (III.A to III.D): name and address of each."""
        message = self.messages(address).get(_SYMBOLS, b"")
        if len(message) < 16:
            raise ValueError(f"the group at byte {address} is damaged, or of a form of HDF5 that is not read here")
        tree, heap = struct.unpack_from("<QQ", message)
        magic, names_size, names = struct.unpack("<4s4xQ8xQ", self.read(heap, 32))
        if magic != b"HEAP":
            raise ValueError(f"the names at byte {heap} are damaged")
        for leaf in self._leaves(tree):
            magic, count = struct.unpack("<4s2xH", self.read(leaf, 8))
            if magic != b"SNOD":
                raise ValueError(f"the table at byte {leaf} is damaged")
            for name, target, kind in struct.iter_unpack("<QQI20x", self.read(leaf + 8, 40 * count)):
                if kind in _HARD_LINK_TYPES:
                    text = self.read(names + name, max(0, min(_NAME_BYTES, names_size - name)))
                    yield text.partition(b"\0")[0].decode("utf-8", errors="replace"), target

    def _leaves(self, tree: int) -> Iterator[int]:
        """Addresses of the tables below a node (III.A.1); the level of nodes falls, so that no tree is endless."""
        nodes = [(tree, 256)]
        while nodes:
            address, above = nodes.pop()
            magic, kind, level, count = struct.unpack("<4sBBH", self.read(address, 8))
            if magic != b"TREE" or kind != 0 or level >= above:
                raise ValueError(f"the tree at byte {address} is damaged")
            children = [child for (child,) in struct.iter_unpack("<8xQ", self.read(address + 24, 16 * count))]
            if level == 0:
                yield from children
            else:
                nodes.extend((child, level) for child in reversed(children))


def _array(reader: _Reader, name: str, messages: dict[int, bytes]) -> StoredTensor:
    """An array, of which the shape is known and all else is looked at when it is read."""
    if _EXTERNAL in messages:
        raise ValueError(f"{name} keeps its data in another file")
    return StoredTensor(_shape(name, messages.get(_DATASPACE, b"")), partial(_read, reader, name, messages))


def _shape(name: str, dataspace: bytes) -> tuple[int, ...]:
    version, num_axes = dataspace[:2].ljust(2, b"\0")
    start = {1: 8, 2: 4}.get(version)
    if start is None or num_axes > 32 or start + 8 * num_axes > len(dataspace):
        raise ValueError(f"the shape of {name} is damaged")
    return struct.unpack_from(f"<{num_axes}Q", dataspace, start)


def _read(reader: _Reader, name: str, messages: dict[int, bytes]) -> np.ndarray:
    dtype = next((dtype for form, dtype in _FLOATS.items() if messages.get(_DATATYPE, b"")[1:].startswith(form)), None)
    if dtype is None:
        raise ValueError(f"tensor {name} holds numbers of another type than float16, float32 or float64")
    shape, layout = _shape(name, messages[_DATASPACE]), messages.get(_LAYOUT, b"").ljust(18, b"\0")
    version, kind, address, num_bytes = struct.unpack_from("<BBQQ", layout)
    if version not in (3, 4) or kind != 1:
        raise ValueError(f"tensor {name} is not stored in one piece: write it without chunks and compression")
    if num_bytes != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"tensor {name} of shape {shape} has {num_bytes} bytes")
    return np.frombuffer(reader.read(address, num_bytes), dtype).reshape(shape)
