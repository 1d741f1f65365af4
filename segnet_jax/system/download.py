"""Fetches published files: resumed where they broke off, checked, and never under their final name unless whole."""

import contextlib
import http.client
import logging
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import urlsplit

from segnet_jax.system import logs, zips
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_text, sum_of_file

logger = logging.getLogger(__name__)

Kind = Literal["zip", "hdf5", "torch", "caffe", "any"]

_KINDS: dict[Kind, tuple[str, tuple[bytes, ...]]] = {  # what to call it, and how it may begin
    "zip": ("a zip", (b"PK\x03\x04",)),
    "hdf5": ("an HDF5 file", (b"\x89HDF\r\n\x1a\n",)),
    "torch": ("a torch file", (b"PK\x03\x04", b"\x80\x02\x8a\n")),
    "caffe": ("a .caffemodel", (b"\n", b"\x12", b"\xa2\x06")),  # the tags of a NetParameter's name, layers, layer
    "any": ("a file", (b"",)),
}
_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 5  # at one mirror, as long as each brings something


@dataclass(frozen=True)
class Resource:
    """A published file.

    Attributes:
      filename: its name in the folder that it is fetched into.
      urls: http, https or file, in order of preference; each a mirror of the same bytes.
      kind: what its first bytes must show it to be.
      sha256, sha1, md5: hex, where known.
      num_bytes: its size, or the smallest and the largest plausible size, where known.
      hint: how to do without the download, told when no mirror can be reached.
    """

    filename: str
    urls: tuple[str, ...]
    kind: Kind = "any"
    sha256: str | None = None
    sha1: str | None = None
    md5: str | None = None
    num_bytes: int | tuple[int, int] | None = None
    hint: str = ""

    @property
    def sums(self) -> dict[str, str]:
        """The known sums, by the name of their algorithm."""
        named = {"sha256": self.sha256, "sha1": self.sha1, "md5": self.md5}
        return {algorithm: value.lower() for algorithm, value in named.items() if value}

    @property
    def size_range(self) -> tuple[int, int]:
        """The smallest and the largest plausible number of bytes."""
        if self.num_bytes is None:
            return 1, sys.maxsize
        return self.num_bytes if isinstance(self.num_bytes, tuple) else (self.num_bytes, self.num_bytes)


class _Refused(Exception):
    """What the server sent is not the file."""


