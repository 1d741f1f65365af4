"""Print the location of each array in an HDF5 file as a JSON row of path, shape, type and first byte.

    python -P hdf5_layout.py < FILE

`hdf5.read_arrays` runs it in a separate process, because a crafted file can crash the HDF5 library. It reads nothing
but standard input: only hard links are followed, and attributes are never opened.
"""

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from typing import BinaryIO

import h5py
from h5py import h5d, h5g, h5l, h5o

MAX_BYTES = 2_000_000_000  # of address space, excluding data read from a pipe
MAX_LINKS = 20_000  # a VGG file has about a hundred
MAX_NAME = 1000


def rows(file: BinaryIO) -> Iterator[tuple[str, tuple[int, ...], str, int | None]]:
    """Walk over all groups of a file.

    Yields:
      Path, shape, numpy type string, and first byte of each array. The first byte is None for an array that is not
      stored contiguously inside the file.

    Raises:
      ValueError: If an object is linked twice, which may be a loop, a path is too long, or there are too many objects.
    """
    with h5py.File(file, "r") as opened:
        groups, seen = [("", opened.id)], {h5o.get_info(opened.id).addr}
        while groups:
            folder, group = groups.pop()
            names: list[bytes] = []
            group.links.iterate(names.append)
            for name in names:
                link = group.links.get_info(name)
                if link.type != h5l.TYPE_HARD:
                    continue
                path = folder + name.decode(errors="replace")
                if link.u in seen or len(seen) > MAX_LINKS or len(path) > MAX_NAME:
                    raise ValueError(
                        f"{path[:80]} is linked twice, has an overlong path, or exceeds {MAX_LINKS} objects"
                    )
                seen.add(link.u)
                target = h5o.open(group, name)
                if isinstance(target, h5g.GroupID):
                    groups.append((f"{path}/", target))
                elif isinstance(target, h5d.DatasetID):
                    yield path, target.shape or (), str(target.dtype.str), _first_byte(target)


def _first_byte(dataset: h5d.DatasetID) -> int | None:
    storage = dataset.get_create_plist()
    if storage.get_layout() != h5d.CONTIGUOUS or storage.get_external_count():
        return None
    return dataset.get_offset()


def main() -> None:
    """Print the arrays of the HDF5 file on standard input, which may be a file or a pipe."""
    file = sys.stdin.buffer
    if not file.seekable():
        file = io.BytesIO(file.read())
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        address_space = MAX_BYTES + (len(file.getbuffer()) if isinstance(file, io.BytesIO) else 0)
        for kind, limit in ((resource.RLIMIT_AS, address_space), (resource.RLIMIT_CORE, 0)):
            hard = resource.getrlimit(kind)[1]
            allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (allowed, hard))
    try:
        print(json.dumps({"rows": list(rows(file))}))
    except Exception as error:  # h5py raises many types of exceptions for damaged files
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
