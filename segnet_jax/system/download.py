"""Download published files: resumable, verified, and renamed to their final name only when complete."""

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
from segnet_jax.system.files import atomic_write_text, locked, sum_of_file

logger = logging.getLogger(__name__)

Kind = Literal["zip", "hdf5", "torch", "caffe", "any"]

_KINDS: dict[Kind, tuple[str, tuple[bytes, ...]]] = {  # name in messages, possible first bytes
    "zip": ("a zip", (b"PK\x03\x04",)),
    "hdf5": ("an HDF5 file", (b"\x89HDF\r\n\x1a\n",)),
    "torch": ("a torch file", (b"PK\x03\x04", b"\x80\x02\x8a\n")),
    "caffe": ("a .caffemodel", (b"\n", b"\x12", b"\xa2\x06")),  # protobuf tags of NetParameter's name, layers, layer
    "any": ("a file", (b"",)),
}
_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without data
_ATTEMPTS = 5  # per mirror, as long as each one receives data


@dataclass(frozen=True)
class Resource:
    """A published file.

    Attributes:
      filename: name in the download folder.
      urls: mirrors (http, https or file), in order of preference.
      kind: file type, checked by the first bytes.
      sha256, sha1, md5: hex, if known.
      num_bytes: size, or smallest and largest plausible size, if known.
      hint: how to proceed without the download, for the error if all mirrors fail.
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
        """The known checksums by algorithm."""
        named = {"sha256": self.sha256, "sha1": self.sha1, "md5": self.md5}
        return {algorithm: value.lower() for algorithm, value in named.items() if value}

    @property
    def size_range(self) -> tuple[int, int]:
        """The smallest and the largest plausible number of bytes."""
        if self.num_bytes is None:
            return 1, sys.maxsize
        return self.num_bytes if isinstance(self.num_bytes, tuple) else (self.num_bytes, self.num_bytes)


class _Refused(Exception):
    """Raised if a file is not the published one."""


def is_web_page(head: bytes) -> bool:
    """Return whether a file that begins with `head` is HTML or XML, which servers may send instead of an error."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:5].lower().startswith((b"<!doc", b"<html", b"<head", b"<?xml"))


def fetch(resource: Resource, folder: Path, show_progress: bool | None = None, hint: str = "") -> Path:
    """Download a file unless it exists, verify it, and return its path.

    The download is written to NAME.part, which this or a later call resumes, and renamed after its size, kind and
    checksum are verified. If no checksum is known, the sha256 of the first download is printed and stored in
    NAME.sha256, and later files of that name must match it.

    Args:
      resource: file to download.
      folder: folder to download to; created if missing.
      show_progress: whether to show a progress bar on standard error; None: only on a terminal.
      hint: replaces the resource's own hint.

    Raises:
      UserError: If all mirrors failed, the disk is full, or an existing file fails verification.
    """
    folder = Path(folder)
    show_progress = sys.stderr.isatty() and not logs.is_quiet() if show_progress is None else show_progress
    target, part = folder / resource.filename, folder / f"{resource.filename}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {folder}: {error.strerror}") from None
    with locked(folder):
        if target.exists():
            try:
                _check(resource, target, target)
            except _Refused as refusal:
                raise UserError(f"{target}: {refusal}; move it away to download it again", kind="wrong-file") from None
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
    message = f"cannot download {target.name}: {'; '.join(failures)}"
    fix = hint or resource.hint or f"download it by hand and put it at {target}"
    raise UserError(message, kind="no-download", file=target.name, fix=fix)


def _fetch_from(url: str, part: Path, target: Path, resource: Resource, show_progress: bool) -> None:
    """Complete `part` from one mirror and verify it; if a resumed part is wrong, download it from the start."""
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
    """Download to `part`; resume after a broken connection, as long as each attempt receives data."""
    for attempt in range(1, _ATTEMPTS + 1):
        before = _size(part)
        try:
            return _transfer(url, part, resource, show_progress)
        except (OSError, http.client.HTTPException):
            if attempt == _ATTEMPTS or _size(part) <= before:
                raise


def _transfer(url: str, part: Path, resource: Resource, show_progress: bool) -> None:
    """Append the missing bytes to `part`, or start over if the server does not support ranges."""
    offset = _size(part)
    try:
        response = _open(url, offset)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # no bytes beyond the offset: the part is complete, or belongs to another file
            return
        raise
    with response:
        resumes = response.status == 206
        if resumes and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise ConnectionError("the server sent a different range than requested")
        offset = offset if resumes else 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length and length.isdigit() else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and free < total - offset:
            raise UserError(f"{part.name} needs {total - offset} bytes, but {part.parent} has {free} free")
        logger.info(f"{'resuming' if resumes else 'fetching'} {url}")
        with _progress_bar(resource.filename, offset, total, show_progress) as advance:
            received = _append(response, part, offset, resource, advance)
    if total is not None and received < total:
        raise ConnectionError(f"the connection ended after {received} of {total} bytes")


def _open(url: str, offset: int) -> http.client.HTTPResponse:
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise ConnectionError("only http, https and file URLs are supported")
    headers = {"User-Agent": "segnet_jax"} | ({"Range": f"bytes={offset}-"} if offset else {})
    response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    if urlsplit(url).scheme == "https" and urlsplit(response.url).scheme != "https":
        response.close()
        raise ConnectionError(f"redirects to the insecure {response.url}")
    return response


def _append(response: BinaryIO, part: Path, offset: int, resource: Resource, advance: Callable[[int], None]) -> int:
    """Write the response to `part` from `offset` on; return the new length of `part`."""
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
    """Verify a complete file, `target` or its part, by its kind, size and checksums."""
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
            if (actual := sum_of_file(path, algorithm)) != expected:
                raise _Refused(f"{algorithm} {actual}, expected {expected}")
    else:
        _check_first_use(resource, path, target.with_name(f"{target.name}.sha256"))


def _check_first_use(resource: Resource, path: Path, sum_file: Path) -> None:
    """Compare a file's checksum with that stored at the first download, or store it."""
    actual = sum_of_file(path)
    if sum_file.exists():
        expected = sum_file.read_text("ascii", errors="replace")[:64]
        if actual != expected:
            raise _Refused(
                f"sha256 {actual}, but the first download had {expected} (to trust the new one, delete {sum_file})"
            )
        return
    if resource.kind == "zip":
        _check_members(path)
    logger.info(f"sha256 of {resource.filename}: {actual} (no published checksum; stored in {sum_file.name})")
    atomic_write_text(sum_file, f"{actual}  {resource.filename}\n")


def _check_members(path: Path) -> None:
    """Verify a zip by its members' own checksums, because none is published for it."""
    try:
        zips.read_through(path)
    except (OSError, ValueError) as error:
        raise _Refused(f"a damaged zip: {error}") from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    """Return a line that says why a mirror failed."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT:.0f} s"
    return " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__


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
