"""Manifests of file sizes and SHA-256 checksums, which detect damaged folders.

The checksums are needed because Orbax restores arrays with flipped bits without an error. The order of writing (data,
fsync, manifest, fsync, rename, fsync of the parent folder) ensures that, after a kill or power loss at any moment,
the folder is either complete or absent under its final name.
"""

import errno
import hashlib
import json
import os
import pathlib
import shutil
import stat
from collections.abc import Mapping
from typing import Any

from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import shown
from segnet_jax.system.files import plain, sum_of_file

MANIFEST = "manifest.json"
VERSION = 1
_MAX_BYTES = 16_000_000  # of a manifest; typical ones have about ten thousand
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
"""errno values for unsupported or exhausted hard links."""


class Damaged(Exception):
    """Raised if a folder does not match its manifest; the message names the difference."""


class NewerFormat(Exception):
    """Raised if a manifest has a version that only a later version of this program reads."""


def finalize(
    partial: pathlib.Path, final: pathlib.Path, facts: dict[str, Any], known: Mapping[str, dict[str, Any]] | None = None
) -> None:
    """Write the manifest of a complete folder, and rename the folder to its final name.

    Args:
      partial: folder with all files, on the same disk as `final`.
      final: final path, which must not exist.
      facts: JSON to store in the manifest.
      known: manifest entries of files that are already on disk, from `link_files`.

    Raises:
      OSError: If the disk fails.
    """
    known = known or {}
    files = {path.relative_to(partial).as_posix(): path for path in sorted(partial.rglob("*")) if path.is_file()}
    sums = {
        name: known.get(name) or {"bytes": path.stat().st_size, "sha256": _sum_after_sync(path)}
        for name, path in files.items()
    }
    for folder in sorted(path for path in partial.rglob("*") if path.is_dir()):
        sync_folder(folder)
    body = {"version": VERSION, **facts, "files": sums}
    text = json.dumps(plain(body | {"sha256": _sum_of(body)}), indent=1, ensure_ascii=False)
    with open(partial / MANIFEST, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(partial)
    os.rename(partial, final)
    sync_folder(final.parent)


def link_files(source: pathlib.Path, partial: pathlib.Path, part: str) -> dict[str, dict[str, Any]]:
    """Hard-link the files of `source`'s subfolder `part` into `partial`, or copy them if links are not supported.

    Returns:
      The source's manifest entries of the linked files.

    Raises:
      Damaged: If the source's manifest is invalid, or a file is missing.
      OSError: If the disk fails.
    """
    linked = {}
    for name, entry in read_manifest(source)["files"].items():
        if not name.startswith(f"{part}/"):
            continue
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        if not untrusted_files.is_file(source, name):
            raise Damaged(f"{name} is missing")
        try:
            os.link(source / name, partial / name)
            linked[name] = entry
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source / name, partial / name)
    return linked


def verify(folder: pathlib.Path, max_bytes: int | None = None) -> dict[str, Any]:
    """Verify every byte of a folder against its manifest, and return the manifest.

    Raises:
      Damaged: If the manifest is invalid, the files are larger than `max_bytes` in total, or a file is missing, not
        regular, not listed, or has another size or content.
      NewerFormat: If the manifest's version is unknown.
      OSError: If a file cannot be read for another reason.
    """
    manifest = read_manifest(folder)
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    if max_bytes is not None and total > max_bytes:
        raise Damaged(f"it has {total:,} bytes, over the limit of {max_bytes:,} bytes for its network")
    for name, entry in manifest["files"].items():
        file = shown(name)
        try:
            status = untrusted_files.status(folder, name)
            if status is None:
                raise Damaged(f"{file} is missing")
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
                raise Damaged(f"{file} is not a file")
            if status.st_size != entry["bytes"]:
                raise Damaged(f"{file} has {status.st_size} bytes instead of {entry['bytes']}")
            if untrusted_files.sum_of(folder, name, entry["bytes"]) != entry["sha256"]:
                raise Damaged(f"the checksum of {file} does not match")
        except FileNotFoundError:
            raise Damaged(f"{file} is missing") from None
        except untrusted_files.Refused as error:
            raise Damaged(str(error)) from None
    if unlisted := _files_in(folder) - manifest["files"].keys() - {MANIFEST}:
        raise Damaged(f"{shown(min(unlisted))} is not listed in {MANIFEST}")
    return manifest


def _files_in(folder: pathlib.Path, inner: str = "") -> set[str]:
    """Return the paths of all non-folders below a folder, except NFS's placeholders for deleted files still in use."""
    files = set()
    for name in untrusted_files.names(folder, inner):
        path = f"{inner}/{name}" if inner else name
        status = untrusted_files.status(folder, path)
        if status is not None and stat.S_ISDIR(status.st_mode):
            files |= _files_in(folder, path)
        elif not name.startswith(".nfs"):
            files.add(path)
    return files


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Read a manifest and verify its checksum.

    Raises:
      Damaged: If the manifest is missing or damaged.
      NewerFormat: If the manifest's version is unknown.
    """
    try:
        manifest = untrusted_files.read_json(folder, MANIFEST, most=_MAX_BYTES)
        checksum = manifest.pop("sha256")
        if checksum != _sum_of(manifest):
            raise Damaged(f"the checksum of {MANIFEST} does not match")
        if manifest["version"] == VERSION and not all(_is_valid_entry(*each) for each in manifest["files"].items()):
            raise Damaged(f"{MANIFEST} has an invalid entry")
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"{MANIFEST} is missing") from None
    except untrusted_files.Refused as error:
        raise Damaged(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(f"{MANIFEST} is damaged") from None
    if manifest["version"] != VERSION:
        raise NewerFormat(f"{folder} has format {manifest['version']}, but this version of segnet_jax reads {VERSION}")
    return manifest


def _is_valid_entry(name: str, entry: dict[str, Any]) -> bool:
    """Return whether a manifest entry has a relative path inside the folder, a size and a checksum."""
    inside = "\0" not in name and not name.startswith("/") and ".." not in name.split("/")
    return inside and type(entry["bytes"]) is int and entry["bytes"] >= 0 and isinstance(entry["sha256"], str)


def sync_folder(folder: pathlib.Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sum_after_sync(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return sum_of_file(path)


def _sum_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain(body), sort_keys=True, ensure_ascii=False).encode()).hexdigest()
