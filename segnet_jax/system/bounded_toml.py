"""TOML of people one does not know: bounded in size and in nesting before it is parsed.

Python's parser takes time and memory that grow as the square of a key's length in dots, and as the depth of nesting:
80 kB of one dotted key take gigabytes. Nothing that this project reads is large or deep.
"""

import re
import tomllib
from typing import Any

MOST_BYTES = 65_536
MOST_DEPTH = 16
"""Of arrays and inline tables in one another, and of the parts of a dotted key."""

_STRINGS = re.compile(
    r'"""(?:[^\\]|\\.)*?"""'
    r"|'''.*?'''"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*",
    re.DOTALL,
)
_DOTTED = re.compile(rf"(?:[\w+-]+[ \t]*\.[ \t]*){{{MOST_DEPTH},}}")


def loads(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
      ValueError: it is not TOML, has over 64 kB, or is nested over 16 deep.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise ValueError(f"it has over {MOST_BYTES:,} bytes")
    bare = _STRINGS.sub(lambda found: "" if found[0][0] == "#" else "_", text)
    if _DOTTED.search(bare) or _depth(bare) > MOST_DEPTH:
        raise ValueError(f"it is nested over {MOST_DEPTH} deep")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _depth(bare: str) -> int:
    """The deepest nesting of brackets in TOML whose strings and comments are taken out.

    A bracket that closes nothing counts as nothing, so that none can hide the depth of what follows.
    """
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", bare):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest
