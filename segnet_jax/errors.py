"""The error that is the user's to mend, told in one line and without a traceback."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in what the user gave: the message says what is wrong, what was given and what to do.

    Every command prints it as one line and exits with code 2. Faults of our own stay ordinary exceptions.
    """


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first five of many items and how many more there are, for a message."""
    more = [f"and {len(items) - 5} more"] if len(items) > 5 else []
    return separator.join([*items[:5], *more])
