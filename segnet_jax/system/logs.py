"""Logging set-up of the commands: the console handler, its verbosity, and a run's `train.log`.

Modules log to `logging.getLogger(__name__)`. Only commands configure logging: a program that imports
`segnet_jax` configures the logger "segnet_jax" itself.
"""

import contextlib
import logging
import os
import re
import stat
import sys
import textwrap
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.text import Text

from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import ExitError, UserError, printable

LOG_FILE = "train.log"

_PACKAGE = logging.getLogger("segnet_jax")
_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}


INTERVAL = 30.0
"""Seconds between two progress lines where there is no terminal."""

KEY = re.compile(r"[a-z]+ {2,}(?=\S)")
"""Start of the lines that name a property of the run, such as "data     synthetic: ..."."""


class ConsoleHandler(logging.Handler):
    """A handler that prints messages on standard error, one per line; warnings and errors with their level.

    Attributes:
      console: console with a live line, above which messages are printed; None: print to `output()`.
    """

    console: Console | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message; with `-v`, also with the time and module that logged it."""
        try:
            console = self.console or Console(file=output(), highlight=False)
            message = printable(record.getMessage())
            if console.is_terminal and self.level > logging.DEBUG:
                fit = getattr(record, "fit", None)  # a function of the width that returns a shorter form
                message = printable(fit(console.width)) if fit else continued(message, console.width)
            text = Text(message)
            if record.levelno >= logging.WARNING:
                text = Text.assemble((f"{record.levelname.lower()}: ", _STYLES.get(record.levelno, "")), text)
            if self.level <= logging.DEBUG:
                text = Text.assemble((f"{_TIMED.formatTime(record, _TIMED.datefmt)} {record.name}  ", "dim"), text)
            console.print(text, soft_wrap=True)
        except Exception:
            self.handleError(record)


def continued(line: str, width: int) -> str:
    """Wrap a line with a key that is longer than the width, aligned with its value.

    The terminal wraps all other lines, so that commands in them can be copied.
    """
    key = KEY.match(line)
    if key is None or len(line) <= width or width < 3 * key.end() or "\n" in line:
        return line
    return textwrap.fill(
        line[key.end() :],
        width,
        initial_indent=key[0],
        subsequent_indent=" " * key.end(),
        break_long_words=False,
        break_on_hyphens=False,
    )


class _LineFormatter(logging.Formatter):
    """A formatter of printable lines with time and level."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


_TIMED = _LineFormatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")
_console_handler = ConsoleHandler()
_follows_pipe = False


def configure(level: int = logging.INFO) -> None:
    """Print the package's messages of at least this level on standard error."""
    _console_handler.setLevel(level)
    _PACKAGE.setLevel(min(level, logging.INFO))  # `train.log` has the same lines with -q
    _PACKAGE.propagate = False  # libraries may install a handler of the root logger, which would repeat the lines
    if _console_handler not in _PACKAGE.handlers:
        _PACKAGE.addHandler(_console_handler)


def follow_pipe() -> None:
    """Log to standard output if it is a pipe and standard error is a terminal, as in `segnet train | tee log`."""
    global _follows_pipe
    with contextlib.suppress(OSError, ValueError, AttributeError):
        _follows_pipe = sys.stderr.isatty() and stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)


def output() -> TextIO:
    """Return the stream that messages go to: standard error, unless `follow_pipe` chose standard output."""
    return sys.stdout if _follows_pipe else sys.stderr


def is_quiet() -> bool:
    """Return whether the console shows warnings and errors only (`-q`)."""
    return _console_handler.level > logging.INFO


@contextlib.contextmanager
def errors_only() -> Iterator[None]:
    """Log errors only, for processes that do not write the run."""
    before = _PACKAGE.level
    _PACKAGE.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _PACKAGE.setLevel(before)


@contextlib.contextmanager
def above(console: Console) -> Iterator[None]:
    """Print messages on `console`, above its live line, until the context ends."""
    before, _console_handler.console = _console_handler.console, console
    try:
        yield
    finally:
        _console_handler.console = before


class RunLog(logging.Handler):
    """A handler that writes messages to a run's `train.log` with their times; a context manager.

    Messages logged before `open` are written when it is called. A line that cannot be written is lost, as a full disk
    must not stop training. An error that ends the `with` block is logged to the file, but not on the console.
    """

    def __init__(self):
        super().__init__()
        self._waiting: list[logging.LogRecord] = []
        self._file = None
        self.setFormatter(_TIMED)

    def __enter__(self) -> "RunLog":
        _PACKAGE.addHandler(self)
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        _PACKAGE.removeHandler(self)
        if error is not None and self._file:
            expected = isinstance(error, UserError | ExitError | KeyboardInterrupt)
            text, exc_info = str(error) or kind.__name__, None if expected else (kind, error, traceback)
            self.handle(_PACKAGE.makeRecord(_PACKAGE.name, logging.ERROR, __file__, 0, text, (), exc_info))
        self.close()

    def open(self, folder: str | os.PathLike) -> None:
        """Append to the folder's `train.log` from now on.

        Raises:
          Refused: If the file is a link, or not a regular file.
        """
        try:
            self._file = untrusted_files.open_file(folder, LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except untrusted_files.Refused:
            raise
        except OSError:
            return
        waiting, self._waiting = self._waiting, []
        for record in waiting:
            self.emit(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message, unless it is a progress line that replaces a progress bar."""
        if getattr(record, "is_live", False):
            return
        if self._file is None:
            self._waiting.append(record)
            return
        with contextlib.suppress(Exception):
            self._file.write(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None
        super().close()
