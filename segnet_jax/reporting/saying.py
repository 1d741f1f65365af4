"""What commands say while they work, on standard error; results go to standard output."""

import sys


def say(text: str) -> None:
    """Prints a line to what standard error is at that moment: while a live line is shown, what puts others above it."""
    print(text, file=sys.stderr, flush=True)


def say_nothing(_text: str) -> None:
    """In the place of `say`, for the processes that do not."""
