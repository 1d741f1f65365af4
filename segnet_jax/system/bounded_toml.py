"""Parse untrusted TOML, after limiting its size and nesting.

The cost of Python's parser grows with the square of the number of dots in a key, and with the depth of nesting: a
dotted key of 80 kB takes gigabytes. No file of this project is large or deeply nested.
"""

import re
import tomllib
from typing import Any

MOST_BYTES = 65_536
MOST_DEPTH = 16
"""Limit for nested arrays and inline tables, and for the parts of a dotted key."""

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
      ValueError: If the text is not TOML, is larger than 64 kB, or is nested more than 16 levels deep.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise ValueError(f"it has over {MOST_BYTES:,} bytes")
    bare = _STRINGS.sub(lambda match: "" if match[0][0] == "#" else "_", text)
    if _DOTTED.search(bare) or _depth(bare) > MOST_DEPTH:
        raise ValueError(f"it is nested over {MOST_DEPTH} levels deep")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _depth(bare: str) -> int:
    """Return the maximum nesting of brackets in TOML without its strings and comments.

    Unmatched closing brackets are ignored, so that they cannot hide the depth of what follows.
    """
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", bare):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest
