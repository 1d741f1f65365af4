"""Folders that can be told from damaged ones: a manifest of every file's size and sum, written last.

Orbax restores arrays of which bits were flipped without a word, hence sums of our own. The order of writing is such
that a kill or a power cut at any moment leaves either the whole folder under its name or none: data, fsync, manifest,
fsync, rename, fsync of the folder around it.
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

from segnet_jax.system import confined
from segnet_jax.system.errors import shown
from segnet_jax.system.files import plain, sum_of_file

MANIFEST = "manifest.json"
VERSION = 1
_MOST_BYTES = 16_000_000  # of a manifest; ours have some ten thousand
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
"""How disks that know no second name of a file, or bear no more of them, refuse one."""


class Damaged(Exception):
    """A folder is not what was sealed; the message says in which way."""


class NewerFormat(Exception):
    """A folder is whole, and of a format that a later version of this program writes."""


def seal(
    partial: pathlib.Path, final: pathlib.Path, facts: dict[str, Any], known: Mapping[str, dict[str, Any]] | None = None
) -> None:
    """Writes the manifest of a finished folder and gives the folder its name.

    Args:
      partial: holds all files; on the same disk as `final`.
      final: where it is to be found; must not exist.
      facts: JSON to stand in the manifest too.
      known: what the manifest is to say of files that are on the disk already, from `link_files`.

    Raises:
      OSError: from the disk.
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
    """Puts a part of a sealed folder into another one too: the same files, or copies where the disk has no links.

    Args:
      source: sealed.
      partial: made where it is missing.
      part: a folder in both.

    Returns:
      What the source's manifest says of each file that became the same.

    Raises:
      Damaged: the source's manifest is none.
      OSError: from the disk.
    """
    linked = {}
    for name, known in read_manifest(source)["files"].items():
        if not name.startswith(f"{part}/"):
            continue
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        if not confined.is_file(source, name):
            raise Damaged(f"{name} is missing")
        try:
            os.link(source / name, partial / name)
            linked[name] = known
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source / name, partial / name)
    return linked


def verify(folder: pathlib.Path, most_bytes: int | None = None) -> dict[str, Any]:
    """Holds a sealed folder against its manifest, every byte of it.

    Args:
      folder: sealed.
      most_bytes: that all files together may have; None for any number.

    Returns:
      The manifest.

    Raises:
      Damaged: a file is missing, is none, has another size or other content, or is not listed; or the manifest itself
        is none.
      NewerFormat: as `read_manifest`.
      OSError: from the disk, other than a missing file.
    """
    manifest = read_manifest(folder)
    total = sum(known["bytes"] for known in manifest["files"].values())
    if most_bytes is not None and total > most_bytes:
        raise Damaged(f"it has {total:,} bytes, and its network takes {most_bytes:,} at most")
    for name, known in manifest["files"].items():
        told = shown(name)
        try:
            found = confined.status(folder, name)
            if found is None:
                raise Damaged(f"{told} is missing")
            if not stat.S_ISREG(found.st_mode):  # a pipe would never end
                raise Damaged(f"{told} is not a file")
            if found.st_size != known["bytes"]:
                raise Damaged(f"{told} has {found.st_size} bytes instead of {known['bytes']}")
            if confined.sum_of(folder, name, known["bytes"]) != known["sha256"]:
                raise Damaged(f"the content of {told} is not what was written")
        except FileNotFoundError:
            raise Damaged(f"{told} is missing") from None
        except confined.Refused as error:
            raise Damaged(str(error)) from None
    if foreign := _files_in(folder) - manifest["files"].keys() - {MANIFEST}:
        raise Damaged(f"{shown(min(foreign))} is not listed in {MANIFEST}")
    return manifest


def _files_in(folder: pathlib.Path, inner: str = "") -> set[str]:
    """Everything below a folder that is not a folder itself; without what NFS keeps of files that are still open."""
    found = set()
    for name in confined.names(folder, inner):
        path = f"{inner}/{name}" if inner else name
        status = confined.status(folder, path)
        if status is not None and stat.S_ISDIR(status.st_mode):
            found |= _files_in(folder, path)
        elif not name.startswith(".nfs"):
            found.add(path)
    return found


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a sealed folder, held against its own sum.

    Raises:
      Damaged: it is missing or damaged.
      NewerFormat: it is of a version that this program does not know.
    """
    try:
        manifest = confined.read_json(folder, MANIFEST, most=_MOST_BYTES)
        known = manifest.pop("sha256")
        if known != _sum_of(manifest):
            raise Damaged(f"{MANIFEST} is not what was written")
        if manifest["version"] == VERSION and not all(_is_listed_well(*each) for each in manifest["files"].items()):
            raise Damaged(f"{MANIFEST} lists what is no file of a checkpoint")
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"{MANIFEST} is missing") from None
    except confined.Refused as error:
        raise Damaged(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(f"{MANIFEST} is damaged") from None
    if manifest["version"] != VERSION:
        raise NewerFormat(f"{folder} has the format {manifest['version']}, and this program knows {VERSION}")
    return manifest


def _is_listed_well(name: str, known: dict[str, Any]) -> bool:
    """Whether an entry of a manifest is one that `seal` writes: a file inside, its size and its sum."""
    inside = "\0" not in name and not name.startswith("/") and ".." not in name.split("/")
    return inside and type(known["bytes"]) is int and known["bytes"] >= 0 and isinstance(known["sha256"], str)


def sync_folder(folder: pathlib.Path) -> None:
    """Forces a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sum_after_sync(path: pathlib.Path) -> str:
    """Forces a file to the disk and returns its sha256."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return sum_of_file(path)


def _sum_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain(body), sort_keys=True, ensure_ascii=False).encode()).hexdigest()
