"""A lock on a run folder, so that one process at a time trains in it."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import pathlib
import socket

from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import RunInUse, UserError, shown

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"
_MOST_BYTES = 10_000


class RunLock:
    """Context manager that locks a run folder.

    The system releases the lock when the process ends for any reason, so it is never stale. The file only describes the
    holder; if it names one while the lock is free, that process died, which is logged.

    File systems of clusters often do not support locks; a folder that the user named is then used with a warning. A
    folder found automatically is refused, as the same command may be training in it.

    Args:
      folder: run folder.
      is_named: whether the user named this folder, or it is new.

    Raises:
      RunInUse: If another process holds the lock.
      UserError: If the folder is not writable, or locks are not supported and `is_named` is false.
    """

    def __init__(self, folder: pathlib.Path, is_named: bool = True):
        try:
            self._file = untrusted_files.open_file(folder, LOCK_FILE, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise UserError(f"cannot train in {folder}: {error.strerror}; use another --run") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            who = holder(folder) or "another process"
            raise RunInUse(f"{folder} is in use by {who}: wait, or use another --run") from None
        except OSError as error:
            why = f"the file system of {folder} does not support locks ({error.strerror})"
            if not is_named:
                self._file.close()
                raise UserError(f"{why}: to resume this run, name it with --run") from None
            before = holder(folder)
            logger.warning(f"{why}: check that {f'{before} has ended' if before else 'no other process trains in it'}")
        else:
            if before := holder(folder):
                logger.info(f"took over the lock of {before}, which has ended")
        # A file with other content, or with a second hard link, is locked but not written to.
        self._is_ours = os.fstat(self._file.fileno()).st_nlink == 1 and _is_signature(self._file.read(_MOST_BYTES))
        with contextlib.suppress(OSError):  # locking works on a full disk too
            self._sign(_signed().encode())

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_) -> None:
        """Release the lock. The file stays: a process that has it open would otherwise lock a deleted file."""
        with contextlib.suppress(OSError):  # the disk may be gone
            self._sign(b"")
        self._file.close()

    def _sign(self, text: bytes) -> None:
        if self._is_ours:
            self._file.truncate(0)
            self._file.seek(0)
            self._file.write(text)


def is_held(folder: pathlib.Path) -> str:
    """Describe the process that holds a run's lock, without taking it; "" if there is none or locks are unsupported."""
    try:
        with open(folder / LOCK_FILE, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder(folder) or "another process"
    except OSError:
        return ""
    return ""


def holder(folder: pathlib.Path) -> str:
    """Describe the process named in a run's lock file; "" if there is none."""
    try:
        who = untrusted_files.read_json(folder, LOCK_FILE, most=_MOST_BYTES)
        return shown(f"process {who['pid']} on {who['host']} since {who['since']}")[:200]
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return ""


def _is_signature(data: bytes) -> bool:
    """Return whether data is the content of a lock file: empty, or written by `_signed`, possibly truncated."""
    return not data or data.startswith(b'{"pid": ') and len(data) < _MOST_BYTES


def _signed() -> str:
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
