"""The output folder of `export`, in which only earlier exports are overwritten."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import DiskFailed, DiskFull, ExitError, UserError, disk_refusal, is_disk_full, listed

REPORT_FILE = "export.json"


def read_earlier_report(out: pathlib.Path, names: Sequence[str], overwrite: bool) -> dict[str, Any]:
    """Return the folder's report of earlier exports, after checking that only files listed in it are overwritten.

    Raises:
      UserError: If a file exists and `overwrite` is false, or it was not exported here.
    """
    existing = [name for name in names if os.path.lexists(out / name)]
    if existing and not overwrite:
        raise UserError(
            f"{out} already contains {listed(existing)}; add --overwrite, or choose another folder with --out"
        )
    path = out / REPORT_FILE
    try:
        report = untrusted_files.read_json(out, REPORT_FILE) if os.path.lexists(path) else {}
        if not isinstance(report, dict):
            raise TypeError("a report is a table")
        known = {file: checksum for name in report for file, checksum in report[name]["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is not an export report; move it away, or choose another folder with --out") from None
    files = [file for name in existing for file in _files_below(out, name)]
    if foreign := [file for file in files if known.get(file) != _checksum(out, file)]:
        raise UserError(
            f"{out} contains {listed(foreign)}, which differs from the files exported there and is not overwritten; "
            "move it away, or choose another folder with --out"
        )
    return report


def _files_below(out: pathlib.Path, name: str) -> list[str]:
    """Return a file, or the files of a folder, as named in the report."""
    if not os.path.isdir(out / name) or os.path.islink(out / name):
        return [name]
    return [file for inner in untrusted_files.names(out, name) for file in _files_below(out, f"{name}/{inner}")]


def _checksum(out: pathlib.Path, file: str) -> str:
    """Return the checksum of a file's content; empty if it is not a regular file."""
    with contextlib.suppress(OSError, UserError):
        return untrusted_files.sum_of(out, file, sys.maxsize)
    return ""


def make_folder(out: pathlib.Path) -> pathlib.Path:
    """Create the output folder if it is missing, and return it.

    Raises:
      UserError: If it cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {out}: {error.strerror}; choose another with --out") from None
    return out


def move(path: pathlib.Path, target: pathlib.Path) -> None:
    """Move an export to its final path, replacing an earlier one; an existing folder is moved away first."""
    if target.is_dir() and not target.is_symlink():
        target.rename(path.with_name(f"old-{path.name}"))  # deleted with the temporary folder
    os.replace(path, target)


@contextlib.contextmanager
def explain_disk_errors(out: pathlib.Path) -> Iterator[None]:
    """Turn disk failures into one-line errors."""
    try:
        yield
    except (UserError, ExitError):
        raise
    except Exception as error:  # each format's library raises its own exceptions for disk errors
        if is_disk_full(error):
            raise DiskFull(f"cannot export to {out}: no space left on its disk") from error
        if refusal := disk_refusal(error):
            raise DiskFailed(f"cannot export to {out}: {refusal}") from error
        raise
