"""Output of commands: results on standard output, and progress bars on standard error."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.text import Text

from segnet_jax.system import logs
from segnet_jax.system.errors import printable, shown


def echo(*texts: object, file: TextIO | None = None) -> None:
    """Print each text on a line of its own, by default on standard output."""
    for text in texts:
        print(printable(text), file=file)


def cell(text: object, style: str = "") -> Text:
    """Return the cell of a table: unprintable characters are escaped, and "[red]" is no markup."""
    return Text(printable(text), style=style)


@contextlib.contextmanager
def bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a progress bar on a terminal; yield the function to call after one, or so many, of `total` parts."""
    console = Console(stderr=True)
    disable = not console.is_terminal or logs.is_quiet()
    with logs.above(console), Progress(console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(escape(shown(description)), total=total)
        yield lambda parts=1: progress.advance(task, parts)
