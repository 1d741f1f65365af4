"""What all commands share: exit codes, and errors in one line."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import TextIO

from segnet_jax.system import logs
from segnet_jax.system.errors import DiskFailed, ExitError, UserError, is_disk_full, shown
from segnet_jax.system.files import cache_folder

# What a system refuses of a path that somebody gave or a folder that he brought; any other OSError is a fault of ours.
_REFUSALS = {
    *(errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.EIO),
    *(errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENXIO, errno.ENODEV),
}


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command and leave the process: 0 after success, 2 after a user's mistake, else as `errors` tells.

    A user's mistake is printed without a traceback, in one line, or in one for each kind where there are several; a
    fault of our own keeps its traceback.

    Args:
      main: the command; what it returns is the exit code, None for 0.
    """
    # TensorFlow, which reads data for us and computes nothing, greets at length unless told otherwise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    sys.stderr = Forgiving(sys.stderr)
    logs.configure()
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may know fewer letters than names have
    try:
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # it would write to the home folder
        code = main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        for line in str(error).splitlines():  # one, or one for each kind of fault
            print(f"error: {line}", file=sys.stderr)
        code = 2
    except ExitError as ending:
        told = shown(" ".join(str(ending).split()))
        print(f"error: {told}" if ending.exit_code < 128 else told, file=sys.stderr)
        code = ending.exit_code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        _forget_output()
        code = 141
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {shown(f'{where}{error.strerror}')}", file=sys.stderr)
        code = DiskFailed.exit_code if is_disk_full(error) else 2
        _forget_output()
    sys.exit(code)


def _forget_output() -> None:
    """Throw away what could not be written to standard output, which Python would try again at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Forgiving:
    """Standard error that may be full or closed: what is said there is lost then, and the command goes on."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self._stream.write(text)
        return len(text)

    def writelines(self, lines) -> None:
        """Likewise."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Likewise."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self._stream.isatty()
        return False

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
