"""Folders that are being filled: each is known to be alive by a lock, and swept by the next comer if it is not."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # a system without such locks: nothing is swept there
    fcntl = None

_LOCK, _EARLY = "lock", "lock.new"
_OLD = 86_400.0  # seconds; until then a folder without a lock may be that of somebody who is about to lock it


@contextlib.contextmanager
def unfinished(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `target` to be filled and renamed to it by `finish`; removed at the end if it was not.

    Raises:
      OSError: it cannot be made.
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
    """Gives a filled folder its name, unless another process was faster."""
    for name in (_LOCK, _EARLY):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rename(target)


def sweep(parent: pathlib.Path, prefix: str) -> None:
    """Removes the unfinished folders, of names that begin with `prefix`, whose makers have gone."""
    with contextlib.suppress(OSError):
        for folder in list(parent.glob(f"{prefix}*.*")):
            if _is_left_behind(folder):
                shutil.rmtree(folder, ignore_errors=True)


def remove(path: pathlib.Path) -> None:
    """Removes whatever lies at a path: a folder, a file, a link. What cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _locked(folder: pathlib.Path) -> int | None:
    """Makes the lock and holds it; it gets its name when it is held, so that nobody ever finds it free."""
    if fcntl is None:
        return None
    lock = os.open(folder / _EARLY, os.O_CREAT | os.O_RDWR)
    with contextlib.suppress(OSError):  # a file system without locks: its folders are told by their age
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / _EARLY).rename(folder / _LOCK)
    return lock


def _is_left_behind(folder: pathlib.Path) -> bool:
    """Whether nobody fills a folder any more; the system frees a lock however its holder ends."""
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
