"""A progress bar for one pass over something, on terminals alone."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from segnet_jax.errors import shown


@contextlib.contextmanager
def bar(doing: str, total: int) -> Iterator[Callable[..., None]]:
    """Shows how far a pass has come; yields the function to call after one, or so many, of its `total` parts."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape(shown(doing)), total=total)
        yield lambda parts=1: progress.advance(task, parts)
