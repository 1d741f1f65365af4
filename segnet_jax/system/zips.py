"""Checks of untrusted zip files, at bounded cost."""

import io
import zipfile
import zlib
from pathlib import Path

_DIRECTORY_BYTES = 1 << 20
"""Size limit for a zip's central directory; the largest one used here, of CamVid's 701 frames, has 90 kB."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # LZMA may allocate a dictionary of 4 GB


def check_zip(path: Path) -> list[str]:
    """Return the names of a zip's members.

    Raises:
      ValueError: If the central directory is too large, or a member uses an unsupported compression method.
      OSError, zipfile.BadZipFile, NotImplementedError: If `zipfile.ZipFile` raises them.
    """
    with _Frugal(path) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type not in _METHODS:
                raise ValueError(
                    f"member {member.filename[:80]!r} uses the unsupported compression method {member.compress_type}"
                )
        return archive.namelist()


def read_through(path: Path) -> None:
    """Verify the checksum of every member of a zip.

    Raises:
      ValueError: If a member is damaged, or the file is not a zip.
      OSError: If the file cannot be read.
    """
    try:
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error) as error:  # includes NotImplementedError
        raise ValueError(str(error)) from None
    if damaged:
        raise ValueError(f"the checksum of its member {damaged!r} does not match")


class _Frugal(io.FileIO):
    """A file that limits the size of a single read, and so of the central directory that zipfile reads."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _DIRECTORY_BYTES:
            raise ValueError(f"the list of its members has {size} bytes, more than the limit of {_DIRECTORY_BYTES}")
        return super().read(size)
