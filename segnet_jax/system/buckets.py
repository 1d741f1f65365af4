"""Folders and files in buckets, named s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, and their local copies.

`fsspec` opens both kinds, with the credentials that its packages find in the environment or in the user's files.
Neither addresses nor messages contain credentials.

Buckets are untrusted: only objects below the named prefix are copied, after checking their names, number and sizes.
Each state of a bucket (names, sizes and ETags) has a separate copy, which is complete when it has its final name.
"""

import functools
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from segnet_jax.system import untrusted_files
from segnet_jax.system.bucket_address import PACKAGES, check_address, is_file_name
from segnet_jax.system.disk import format_bytes
from segnet_jax.system.errors import UserError, shown
from segnet_jax.system.files import atomic_write_text, cache_folder, locked

logger = logging.getLogger(__name__)

MOST_OBJECTS, MOST_BYTES = 200_000, 200 * 10**9
_OPTIONS = {"s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}}}
_PART, _THREADS = 2**23, 8  # bytes per request; concurrent requests
_LATEST = "latest"  # file that names the newest copy


def open_bucket(flag: str, address: str) -> Any:
    """Return the fsspec file system of a checked address.

    Raises:
      UserError: If a package is missing, or its settings are unusable.
    """
    scheme = address.partition("://")[0]
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(scheme)
    except ImportError:
        package = PACKAGES[scheme]
        message = f"{flag} {address} needs the package {package}, which is not installed: pip install {package}"
        raise UserError(message) from None
    try:
        return kind(use_listings_cache=False, **_OPTIONS.get(scheme, {}))
    except Exception as error:  # gcsfs looks for credentials immediately
        raise _failed(f"{flag} {address}", error) from None


def is_refusal(error: BaseException) -> bool:
    """Return whether an error means that a bucket denies access or does not exist, not that it is unreachable."""
    code = str(getattr(error, "code", ""))
    missing = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
    return missing or isinstance(error, PermissionError | FileNotFoundError) or code in ("401", "403", "404")


def reason(error: BaseException) -> str:
    """Return a short line that says why a request failed, without credentials."""
    if isinstance(error, FileNotFoundError) or str(getattr(error, "code", "")) == "404":
        return "there is no such bucket or object"
    if is_refusal(error):
        return "access is denied; check the credentials, such as AWS_PROFILE, and the permissions of the bucket"
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return shown(re.sub(r"//[^/\s]*@", "//", lines[0].partition("?")[0])[:300])


def local_copy(flag: str, address: str) -> Path:
    """Copy a folder or file of a bucket into the cache, unless it is already there, and return the copy's path.

    Within a process, an address is listed once. Without a connection, the last copy is used.

    Args:
      flag: the flag that names it, for messages.
      address: s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.

    Raises:
      UserError: If the address is invalid, a package is missing, the bucket does not exist, denies access or cannot be
        reached, or its objects are too many, too large, or have names that are not valid for files.
    """
    return _local_copy(flag, address.rstrip("/"), str(cache_folder()))


@functools.cache
def _local_copy(flag: str, address: str, cache: str) -> Path:
    check_address(flag, address)
    folder = Path(cache, "buckets", hashlib.sha256(address.encode()).hexdigest()[:24])
    what = f"{flag} {address}"
    bucket = open_bucket(flag, address)
    try:
        found = _list(bucket, address)
    except Exception as error:  # of the packages, which have no common base
        known = _latest(folder)
        if isinstance(error, UserError) or is_refusal(error) or known is None:
            raise _failed(what, error) from None
        logger.warning(f"{what} cannot be reached ({reason(error)}): its last copy is used")
        return _named(known, address)
    objects = _checked(what, found)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            version = hashlib.sha256(json.dumps(sorted(objects.items())).encode()).hexdigest()[:24]
            if not (folder / version).is_dir() or _missing(folder / version, objects):
                _copy(bucket, address, objects, folder, version)
            atomic_write_text(folder / _LATEST, version)
    except UserError:
        raise
    except Exception as error:
        raise _failed(what, error) from None
    return _named(folder / version, address)


def _list(bucket: Any, address: str) -> dict[str, tuple[int, str]]:
    """Return the objects below an address: name -> size and ETag. A single object is named by its last part."""
    root = address.partition("://")[2]
    objects = {}
    for path, about in bucket.find(root, detail=True).items():
        if about.get("type") != "file" or (path.endswith("/") and not about.get("size")):
            continue  # web consoles mark folders by empty objects
        inner = root.rpartition("/")[2] if path == root else path.removeprefix(f"{root}/")
        if path == root or path.startswith(f"{root}/"):
            objects[inner] = (int(about["size"]), str(about.get("ETag") or about.get("etag") or about.get("md5Hash")))
    if not objects:
        raise FileNotFoundError
    return objects


def _checked(what: str, objects: Mapping[str, tuple[int, str]]) -> Mapping[str, tuple[int, str]]:
    """Return the objects after checking their names, number and total size."""
    folders = {name[:place] for name in objects for place, each in enumerate(name) if each == "/"}
    for name in objects:
        if not is_file_name(name) or name in folders:
            raise UserError(f"{what} contains {name[:200]!r}, which is not a valid file name: rename it")
    total = sum(size for size, _ in objects.values())
    if len(objects) > MOST_OBJECTS or total > MOST_BYTES:
        raise UserError(
            f"{what} has {len(objects):,} objects ({format_bytes(total)}), over the limit of {MOST_OBJECTS:,} objects "
            f"or {format_bytes(MOST_BYTES)}: name a longer prefix"
        )
    return objects


def _copy(bucket: Any, address: str, objects: Mapping[str, tuple[int, str]], folder: Path, version: str) -> None:
    """Copy all objects to `folder/version`, or complete an interrupted copy."""
    part = untrusted_files.make_folder(folder, f"{version}.part")
    if (folder / version).is_dir():  # damaged: reuse the intact files
        shutil.rmtree(part)
        os.rename(folder / version, part)
    needed = _missing(part, objects)
    size, free = sum(objects[name][0] for name in needed), shutil.disk_usage(folder).free
    if size > free:
        raise UserError(f"the copy of {address} needs {format_bytes(size)}, but {folder} has {format_bytes(free)} free")
    logger.info(f"copying  {address} to {folder}: {len(needed)} files, {format_bytes(size)}")
    root = address.partition("://")[2]
    is_file = list(objects) == [root.rpartition("/")[2]] and bucket.isfile(root)

    def fetch(name: str) -> None:
        _fetch(bucket, root if is_file else f"{root}/{name}", part, name, objects[name][0])

    pool = ThreadPoolExecutor(_THREADS, "bucket")
    try:
        list(pool.map(fetch, needed))  # raises the first error
    finally:
        pool.shutdown(cancel_futures=True)
    if _list(bucket, address) != dict(objects):
        raise UserError(f"{address} changed during the copy: run the command again when it no longer changes")
    os.rename(part, folder / version)


def _fetch(bucket: Any, path: str, folder: Path, name: str, size: int) -> None:
    """Copy an object of a known size; it gets its final name only when complete."""
    untrusted_files.make_folder(folder, os.path.dirname(name))
    partial = os.path.join(os.path.dirname(name), f".{hashlib.sha256(name.encode()).hexdigest()}.tmp")
    untrusted_files.remove(folder, partial)
    with untrusted_files.open_file(folder, partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        for start in range(0, size, _PART):
            data = bucket.cat_file(path, start=start, end=min(start + _PART, size))
            if len(data) != min(_PART, size - start):
                raise ConnectionError(f"{shown(path)} ended after {start + len(data)} of {size} bytes")
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
    untrusted_files.rename(folder, partial, name)


def _missing(folder: Path, objects: Mapping[str, tuple[int, str]]) -> list[str]:
    """Return the names of objects that have no file of the same size in a copy."""
    files = {
        name: untrusted_files.status(folder, name) if untrusted_files.is_file(folder, name) else None
        for name in objects
    }
    return [name for name, status in files.items() if status is None or status.st_size != objects[name][0]]


def _latest(folder: Path) -> Path | None:
    """Return the newest complete copy, or None."""
    try:
        version = untrusted_files.read_bytes(folder, _LATEST, 100).decode()
    except (OSError, UserError, ValueError):
        return None
    return folder / version if re.fullmatch("[0-9a-f]{24}", version) and (folder / version).is_dir() else None


def _named(copy: Path, address: str) -> Path:
    """Return the file of a copy if the address names a single object, else the copy's folder."""
    names, last = os.listdir(copy), address.rpartition("/")[2]
    return copy / last if names == [last] and (copy / last).is_file() else copy


def _failed(what: str, error: Exception) -> UserError:
    return error if isinstance(error, UserError) else UserError(f"{what} cannot be read: {reason(error)}")
