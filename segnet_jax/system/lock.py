"""One training at a time in a run folder: a lock that says who holds it."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import pathlib
import socket

from segnet_jax.system import confined
from segnet_jax.system.errors import RunInUse, UserError, shown

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"
_MOST_BYTES = 10_000


class RunLock:
    """Holds a run folder while it is entered.

    The system's lock on the file decides, and goes with the process however that ends, so a lock is never stale; what
    the file says of its holder is for people. Where it names one and the lock is free, that one has died: it is told.

    A disk may know no locks, as a cluster's often does not: then a warning must do, for no training could begin there
    otherwise. A folder that nobody has named is not entered so, as the same command may be training in it.

    Args:
      folder: the run's.
      is_named: whether somebody has named this folder, or it is new.

    Raises:
      RunInUse: another process holds it.
      UserError: nothing can be written there, or the disk knows no locks and nobody has named the folder.
    """

    def __init__(self, folder: pathlib.Path, is_named: bool = True):
        try:
            self._file = confined.open_file(folder, LOCK_FILE, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise UserError(f"cannot train in {folder}: {error.strerror}; name another --run") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            who = holder(folder) or "another process"
            raise RunInUse(f"{folder} is in use by {who}: wait, or name another --run") from None
        except OSError as error:
            told = f"the disk of {folder} gives no lock ({error.strerror})"
            if not is_named:
                self._file.close()
                raise UserError(f"{told}: to go on with it, name it by --run") from None
            before = holder(folder)
            logger.warning(f"{told}: see that {f'{before} has gone' if before else 'no other training is begun in it'}")
        else:
            if before := holder(folder):
                logger.info(f"took over the lock of {before}, which has gone")
        # What is no lock file of ours, or has a second name somewhere else, is locked and left as it is.
        self._is_ours = os.fstat(self._file.fileno()).st_nlink == 1 and _is_signature(self._file.read(_MOST_BYTES))
        with contextlib.suppress(OSError):  # on a full disk it holds without a name
            self._sign(_signed().encode())

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_) -> None:
        """Lets go. The file stays, empty: were it removed, a start that has it open already would lock nothing."""
        with contextlib.suppress(OSError):  # on a disk that is gone meanwhile, it goes without
            self._sign(b"")
        self._file.close()

    def _sign(self, text: bytes) -> None:
        if self._is_ours:
            self._file.truncate(0)
            self._file.seek(0)
            self._file.write(text)


def is_held(folder: pathlib.Path) -> str:
    """Return who trains in a run folder, in words; empty where nobody does, or where the disk knows no locks.

    Nothing is written, unlike by `RunLock`.
    """
    try:
        with open(folder / LOCK_FILE, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder(folder) or "another process"
    except OSError:
        return ""
    return ""


def holder(folder: pathlib.Path) -> str:
    """Who signed a run's lock, in words; empty where nobody did."""
    try:
        who = confined.read_json(folder, LOCK_FILE, most=_MOST_BYTES)
        return shown(f"process {who['pid']} on {who['host']} since {who['since']}")[:200]
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return ""


def _is_signature(data: bytes) -> bool:
    """Whether a file's content is what a lock file holds: nothing, or what `_signed` writes, perhaps cut off."""
    return not data or data.startswith(b'{"pid": ') and len(data) < _MOST_BYTES


def _signed() -> str:
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