def is_web_page(head: bytes) -> bool:
    """Whether a file that begins with `head` is HTML or XML: what servers send in place of a file that they lack."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:5].lower().startswith((b"<!doc", b"<html", b"<head", b"<?xml"))


def fetch(resource: Resource, folder: Path, show_progress: bool | None = None, hint: str = "") -> Path:
    """Returns the file's path in `folder`, after downloading it unless it is there already, and checking it.

    A download goes to NAME.part, is resumed from there by this or a later call, and renamed when it has passed
    the checks of size, kind and sum. Where no sum is known, the first file's sha256 is printed and kept in
    NAME.sha256, and later files of that name are held to it.

    Args:
      resource: what to fetch.
      folder: where to; made if missing.
      show_progress: a bar on standard error; None shows it on a terminal only.
      hint: how to do without the download, in place of the resource's own hint.

    Raises:
      UserError: no mirror gave the file, the disk is full, or the file that is there is not the right one.
    """
    folder = Path(folder)
    show_progress = sys.stderr.isatty() and not logs.is_quiet() if show_progress is None else show_progress
    target, part = folder / resource.filename, folder / f"{resource.filename}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    with _alone(folder):
        if target.exists():
            try:
                _check(resource, target, target)
            except _Refused as refusal:
                raise UserError(f"{target}: {refusal}; move it away to fetch it again", kind="wrong-file") from None
            return target
        failures = []
        for url in resource.urls:
            try:
                _fetch_from(url, part, target, resource, show_progress)
            except _Refused as refusal:
                part.unlink(missing_ok=True)
                failures.append(f"{url}: {refusal}")
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {_reason(error)}")
            else:
                os.replace(part, target)
                return target
    what = f"cannot download {target.name}: {'; '.join(failures)}"
    fix = hint or resource.hint or f"fetch it by hand and put it at {target}"
    raise UserError(what, kind="no-download", file=target.name, fix=fix)


def _fetch_from(url: str, part: Path, target: Path, resource: Resource, show_progress: bool) -> None:
    """Brings `part` to its full length from one mirror and checks it; a bad mixture of two files is fetched anew."""
    resumed = _size(part) > 0
    _download(url, part, resource, show_progress)
    try:
        _check(resource, part, target)
    except _Refused:
        if not resumed:
            raise
        part.unlink()
        _download(url, part, resource, show_progress)
        _check(resource, part, target)


def _download(url: str, part: Path, resource: Resource, show_progress: bool) -> None:
    """Takes up a broken connection again, as long as each attempt brings something."""
    for attempt in range(1, _ATTEMPTS + 1):
        before = _size(part)
        try:
            return _transfer(url, part, resource, show_progress)
        except (OSError, http.client.HTTPException):
            if attempt == _ATTEMPTS or _size(part) <= before:
                raise


def _transfer(url: str, part: Path, resource: Resource, show_progress: bool) -> None:
    """Appends to `part` what is missing of it, or writes it anew where the server knows no ranges."""
    offset = _size(part)
    try:
        response = _open(url, offset)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # nothing lies beyond the offset: the part is whole, or not ours
            return
        raise
    with response:
        resumes = response.status == 206
        if resumes and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise ConnectionError("the server answered with another range than was asked for")
        offset = offset if resumes else 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length and length.isdigit() else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and free < total - offset:
            raise UserError(f"{part.name} needs {total - offset} bytes and {part.parent} has {free} free")
        logger.info(f"{'resuming' if resumes else 'fetching'} {url}")
        with _progress_bar(resource.filename, offset, total, show_progress) as advance:
            received = _append(response, part, offset, resource, advance)
    if total is not None and received < total:
        raise ConnectionError(f"the connection ended after {received} of {total} bytes")


def _open(url: str, offset: int) -> http.client.HTTPResponse:
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise ConnectionError("only http, https and file addresses are fetched")
    headers = {"User-Agent": "segnet_jax"} | ({"Range": f"bytes={offset}-"} if offset else {})
    response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    if urlsplit(url).scheme == "https" and urlsplit(response.url).scheme != "https":
        response.close()
        raise ConnectionError(f"sends on to the unprotected {response.url}")
    return response


def _append(response: BinaryIO, part: Path, offset: int, resource: Resource, advance: Callable[[int], None]) -> int:
    """Writes the response into `part` from `offset` on; returns the length that `part` then has."""
    largest = resource.size_range[1]
    try:
        file = open(part, "ab" if offset else "wb")
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror}") from None
    with file:
        while chunk := response.read(_CHUNK):
            if offset == 0:
                _check_kind(resource, chunk[:64])
            offset += len(chunk)
            if offset > largest:
                raise _Refused(f"more than the {largest} bytes expected")
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise UserError(f"cannot write {part} after {offset} bytes: {error.strerror}") from None
            advance(len(chunk))
        os.fsync(file.fileno())
    return offset


def _check_kind(resource: Resource, head: bytes) -> None:
    name, beginnings = _KINDS[resource.kind]
    if is_web_page(head) and resource.kind != "any":
        raise _Refused(f"the server sent a web page, not {name}")
    if not head.startswith(beginnings):
        raise _Refused(f"this is not {name}: it begins with {head[:8]!r}")


def _check(resource: Resource, path: Path, target: Path) -> None:
    """Holds a whole file, `target` itself or its part, against all that is known of it."""
    if not path.is_file():
        raise _Refused("not a file")
    with open(path, "rb") as file:
        _check_kind(resource, file.read(64))
    smallest, largest = resource.size_range
    size = path.stat().st_size
    if not smallest <= size <= largest:
        expected = smallest if smallest == largest else f"{smallest} to {largest}"
        raise _Refused(f"{size} bytes, expected {expected}")
    if resource.sums:
        for algorithm, expected in resource.sums.items():
            if (found := sum_of_file(path, algorithm)) != expected:
                raise _Refused(f"{algorithm} {found}, expected {expected}")
    else:
        _check_first_use(resource, path, target.with_name(f"{target.name}.sha256"))


def _check_first_use(resource: Resource, path: Path, record: Path) -> None:
    """Holds the file to the sum of the first one of its name, or keeps its sum as that of the first."""
    found = sum_of_file(path)
    if record.exists():
        expected = record.read_text("ascii", errors="replace")[:64]
        if found != expected:
            raise _Refused(f"sha256 {found}, the first one had {expected} (to trust the new one, delete {record})")
        return
    if resource.kind == "zip":
        _check_members(path)
    logger.info(f"sha256 of {resource.filename}: {found} (no published sum; kept in {record.name})")
    atomic_write_text(record, f"{found}  {resource.filename}\n")


def _check_members(path: Path) -> None:
    """Reads a zip through, for without a published sum its own are all there is."""
    try:
        zips.read_through(path)
    except (OSError, ValueError) as error:
        raise _Refused(f"a damaged zip: {error}") from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    """Why a mirror failed, in one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT:.0f} s"
    return " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time download into a folder, where the system and the file system know locks."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _progress_bar(name: str, done: int, total: int | None, show: bool) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda num_bytes: None
        return
    from rich import console, progress

    shown_on = console.Console(stderr=True)

    columns = ("{task.description}", progress.BarColumn(), progress.DownloadColumn(), progress.TimeRemainingColumn())
    with logs.above(shown_on), progress.Progress(*columns, console=shown_on, transient=True) as bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda num_bytes: bar.update(task, advance=num_bytes)
