"""Void pixels, which are neither trained on nor scored.

In the program, they have the id `constants.VOID`, 255. In label files, unless `--map` overrides it, they are:

* values below `--labels-start-at`, and 255 if it is not a class (`value_table`);
* classes of a class file with a name in `VOID_NAMES`;
* with `--unknown-color ignore`, colors without a class (`label_colors.py`);
* CamVid's value 11 and color black (`classes.py`), Cityscapes' unevaluated ids (`layouts/cityscapes.py`).
"""

import functools

import numpy as np

from segnet_jax.constants import VOID

VOID_NAMES = {
    *("void", "ignore", "ignored", "unlabelled", "unlabeled", "don't care", "dontcare", "__ignore__", "_ignore_"),
    *("_void_", "ignore_region", "ignore region"),
}
"""Class names, in lower case, that are read as void."""
OUTSIDE = 254
"""Marks values and colors of label files that are neither a class nor void."""
NUM_VALUES = 2**16
"""Number of possible values in label files."""


@functools.lru_cache(maxsize=8)
def value_table(ids: tuple[tuple[int, int], ...], changes: tuple[tuple[int, int], ...], start: int) -> np.ndarray:
    """Return uint8 [65536]: value in label files -> class id, VOID or OUTSIDE; read-only.

    Args:
      ids: pairs of a value and its class id.
      changes: pairs (OLD, NEW): OLD is read like NEW.
      start: value of the first class; smaller values are void.
    """
    table = np.full(NUM_VALUES, OUTSIDE, np.uint8)
    table[:start] = VOID
    for value, class_id in ids:
        table[min(value + start, NUM_VALUES - 1) if value != VOID else value] = class_id
    meaning = table.copy()
    if meaning[VOID] == OUTSIDE:
        meaning[VOID] = VOID
    for old, new in changes:
        table[old] = meaning[new]
    table.flags.writeable = False
    return table
