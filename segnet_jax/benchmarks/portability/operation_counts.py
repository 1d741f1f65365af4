"""Count the operations of a lowered program by kind."""

import re
from collections import Counter

_OPERATION = re.compile(r'^\s*(?:%\S+(?:, %\S+)* = )?"?((?:[a-z_]+\.)+\w+)"?(?= |\(|<)(.*)$', re.MULTILINE)
_WITHIN = re.compile(r"\bapplies ((?:[a-z_]+\.)+\w+)")  # the short form of a reduction
_NAME = re.compile(r"@(\w+)")
_FRAME = ("func", "builtin", "sdy")  # dialects of functions and modules; not counted
_END = "stablehlo.return"  # of a region
_PREFIX = "stablehlo."


def count_operations(module: str) -> dict[str, int]:
    """Count the operations of a StableHLO module, including those in its functions and regions.

    Args:
      module: text in MLIR's pretty form.

    Returns:
      Kind, without the prefix "stablehlo.", -> count, sorted by kind. The kind of a custom call includes its target,
      which a platform may not support.
    """
    counts = Counter()
    for kind, rest in _OPERATION.findall(module):
        if kind.split(".")[0] in _FRAME or kind == _END:
            continue
        if kind == f"{_PREFIX}custom_call" and (called := _NAME.search(rest)):
            kind = f"{kind} {called[1]}"
        counts[kind.removeprefix(_PREFIX)] += 1
        counts.update(within.removeprefix(_PREFIX) for within in _WITHIN.findall(rest))
    return dict(sorted(counts.items()))
