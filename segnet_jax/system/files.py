"""Small files written whole or not at all, sums of files, and names that are nearly theirs."""

import contextlib
import difflib
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from segnet_jax.system import confined
from segnet_jax.system.errors import UserError

_OF_A_RUN = {  # what a training leaves in a run's folder, or will leave
    *("config.toml", "environment.json", "data.json", "overrides.json", "outcome.json", "result.json", "lock"),
    *("result_before.json", "metrics.jsonl", "train.log", "confusion.csv", "report.html", "progress.png"),
    "first_batch.png",
}
_HEAD = 4096  # bytes of a file that tell what wrote it
_LONGEST = 255  # bytes of a name, on most file systems


def atomic_write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it: a reader or a kill never finds half of it.

    A link that has either name is replaced, never followed. Where the folder may be somebody else's, its path is to be
    made by `confined.make_folder`.

    Raises:
      OSError: from the disk; nothing is left then.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(_temporary_name(path.name))
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "wb", opener=_create) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _create(path: str, flags: int) -> int:
    """Open a file that is not there yet; a link of its name is not followed."""
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def _temporary_name(name: str) -> str:
    """The name that a file of another name is written under, no other file's; a long one is told by its sum."""
    ending = f".{os.getpid()}.tmp"
    if len(os.fsencode(name)) + len(ending) >= _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}{ending}"


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Write text as UTF-8, whole or not at all; what UTF-8 cannot hold is escaped as in JSON."""
    atomic_write_bytes(path, text.encode(errors="backslashreplace"))


def atomic_write_json(path: str | os.PathLike, value) -> None:
    """Writes a value as indented JSON, whole or not at all; NaN and infinity become null."""
    atomic_write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_own_json(path: str | os.PathLike, most: int = confined.MOST_BYTES) -> Any:
    """Parse a JSON file that the user named, through a link if it is one.

    Raises:
      ValueError: it is not JSON.
      confined.Refused: it is not a regular file, or too large.
      OSError: it cannot be read.
    """
    real = pathlib.Path(os.path.realpath(path))
    return confined.read_json(real.parent, real.name, most)


def write_result(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Write what `--json` asks for, with the mark by which a later command knows that it may replace the file."""
    atomic_write_json(path, {"written_by": "segnet_jax", **value})


def is_result(head: bytes) -> bool:
    """Whether a file that begins so was written by `write_result`."""
    return re.match(rb'\{\s*"written_by": "segnet_jax"', head) is not None


def check_place(
    flag: str, path: str, made: str | os.PathLike = "", is_ours: Callable[[bytes], bool] = is_result
) -> None:
    """Refuse a file that a command could not write at its end, before it begins.

    Args:
      flag: that names the file.
      path: the file; "" is none.
      made: a folder that the command makes by itself, "" for none.
      is_ours: whether a file that begins so was written by this command or one like it, and may be replaced.

    Raises:
      UserError: naming the flag: the file is a folder, its own folder is not there or cannot be written to, or the file
        is there and was not written for such a flag.
    """
    place = pathlib.Path(path)
    if not path:
        return
    if os.path.isdir(place):
        raise UserError(f"--{flag} {path} is a folder: name a file")
    if len(os.fsencode(place.name)) > _LONGEST:
        raise UserError(f"--{flag} {path} is too long a name: name another file")
    if place.name in _OF_A_RUN and os.path.lexists(place.parent / "config.toml"):
        raise UserError(f"--{flag} {path} is a file of the run itself: name another file")
    if os.path.lexists(place) and not _may_be_replaced(place, is_ours):
        raise UserError(
            f"--{flag} {path} is there already: nothing is overwritten but what such a flag wrote before, name another "
            "file"
        )
    if made and place.absolute().parent == pathlib.Path(made).absolute():
        return
    if not place.parent.is_dir():
        raise UserError(f"--{flag} {path}: there is no folder {place.parent}; make it, or name another file")
    if not os.access(place.parent, os.W_OK):
        raise UserError(f"--{flag} {path}: the folder {place.parent} cannot be written to; name another file")


def _may_be_replaced(place: pathlib.Path, is_ours: Callable[[bytes], bool]) -> bool:
    """Whether what a path names is an empty file or one that begins as what such a command wrote before."""
    real = pathlib.Path(os.path.realpath(place))
    with contextlib.suppress(OSError, UserError), confined.open_file(real.parent, real.name) as file:
        head = file.read(_HEAD)
        return not head or is_ours(head)
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


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """A path in which ~ stands for a home folder.

    Raises:
      UserError: there is no such user, or nobody knows this one's home.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no home folder is known for that; write the path in full") from None


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


def cache_folder() -> pathlib.Path:
    """Return the folder of the cache: $SEGNET_JAX_CACHE, or `segnet_jax` in the user's cache folder.

    Raises:
      UserError: there is neither, as for a user whom the system does not know.
    """
    if own := os.environ.get("SEGNET_JAX_CACHE"):
        return pathlib.Path(own)
    try:
        return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "segnet_jax"
    except RuntimeError:
        raise UserError(
            "no home folder is known for this user: set SEGNET_JAX_CACHE to a folder for decoded images and weights"
        ) from None


def relative_path(path: pathlib.Path, folder: pathlib.Path) -> str:
    """Return the path of a file below a folder, with slashes."""
    return path.relative_to(folder).as_posix()
