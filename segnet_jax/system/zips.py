"""Zips that other people wrote: looked at before they are opened, at a cost that the file cannot choose."""

import io
import zipfile
import zlib
from pathlib import Path

_DIRECTORY_BYTES = 1 << 20
"""Of a zip's list of members: with forty for a network's tensors and 701 frames of CamVid, ours have 90 kB at most."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # LZMA may claim a dictionary of 4 GB, and needs none of ours


def check_zip(path: Path) -> list[str]:
    """Reads a zip's list of members, if that is short.

    Returns:
      Their names.

    Raises:
      ValueError: the list is longer than that of any zip read here, or a member is packed in an unusual way.
      OSError, zipfile.BadZipFile, NotImplementedError: as `zipfile.ZipFile`.
    """
    with _Frugal(path) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type not in _METHODS:
                raise ValueError(f"member {member.filename[:80]!r} is packed by method {member.compress_type}")
        return archive.namelist()


def read_through(path: Path) -> None:
    """Holds every member of a zip against its own sum.

    Raises:
      ValueError: one does not fit its sum or cannot be read, or it is not a zip.
      OSError: the file cannot be read.
    """
    try:
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error) as error:  # a NotImplementedError is a RuntimeError
        raise ValueError(str(error)) from None
    if damaged:
        raise ValueError(f"its member {damaged!r} does not fit its sum")


class _Frugal(io.FileIO):
    """A file of which zipfile cannot read more at once than a short list of members takes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _DIRECTORY_BYTES:
            raise ValueError(f"the list of its members has {size} bytes, more than {_DIRECTORY_BYTES}")
        return super().read(size)
