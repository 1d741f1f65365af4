"""Access to files below an untrusted folder: no link inside it is followed, and every read has a size limit.

A run folder that was downloaded or unpacked may contain links, pipes, devices or huge files. The folder itself is named
by the user and may be a link. Everything below it is opened relative to a descriptor of that folder, one component at a
time, with O_NOFOLLOW.

This does not guard against a process that changes the folder at the same time: it has the user's own rights.
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
"""Default size limit for reading a whole file."""
MOST_LISTS = 2_000_000  # and objects, in a JSON file; an empty one of two bytes takes 64 of memory
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
    """Raised if a file inside a folder is a link, is not a regular file, or is over its size limit."""


def check_tree(root: Folder) -> None:
    """Refuse a folder that contains anything but regular files and folders, at any depth.

    Args:
      root: the folder as the user named it; it may itself be a link.

    Raises:
      Refused: If there is a link, pipe, socket or device, or a folder is too deep or has too many files; the message
        names the first.
      UserError: If the folder, or one inside it, cannot be read.
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
                        raise Refused(f"{shown(str(root))} contains over {MOST_ENTRIES:,} files, more than any run has")
                    if entry.is_dir(follow_symlinks=False):
                        if depth == MOST_DEPTH:
                            raise Refused(
                                f"{shown(str(root))} contains folders nested over {MOST_DEPTH} levels deep, more than "
                                "any run has"
                            )
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
      Refused: If a component of `name` is a link or not a folder.
      OSError: If it does not exist or cannot be read.
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


def check_folder(root: Folder, name: str) -> None:
    """Check that a name below `root` is a folder, or does not exist.

    Raises:
      Refused: If it is a link or another kind of file.
    """
    with contextlib.suppress(FileNotFoundError):
        os.close(open_folder(root, name))


@contextlib.contextmanager
def _around(root: Folder, name: str) -> Iterator[tuple[int, str]]:
    """Yield the descriptor of the folder that contains `name`, and the last component of `name`."""
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
      name: name of the file, relative to the folder, with "/" between components.
      flags: flags of `os.open`.
      most: size limit in bytes; None for no limit.

    Raises:
      Refused: If a component is a link, the file is not a regular one, or is over the limit.
      OSError: If it does not exist or cannot be opened.
    """
    with _around(root, name) as (folder, last):
        try:  # O_NONBLOCK: opening a pipe would block forever
            descriptor = os.open(last, flags | _NO_LINK | os.O_NONBLOCK, 0o666, dir_fd=folder)
        except OSError as error:
            mode = _mode(last, folder)
            if mode is not None and not stat.S_ISREG(mode) and error.errno != errno.EEXIST:
                raise _refused(root, name, mode) from None
            raise
    try:
        opened = os.fstat(descriptor)
        if not stat.S_ISREG(opened.st_mode):
            raise _refused(root, name, opened.st_mode)
        if most is not None and opened.st_size > most:
            path = shown(os.path.join(root, name))
            raise Refused(
                f"{path} has {opened.st_size:,} bytes, over the limit of {most:,}", kind="too-large", file=path
            )
        os.set_blocking(descriptor, True)
        mode = "ab" if flags & os.O_APPEND else "wb" if flags & os.O_WRONLY else "rb"
        return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else mode, buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(root: Folder, name: str, most: int = MOST_BYTES) -> bytes:
    """Read a whole file below `root`; see `open_file` for the errors raised."""
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
      ValueError: If it is not JSON, or is nested too deeply.
      Refused, OSError: If `open_file` raises them.
    """
    return parse_json(read_bytes(root, name, most))


def parse_json(data: bytes | str) -> Any:
    """Parse JSON; any error, such as excessive nesting, raises ValueError, and so do over `MOST_LISTS` lists."""
    if sum(map(data.count, (b"[", b"{") if isinstance(data, bytes) else ("[", "{"))) > MOST_LISTS:
        raise ValueError(f"it has over {MOST_LISTS:,} lists and objects")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def sum_of(root: Folder, name: str, num_bytes: int) -> str:
    """Return the sha256, as hex, of a file below `root` with at most `num_bytes` bytes.

    Raises:
      Refused, OSError: If `open_file` raises them.
    """
    with open_file(root, name, most=num_bytes) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def status(root: Folder, name: str) -> os.stat_result | None:
    """Return `lstat` of a file or folder below `root`, or None if it does not exist.

    Raises:
      Refused: If a folder on the way is a link.
    """
    try:
        with _around(root, name) as (folder, last):
            return os.stat(last, dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_file(root: Folder, name: str) -> bool:
    """Return whether there is a regular file below `root`.

    Raises:
      Refused: If it is a link or something else.
    """
    existing = status(root, name)
    if existing is None:
        return False
    if not stat.S_ISREG(existing.st_mode):
        raise _refused(root, name, existing.st_mode)
    return True


def names(root: Folder, name: str = "") -> list[str]:
    """Return the sorted names in a folder below `root`; empty if it does not exist.

    Raises:
      Refused: If it is a link or not a folder.
      OSError: If it cannot be read.
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
    """Create a folder below `root` and its parents, if missing; return its path.

    Raises:
      Refused: If a component is a link or not a folder.
      OSError: If it cannot be created.
    """
    parts = _parts(name)
    for count in range(1, len(parts) + 1):
        inner = "/".join(parts[:count])
        with _around(root, inner) as (folder, last), contextlib.suppress(FileExistsError):
            os.mkdir(last, dir_fd=folder)
    os.close(open_folder(root, name))
    return pathlib.Path(root, name)


def rename(root: Folder, old: str, new: str) -> None:
    """Rename a file or folder below `root`; an existing file of the new name is replaced."""
    with _around(root, old) as (source, before), _around(root, new) as (target, after):
        os.rename(before, after, src_dir_fd=source, dst_dir_fd=target)


def remove(root: Folder, name: str) -> None:
    """Remove a file, a link or a folder tree below `root`; errors, such as a missing file, are ignored."""
    with contextlib.suppress(OSError), _around(root, name) as (folder, last):
        mode = _mode(last, folder)
        if mode is None:
            return
        if stat.S_ISDIR(mode):
            shutil.rmtree(last, ignore_errors=True, dir_fd=folder)
        else:
            os.unlink(last, dir_fd=folder)


def unreadable(path: Folder, error: OSError) -> UserError:
    """Return the error for a file or folder that cannot be read."""
    name = shown(str(path))
    return UserError(f"cannot read {name}: {error.strerror or error}", kind="cannot-read", file=name)


def _parts(name: str) -> list[str]:
    parts = [part for part in str(name).split("/") if part]
    if ".." in parts or "\0" in str(name) or str(name).startswith("/"):
        raise Refused(f"{name!r} is not a path inside the folder")
    return parts


def _mode(name: str, folder: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    return None


def _refused(root: Folder, name: str, mode: int, expected: str = "regular file") -> Refused:
    path = shown(os.path.join(root, name))
    kind = _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")
    if stat.S_ISLNK(mode):
        message = f"{path} is a link, and links inside a run folder are not followed: put the file there, or remove it"
        return Refused(message, kind="link-inside", file=path)
    return Refused(f"{path} is {kind}, where a {expected} is expected: remove it", kind="not-a-file", file=path)
