"""What commands print while they work, on standard error, and a progress bar for terminals.

Results go to standard output.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress


def say(text: str) -> None:
    """Prints a line to what standard error is at that moment: while a live line is shown, what puts others above it."""
    print(text, file=sys.stderr, flush=True)


def say_nothing(_text: str) -> None:
    """In the place of `say`, for the processes that do not."""


@contextlib.contextmanager
def bar(doing: str, total: int) -> Iterator[Callable[..., None]]:
    """Shows how far a pass has come; yields the function to call after one, or so many, of its `total` parts."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda parts=1: progress.advance(task, parts)
