"""Atomic writes of small files, JSON output files, checksums, and suggestions for misspelled paths."""

import contextlib
import difflib
import hashlib
import json
import math
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import UserError

_OF_A_RUN = {  # files that training writes to the run folder
    *("config.toml", "environment.json", "data.json", "overrides.json", "outcome.json", "result.json", "lock"),
    *(
        "result_before.json",
        "calibration.json",
        "folds.json",
        "metrics.jsonl",
        "train.log",
        "confusion.csv",
        "report.html",
        "progress.png",
    ),
    "first_batch.png",
}
_CHECKPOINTS = "checkpoints"  # folder of a run: a checkpoint with a file that its manifest does not list is damaged
_HEAD = 4096  # bytes to read to recognize our own files
_LONGEST = 255  # bytes of a file name, on most file systems


def atomic_write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file atomically: under a temporary name in the same folder, then rename it.

    A link of either name is replaced, not followed. If the folder is untrusted, create its path by
    `untrusted_files.make_folder`.

    Raises:
      OSError: If writing failed; no file is left behind.
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
    """Open a file that must not exist yet; a link of that name is not followed."""
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def _temporary_name(name: str) -> str:
    """Return a unique temporary name for a file; long names are replaced by their hash."""
    ending = f".{os.getpid()}.{threading.get_native_id()}.tmp"  # threads may write one file at the same time
    if len(os.fsencode(name)) + len(ending) >= _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}{ending}"


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Write text as UTF-8, atomically; characters that UTF-8 cannot encode are escaped as in JSON."""
    atomic_write_bytes(path, text.encode(errors="backslashreplace"))


def atomic_write_json(path: str | os.PathLike, value) -> None:
    """Write a value as indented JSON, atomically; NaN and infinity become null."""
    atomic_write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_own_json(path: str | os.PathLike, most: int = untrusted_files.MOST_BYTES) -> Any:
    """Parse a JSON file that the user named; a link is followed.

    Raises:
      ValueError: If it is not JSON.
      untrusted_files.Refused: If it is not a regular file, or is too large.
      OSError: If it cannot be read.
    """
    real = pathlib.Path(os.path.realpath(path))
    return untrusted_files.read_json(real.parent, real.name, most)


def write_result(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Write the file of a `--json` flag, marked so that a later command may replace it."""
    atomic_write_json(path, {"written_by": "segnet_jax", **value})


def is_result(head: bytes) -> bool:
    """Return whether a file that begins with `head` was written by `write_result`."""
    return re.match(rb'\{\s*"written_by": "segnet_jax"', head) is not None


def check_place(
    flag: str, path: str, made: str | os.PathLike = "", is_ours: Callable[[bytes], bool] = is_result
) -> None:
    """Check, before a command starts, that it will be able to write an output file.

    Args:
      flag: name of the flag, without --.
      path: path of the file; "" for none.
      made: output folder that the command will create; "" for none.
      is_ours: function that returns whether a file with these first bytes may be replaced.

    Raises:
      UserError: If the path is a folder, its name is too long, its folder is missing or not writable, or the file
        belongs to a run or already exists and was not written by this flag.
    """
    place = pathlib.Path(path)
    if not path:
        return
    if os.path.isdir(place):
        raise UserError(f"--{flag} {path} is a folder: name a file")
    if len(os.fsencode(place.name)) > _LONGEST:
        raise UserError(f"--{flag} {path} has too long a name: choose a shorter one")
    if _is_of_a_run(place):
        raise UserError(f"--{flag} {path} is a file of the run itself: choose another file")
    if os.path.lexists(place) and not _may_be_replaced(place, is_ours):
        raise UserError(
            f"--{flag} {path} already exists and is not overwritten, as --{flag} did not write it; choose another file"
        )
    if made and place.absolute().parent == pathlib.Path(made).absolute():
        return
    if not place.parent.is_dir():
        raise UserError(f"--{flag} {path}: there is no folder {place.parent}; create it, or choose another file")
    if not os.access(place.parent, os.W_OK):
        raise UserError(f"--{flag} {path}: the folder {place.parent} cannot be written to; choose another file")


def check_distinct(outputs: Mapping[str, str | os.PathLike], inputs: Iterable[str | os.PathLike] = ()) -> None:
    """Check that the output files of a command differ from each other and from its input files.

    Args:
      outputs: maps flags to paths; "" for none.
      inputs: paths of files that the command reads.

    Raises:
      UserError: If two outputs, or an output and an input, are the same file.
    """
    taken = {os.path.realpath(path): "an input file" for path in inputs}
    for flag, path in outputs.items():
        if path and (other := taken.setdefault(os.path.realpath(path), flag)) != flag:
            raise UserError(f"{flag} {path} is also {other}; choose another file")


def _is_of_a_run(place: pathlib.Path) -> bool:
    """Return whether training writes this file, which need not exist yet, to a run, or it is inside a checkpoint."""
    real = pathlib.Path(os.path.realpath(place.parent), place.name)
    if real.name in _OF_A_RUN and os.path.lexists(real.parent / "config.toml"):
        return True
    return any(
        folder.name == _CHECKPOINTS and os.path.lexists(folder.parent / "config.toml") for folder in real.parents
    )


def _may_be_replaced(place: pathlib.Path, is_ours: Callable[[bytes], bool]) -> bool:
    """Return whether a file is empty or may be replaced according to `is_ours`."""
    real = pathlib.Path(os.path.realpath(place))
    with contextlib.suppress(OSError, UserError), untrusted_files.open_file(real.parent, real.name) as file:
        head = file.read(_HEAD)
        return not head or is_ours(head)
    return False


def sum_of_file(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file; takes half a second per gigabyte, and leaves the file in the page cache."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def plain(value):
    """Convert numpy and JAX numbers and arrays, nested in dicts and lists, for JSON; NaN and infinity become None."""
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
        raise TypeError(f"{type(value).__name__} is not JSON-serializable")
    return plain(array.tolist())


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """Expand ~ in a path.

    Raises:
      UserError: If there is no such user, or the home folder is unknown.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no home folder is known for that user; write the path in full") from None


def did_you_mean(path: pathlib.Path, is_right: Callable[[str], bool] = os.path.lexists) -> str:
    """Return ". Did you mean PATH?" for a similar name in the same folder, or ""; for the end of a message.

    Args:
      path: a path that does not exist.
      is_right: whether an existing path is a candidate.
    """
    around = path.absolute().parent
    try:
        names = [name for name in os.listdir(around) if is_right(os.path.join(around, name))]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f". Did you mean {path.parent / near[0]}?" if near else ""


def cache_folder() -> pathlib.Path:
    """Return the cache folder: $SEGNET_JAX_CACHE, or `segnet_jax` in the user's cache folder.

    Raises:
      UserError: If neither exists, as for a user without a home folder.
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


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Lock a folder, if supported, so that only one process at a time downloads into it."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot lock folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
