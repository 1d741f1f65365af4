"""What commands print while they work, on standard error, and a progress bar for terminals.

Results go to standard output.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from segnet_jax.system.errors import shown


def harmless(text: object) -> str:
    """Escape what cannot be printed, line by line."""
    return "\n".join(map(shown, str(text).split("\n")))


def tell(*texts: object, file: TextIO | None = None) -> None:
    """Print each text on a line of its own, to standard output unless told otherwise."""
    for text in texts:
        print(harmless(text), file=file)


def say(text: str) -> None:
    """Print a line to what standard error is at that moment: while a live line is shown, what puts others above it."""
    print(harmless(text), file=sys.stderr, flush=True)


def say_nothing(_text: str) -> None:
    """In the place of `say`, for the processes that do not."""


@contextlib.contextmanager
def bar(doing: str, total: int) -> Iterator[Callable[..., None]]:
    """Shows how far a pass has come; yields the function to call after one, or so many, of its `total` parts."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape(shown(doing)), total=total)
        yield lambda parts=1: progress.advance(task, parts)
