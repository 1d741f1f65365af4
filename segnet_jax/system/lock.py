"""One training at a time in a run folder: a lock that says who holds it."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Callable

from segnet_jax.system.errors import RunInUse, UserError

LOCK_FILE = "lock"


class RunLock:
    """Holds a run folder while it is entered.

    The system's lock on the file decides, and goes with the process however that ends, so a lock is never stale; what
    the file says of its holder is for people. Where it names one and the lock is free, that one has died: it is told.

    A disk may know no locks, as a cluster's often does not: then a warning must do, for no training could begin there
    otherwise. A folder that nobody has named is not entered so, as the same command may be training in it.

    Args:
      folder: the run's.
      say: prints a line.
      is_named: whether somebody has named this folder, or it is new.

    Raises:
      RunInUse: another process holds it.
      UserError: nothing can be written there, or the disk knows no locks and nobody has named the folder.
    """

    def __init__(self, folder: pathlib.Path, say: Callable[[str], None] = lambda text: None, is_named: bool = True):
        try:
            self._file = open(folder / LOCK_FILE, "a+b", buffering=0)
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
            say(f"warning: {told}: see that {f'{before} has gone' if before else 'no other training is begun in it'}")
        else:
            if before := holder(folder):
                say(f"took over the lock of {before}, which has gone")
        with contextlib.suppress(OSError):  # on a full disk it holds without a name
            self._file.truncate(0)
            self._file.write(_signed().encode())

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_) -> None:
        """Lets go. The file stays, empty: were it removed, a start that has it open already would lock nothing."""
        with contextlib.suppress(OSError):  # on a disk that is gone meanwhile, it goes without
            self._file.truncate(0)
        self._file.close()


def holder(folder: pathlib.Path) -> str:
    """Who signed a run's lock, in words; empty where nobody did."""
    try:
        who = json.loads((folder / LOCK_FILE).read_bytes()[:10_000])
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _signed() -> str:
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
