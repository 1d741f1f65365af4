"""Run a command, with its exit code and one-line errors."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import TextIO

from segnet_jax.system import logs
from segnet_jax.system.command_name import as_called
from segnet_jax.system.errors import DiskFailed, ExitError, UserError, is_disk_full, shown
from segnet_jax.system.files import cache_folder

# errno values that a user's path or folder can cause; any other OSError is a bug.
_USER_ERRNOS = {
    *(errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.EIO),
    *(errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENXIO, errno.ENODEV),
}


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command and exit: with 0 after success, 2 after a user's mistake, otherwise as listed in `errors`.

    A user's mistake is printed without a traceback, one line for each kind of fault; a bug keeps its traceback.

    Args:
      main: the command; returns the exit code, None for 0.
    """
    # Silence TensorFlow's start-up messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    sys.stderr = Forgiving(sys.stderr)
    logs.configure()
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack characters of names
    try:
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # instead of the home folder
        code = main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        for line in str(error).splitlines():  # one for each kind of fault
            print(f"error: {as_called(line)}", file=sys.stderr)
        code = 2
    except ExitError as error:
        message = shown(" ".join(str(error).split()))
        message = as_called(message)
        print(f"error: {message}" if error.exit_code < 128 else message, file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has exited, as `| head` does
        _forget_output()
        code = 141
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {shown(f'{where}{error.strerror}')}", file=sys.stderr)
        code = DiskFailed.exit_code if is_disk_full(error) else 2
        _forget_output()
    sys.exit(code)


def _forget_output() -> None:
    """Discard output that could not be written, which Python would otherwise retry at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Forgiving:
    """Standard error that ignores write errors, such as those of a full disk or a closed terminal."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text; errors are ignored."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self._stream.write(text)
        return len(text)

    def writelines(self, lines) -> None:
        """Write the lines; errors are ignored."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush; errors are ignored."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self._stream.isatty()
        return False

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
