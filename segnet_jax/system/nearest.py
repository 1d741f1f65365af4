"""The hint that messages give on a name that is not known."""

import difflib
from collections.abc import Iterable


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """Return "; nearest: NAME" with the known name that is most like an unknown one, or "" if none is."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; nearest: {near[0]}" if near else ""
