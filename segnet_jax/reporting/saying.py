"""What commands print: results to standard output, and what they do meanwhile to standard error.

Names of classes, files and runs come from other people: whatever in them a terminal would obey is escaped.
"""

import sys
from typing import TextIO

from segnet_jax.errors import shown


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
