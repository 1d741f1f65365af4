"""Files below a folder that somebody else may have made: no link inside it is followed, and every read has a limit.

A run folder, as it was unpacked from an archive or downloaded, may hold links, pipes, devices or huge files in place of
its own. The folder itself is the user's word and may be a link. Everything below it is opened relative to a
descriptor of that folder, one component at a time, with O_NOFOLLOW.

This guards against what lies in a folder when a command starts. It does not guard against a process that changes the
folder at the same moment: whoever can do that has the user's own rights.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from segnet_jax.system.errors import UserError, shown

MOST_BYTES = 64 * 2**20
"""Of a file that is read whole, where its reader names no smaller limit."""
MOST_ENTRIES = 1_000_000
MOST_DEPTH = 32
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
}

Folder = str | os.PathLike


class Refused(UserError):
    """A file inside a folder is a link, is not a regular file, or is over its size limit."""


def check_tree(root: Folder) -> None:
    """Refuse a folder that holds anything but regular files and folders, at any depth.

    Args:
      root: the folder as the user named it; it may itself be a link.

    Raises:
      Refused: naming the first link, pipe, socket or device, or a folder that is too deep or holds too many files.
      UserError: the folder, or one inside it, cannot be read.
    """
    count, waiting = 0, [("", 0)]
    while waiting:
        name, depth = waiting.pop()
        try:
            descriptor = open_folder(root, name)
        except OSError as error:
            raise unreadable(os.path.join(root, name), error) from None
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    inner = f"{name}/{entry.name}" if name else entry.name
                    count += 1
                    if count > MOST_ENTRIES:
                        raise Refused(f"{shown(str(root))} holds over {MOST_ENTRIES:,} files, which no run does")
                    if entry.is_dir(follow_symlinks=False):
                        if depth == MOST_DEPTH:
                            raise Refused(f"{shown(str(root))} holds folders over {MOST_DEPTH} deep, which no run does")
                        waiting.append((inner, depth + 1))
                    elif not entry.is_file(follow_symlinks=False):
                        raise _refused(root, inner, entry.stat(follow_symlinks=False).st_mode)
        except OSError as error:
            raise unreadable(os.path.join(root, name), error) from None
        finally:
            os.close(descriptor)


def open_folder(root: Folder, name: str = "") -> int:
    """Open a folder below `root` without following a link; return its descriptor, which the caller closes.

    Raises:
      Refused: a component of `name` is a link or not a folder.
      OSError: it does not exist or cannot be read.
    """
    descriptor = os.open(root, _DIRECTORY)
    for place, component in enumerate(parts := _parts(name)):
        try:
            inner = os.open(component, _DIRECTORY | _NO_LINK, dir_fd=descriptor)
        except OSError as error:
            mode = _mode(component, descriptor)
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and mode is not None and not stat.S_ISDIR(mode):
                raise _refused(root, "/".join(parts[: place + 1]), mode, "folder") from None
            raise
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


@contextlib.contextmanager
def _around(root: Folder, name: str) -> Iterator[tuple[int, str]]:
    """Yield the descriptor of the folder that holds `name`, and the last component of `name`."""
    *before, last = _parts(name)
    descriptor = open_folder(root, "/".join(before))
    try:
        yield descriptor, last
    finally:
        os.close(descriptor)


def open_file(root: Folder, name: str, flags: int = os.O_RDONLY, most: int | None = None) -> BinaryIO:
    """Open a regular file below `root` without following a link.

    Args:
      root: the folder.
      name: of the file, relative to the folder, with "/" between components.
      flags: of `os.open`.
      most: bytes that the file may have; None for any number.

    Raises:
      Refused: a component is a link, the file is not a regular one, or is over the limit.
      OSError: it does not exist or cannot be opened.
    """
    with _around(root, name) as (folder, last):
        try:  # O_NONBLOCK: to open a pipe would wait for ever
            descriptor = os.open(last, flags | _NO_LINK | os.O_NONBLOCK, 0o666, dir_fd=folder)
        except OSError as error:
            mode = _mode(last, folder)
            if mode is not None and not stat.S_ISREG(mode) and error.errno != errno.EEXIST:
                raise _refused(root, name, mode) from None
            raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _refused(root, name, found.st_mode)
        if most is not None and found.st_size > most:
            path = shown(os.path.join(root, name))
            raise Refused(
                f"{path} has {found.st_size:,} bytes, and at most {most:,} are read", kind="too-large", file=path
            )
        os.set_blocking(descriptor, True)
        mode = "ab" if flags & os.O_APPEND else "wb" if flags & os.O_WRONLY else "rb"
        return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else mode, buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(root: Folder, name: str, most: int = MOST_BYTES) -> bytes:
    """Read a file below `root` whole; raises as `open_file`."""
    with open_file(root, name, most=most) as file:
        data = bytearray()
        while block := file.read(min(most + 1 - len(data), 2**24)):
            data += block
            if len(data) > most:
                path = shown(os.path.join(root, name))
                raise Refused(f"{path} has over {most:,} bytes", kind="too-large", file=path)
    return bytes(data)


def read_json(root: Folder, name: str, most: int = MOST_BYTES) -> Any:
    """Parse a JSON file below `root`.

    Raises:
      ValueError: it is not JSON, or is nested too deep.
      Refused, OSError: as `open_file`.
    """
    return parse_json(read_bytes(root, name, most))


def parse_json(data: bytes | str) -> Any:
    """Parse JSON; whatever is wrong with it, depth included, raises ValueError."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def sum_of(root: Folder, name: str, num_bytes: int) -> str:
    """The sha256 of a file below `root` of a known size, as hex.

    Raises:
      Refused, OSError: as `open_file`.
    """
    with open_file(root, name, most=num_bytes) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def status(root: Folder, name: str) -> os.stat_result | None:
    """`lstat` of what lies below `root`; None where there is nothing.

    Raises:
      Refused: a folder on the way is a link.
    """
    try:
        with _around(root, name) as (folder, last):
            return os.stat(last, dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_file(root: Folder, name: str) -> bool:
    """Whether there is a regular file below `root`.

    Raises:
      Refused: there is a link or something else in its place.
    """
    found = status(root, name)
    if found is None:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise _refused(root, name, found.st_mode)
    return True


def names(root: Folder, name: str = "") -> list[str]:
    """The names in a folder below `root`, sorted; none where it does not exist.

    Raises:
      Refused: it is a link or not a folder.
      OSError: it cannot be read.
    """
    try:
        descriptor = open_folder(root, name)
    except FileNotFoundError:
        return []
    try:
        return sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)


