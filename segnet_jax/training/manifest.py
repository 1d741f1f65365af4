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
from collections.abc import Mapping
from typing import Any

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
        try:
            os.link(source / name, partial / name)
            linked[name] = known
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source / name, partial / name)
    return linked


def verify(folder: pathlib.Path) -> dict[str, Any]:
    """Holds a sealed folder against its manifest, every byte of it.

    Returns:
      The manifest.

    Raises:
      Damaged: a file is missing, has another size or other content, or the manifest itself is none.
      NewerFormat: as `read_manifest`.
      OSError: from the disk, other than a missing file.
    """
    manifest = read_manifest(folder)
    for name, known in manifest["files"].items():
        path = folder / name
        try:
            if path.exists() and not path.is_file():  # a pipe would never end
                raise Damaged(f"{name} is not a file")
            if path.stat().st_size != known["bytes"]:
                raise Damaged(f"{name} has {path.stat().st_size} bytes instead of {known['bytes']}")
            if sum_of_file(path) != known["sha256"]:
                raise Damaged(f"the content of {name} is not what was written")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise Damaged(f"{name} is missing") from None
    return manifest


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a sealed folder, held against its own sum.

    Raises:
      Damaged: it is missing or damaged.
      NewerFormat: it is of a version that this program does not know.
    """
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():
            raise Damaged(f"{MANIFEST} is not a file")
        with open(path, "rb") as file:
            manifest = json.loads(file.read(_MOST_BYTES))
        known = manifest.pop("sha256")
        if known != _sum_of(manifest):
            raise Damaged(f"{MANIFEST} is not what was written")
        if manifest["version"] == VERSION and not all(_is_listed_well(*each) for each in manifest["files"].items()):
            raise Damaged(f"{MANIFEST} lists what is no file of a checkpoint")
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged(f"{MANIFEST} is damaged") from None
    if manifest["version"] != VERSION:
        raise NewerFormat(f"{folder} has the format {manifest['version']}, and this program knows {VERSION}")
    return manifest


def _is_listed_well(name: str, known: dict[str, Any]) -> bool:
    """Whether an entry of a manifest is one that `seal` writes: a file inside, its size and its sum."""
    inside = "\0" not in name and not name.startswith("/") and ".." not in name.split("/")
    return inside and isinstance(known["bytes"], int) and isinstance(known["sha256"], str)


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
