"""Output of commands: results on standard output, and progress bars on standard error."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.text import Text

from segnet_jax.system import logs
from segnet_jax.system.errors import printable, shown

logger = logging.getLogger(__name__)


def echo(*texts: object, file: TextIO | None = None) -> None:
    """Print each text on its own line, by default on standard output; on a terminal, wrap lines with a key."""
    console = Console(file=file or sys.stdout)
    for text in texts:
        line = printable(text)
        print(logs.continued(line, console.width) if console.is_terminal else line, file=file)


def cell(text: object, style: str = "") -> Text:
    """Return a table cell; unprintable characters are escaped, and "[red]" is not markup."""
    return Text(printable(text), style=style)


@contextlib.contextmanager
def bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a progress bar on a terminal; elsewhere, log the progress at intervals.

    Yields:
      A function to call after each part, or with the number of parts finished since the last call.
    """
    console = Console(file=logs.output())
    if not console.is_terminal:
        yield _logged(description, total)
        return
    with logs.above(console), Progress(console=console, transient=True, disable=logs.is_quiet()) as progress:
        task = progress.add_task(escape(shown(description)), total=total)
        yield lambda parts=1: progress.advance(task, parts)


def _logged(description: str, total: int, clock: Callable[[], float] = time.monotonic) -> Callable[..., None]:
    """Return a function like that of `bar` that logs a line every `logs.INTERVAL` seconds."""
    done, last = 0, clock()

    def advance(parts: int = 1) -> None:
        nonlocal done, last
        done += parts
        if clock() - last >= logs.INTERVAL:
            last = clock()
            logger.info(f"{description}: {done} of {total}", extra={"is_live": True})

    return advance
