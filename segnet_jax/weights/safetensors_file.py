"""Open `.safetensors` files with the safetensors library and a bounded header."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_MAX_HEADER = 1 << 20  # bytes; a VGG's header has some ten thousand


@contextlib.contextmanager
def open_checked(path: Path) -> Iterator[Any]:
    """Open a file with the safetensors library after checking the length of its header.

    Raises:
      ValueError: If it is damaged, even if that is found only on reading.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(_MAX_HEADER, os.path.getsize(path) - 8):  # the library's own limit is 100 MB
        raise ValueError(f"claims a header of {length} bytes; at most {_MAX_HEADER} within the file are read")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"is damaged: {error}") from None
