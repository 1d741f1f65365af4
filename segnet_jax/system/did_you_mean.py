"""Hint at the nearest known name, for messages on an unknown one."""

import difflib
from collections.abc import Iterable


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """Return "; nearest: NAME" with the known name most similar to an unknown one, or "" if none is similar."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; nearest: {near[0]}" if near else ""
