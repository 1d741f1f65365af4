"""Open `.safetensors` files with the safetensors library and a bounded header."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_MAX_HEADER = 1 << 20  # bytes; a VGG's header has about ten thousand


@contextlib.contextmanager
def open_checked(path: Path) -> Iterator[Any]:
    """Open a file with the safetensors library after checking the length of its header.

    Raises:
      ValueError: If the file is damaged, even if this is detected only while a tensor is read.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(_MAX_HEADER, os.path.getsize(path) - 8):  # the library's own limit is 100 MB
        raise ValueError(f"claims a header of {length} bytes, more than the file has or the limit of {_MAX_HEADER}")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"is damaged: {error}") from None