def make_folder(root: Folder, name: str) -> pathlib.Path:
    """Make a folder below `root`, and those around it, where they are missing; return its path.

    Raises:
      Refused: a component is a link or not a folder.
      OSError: it cannot be made.
    """
    parts = _parts(name)
    for count in range(1, len(parts) + 1):
        inner = "/".join(parts[:count])
        with _around(root, inner) as (folder, last), contextlib.suppress(FileExistsError):
            os.mkdir(last, dir_fd=folder)
    os.close(open_folder(root, name))
    return pathlib.Path(root, name)


def rename(root: Folder, old: str, new: str) -> None:
    """Give a file or folder below `root` another name below it; a file of that name is replaced."""
    with _around(root, old) as (source, before), _around(root, new) as (target, after):
        os.rename(before, after, src_dir_fd=source, dst_dir_fd=target)


def remove(root: Folder, name: str) -> None:
    """Remove a file, a link itself, or a whole folder below `root`; nothing where it is not there.

    What cannot be removed stays, without an error.
    """
    with contextlib.suppress(OSError), _around(root, name) as (folder, last):
        mode = _mode(last, folder)
        if mode is None:
            return
        if stat.S_ISDIR(mode):
            shutil.rmtree(last, ignore_errors=True, dir_fd=folder)
        else:
            os.unlink(last, dir_fd=folder)


def unreadable(path: Folder, error: OSError) -> UserError:
    """What to say of a file or folder that cannot be read."""
    told = shown(str(path))
    return UserError(f"cannot read {told}: {error.strerror or error}", kind="cannot-read", file=told)


def _parts(name: str) -> list[str]:
    parts = [part for part in str(name).split("/") if part]
    if ".." in parts or "\0" in str(name) or str(name).startswith("/"):
        raise Refused(f"{name!r} does not lie inside the folder")
    return parts


def _mode(name: str, folder: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    return None


def _refused(root: Folder, name: str, mode: int, expected: str = "regular file") -> Refused:
    path = shown(os.path.join(root, name))
    kind = _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")
    if stat.S_ISLNK(mode):
        what = f"{path} is a link; links inside a run folder are not followed: put the file itself there, or remove it"
        return Refused(what, kind="link-inside", file=path)
    return Refused(f"{path} is {kind}, where a {expected} is expected: remove it", kind="not-a-file", file=path)
