"""Small files written whole or not at all, sums of files, and names that are nearly theirs."""

import contextlib
import difflib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable

import numpy as np

from segnet_jax.system.errors import UserError


def atomic_write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file under a temporary name beside it, then renames it: a reader or a kill never finds half of it."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Writes text as UTF-8, whole or not at all."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | os.PathLike, value) -> None:
    """Writes a value as indented JSON, whole or not at all; NaN and infinity become null."""
    atomic_write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_place(flag: str, path: str, made: str | os.PathLike = "") -> None:
    """Refuses a file that a command could not write at its end, before it begins.

    Args:
      flag: that names the file.
      path: the file; "" is none.
      made: a folder that the command makes by itself, "" for none.

    Raises:
      UserError: naming the flag: the file is a folder, its own folder is not there or cannot be written to, or --json
        would replace something else than JSON.
    """
    place = pathlib.Path(path)
    if not path or made and place.absolute().parent == pathlib.Path(made).absolute():
        return
    if place.is_dir():
        raise UserError(f"--{flag} {path} is a folder: name a file")
    if not place.parent.is_dir():
        raise UserError(f"--{flag} {path}: there is no folder {place.parent}; make it, or name another file")
    if not os.access(place.parent, os.W_OK):
        raise UserError(f"--{flag} {path}: the folder {place.parent} cannot be written to; name another file")
    if flag == "json" and place.is_file() and not _may_be_a_result(place):
        raise UserError(f"--json {path} is there already: nothing is overwritten but JSON, name another file")


def _may_be_a_result(place: pathlib.Path) -> bool:
    """Whether a file is empty or begins as what a command wrote to it before, which its next run may replace."""
    with contextlib.suppress(PermissionError), open(place, "rb") as file:
        return file.read(1) in (b"", b"{")
    return False


def sum_of_file(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """The hex sum of a file's content; half a second a gigabyte, and every page is in memory afterwards."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def plain(value):
    """Turns numbers and arrays of numpy and JAX, also inside dicts and lists, into what JSON has; NaN becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return plain(array.tolist())


def did_you_mean(path: pathlib.Path, is_right: Callable[[str], bool] = os.path.lexists) -> str:
    """Asks whether what is nearly called that was meant, where there is such; for the end of a message.

    Args:
      path: of what is not there.
      is_right: whether something beside it could have been meant.
    """
    around = path.absolute().parent
    try:
        names = [name for name in os.listdir(around) if is_right(os.path.join(around, name))]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f". Did you mean {path.parent / near[0]}?" if near else ""
