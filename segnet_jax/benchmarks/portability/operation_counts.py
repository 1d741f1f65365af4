"""What a lowered program consists of: its operations, counted by kind."""

import re
from collections import Counter

_OPERATION = re.compile(r'^\s*(?:%\S+(?:, %\S+)* = )?"?((?:[a-z_]+\.)+\w+)"?(?= |\(|<)(.*)$', re.MULTILINE)
_WITHIN = re.compile(r"\bapplies ((?:[a-z_]+\.)+\w+)")  # the short form of a reduction
_NAME = re.compile(r"@(\w+)")
_FRAME = ("func", "builtin", "sdy")  # dialects of what holds operations and is none itself
_END = "stablehlo.return"  # of a region
_PREFIX = "stablehlo."


def count_operations(module: str) -> dict[str, int]:
    """Counts a StableHLO module's operations, those of the functions and regions in it too.

    Args:
      module: as text, in MLIR's pretty form.

    Returns:
      Kind -> number, in the order of the kinds; without the dialect's name where that is StableHLO's. A custom call's
      kind has the name that it calls, for that is what a platform may lack.
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
