"""Addresses of folders and files in buckets, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, and the names of their files."""

import os
import re
from collections.abc import Iterable

from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError
from segnet_jax.system.untrusted_files import MOST_DEPTH

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
"""URL scheme -> package that `fsspec` needs to open it."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")


def is_address(source: str) -> bool:
    """Return whether a source is an address, such as s3://BUCKET/PREFIX, rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def is_bucket(source: str) -> bool:
    """Return whether a source is an address in a bucket."""
    return is_address(source) and source.partition("://")[0] in PACKAGES


def check_address(flag: str, address: str) -> None:
    """Check the form of an address, without connecting to it.

    Args:
      flag: the flag that names it, for messages.
      address: the address.

    Raises:
      UserError: If it is not a bucket address, or may contain credentials, which the message does not repeat.
    """
    scheme, _, place = address.partition("://")
    known = [f"{each}://" for each in PACKAGES]
    if not is_address(address) or scheme not in PACKAGES:
        given = scheme[:20] + "://" if is_address(address) else "a path"
        hint = nearest_hint(given, known)
        raise UserError(f"{flag} takes a bucket as s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, got {given}{hint}")
    bucket, _, prefix = place.rstrip("/").partition("/")
    if not _BUCKET.fullmatch(bucket) or re.search(r"[?#*\[\]\\]", prefix) or not is_file_name(prefix or "all"):
        raise UserError(
            f"{flag} must be {scheme}://BUCKET/PREFIX, without credentials, queries, patterns or empty path components"
        )


def is_file_name(name: str) -> bool:
    """Return whether a name with slashes is a valid path of a file inside a folder."""
    parts = name.split("/")
    return len(parts) <= MOST_DEPTH and all(
        part not in ("", ".", "..") and part.isprintable() and "\\" not in part and len(os.fsencode(part)) <= 255
        for part in parts
    )


_named: set[str] = set()


def remember_named(args: Iterable[str]) -> None:
    """Remember the addresses among the arguments of this command or Python call: only these may be read."""
    for arg in args:
        _named.update(each for each in (arg, arg.partition("=")[2]) if is_address(each))


def check_named(flag: str, address: str) -> None:
    """Check that this command, not only a stored config, names an address: it is read with the user's credentials.

    Args:
      flag: the flag that takes it.
      address: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or hf://OWNER/NAME.

    Raises:
      UserError: If it does not name it.
    """
    if address not in _named:
        kind = "a repository" if address.startswith("hf://") else "a bucket"
        raise UserError(
            f"the stored settings name {address}, but {kind} is read only if this command names it: add {flag} "
            f"{address}"
        )
