"""Temporary folders to fill and then rename. A lock marks folders in use; other processes remove the rest."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # no locks on this system: nothing is swept
    fcntl = None

_LOCK, _EARLY = "lock", "lock.new"
_OLD = 86_400.0  # seconds; a younger folder without a lock may be about to be locked


@contextlib.contextmanager
def unfinished(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a new folder next to `target`, to be filled and renamed by `finish`; otherwise it is removed at the end.

    Raises:
      OSError: If it cannot be created.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    lock = None
    try:
        lock = _locked(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def finish(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Rename a filled folder to `target`, unless another process has already done so."""
    for name in (_LOCK, _EARLY):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rename(target)


def sweep(parent: pathlib.Path, prefix: str) -> None:
    """Remove unfinished folders whose names begin with `prefix` and whose processes have ended."""
    with contextlib.suppress(OSError):
        for folder in list(parent.glob(f"{prefix}*.*")):
            if _is_left_behind(folder):
                shutil.rmtree(folder, ignore_errors=True)


def remove(path: pathlib.Path) -> None:
    """Remove a folder tree, a file or a link; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _locked(folder: pathlib.Path) -> int | None:
    """Create and take the lock; it is renamed after it is taken, so that no other process can take it."""
    if fcntl is None:
        return None
    lock = os.open(folder / _EARLY, os.O_CREAT | os.O_RDWR)
    with contextlib.suppress(OSError):  # a file system without locks: `sweep` goes by the folders' age
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / _EARLY).rename(folder / _LOCK)
    return lock


def _is_left_behind(folder: pathlib.Path) -> bool:
    """Return whether the process that filled a folder has ended; the system then releases its lock."""
    if fcntl is None or not folder.is_dir() or folder.is_symlink():
        return False
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime > _OLD
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
