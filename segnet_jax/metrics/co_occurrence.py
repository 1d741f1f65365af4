"""Counts of labels with several classes per pixel, in place of confusion matrices.

The table int [C+1,C+2] has a row for each true class and one for all labeled pixels, and a column for each predicted
class, one for all pixels, and one for the pixels whose classes are all predicted correctly. Row c and column k count
the pixels with both. Its diagonal, its column C and its row C are the correct, labeled and predicted pixels of each
class.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.constants import VOID
from segnet_jax.nn.label_bits import unpack

_BLOCK = 2**20  # pixels


def co_occurrences(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    """Count the classes of each image: label and prediction uint8 [B,...], bit masks, to int32 [B,C+1,C+2]."""
    return lax.map(lambda pair: _count(*pair, num_classes), (label, prediction))


def _count(label: jax.Array, prediction: jax.Array, num_classes: int) -> jax.Array:
    size = min(_BLOCK, label.size)
    num_blocks = -(-label.size // size)
    blocks = [
        jnp.pad(each.reshape(-1), (0, num_blocks * size - label.size), constant_values=VOID).reshape(num_blocks, size)
        for each in (label, prediction)
    ]

    def add_block(total, block):
        rows, columns = (each.astype(jnp.float32) for each in _indicators(*block, num_classes, jnp))
        return total + (rows.T @ columns).astype(jnp.int32), None  # exact: sums of ones below 2^24

    return lax.scan(add_block, jnp.zeros((num_classes + 1, num_classes + 2), jnp.int32), tuple(blocks))[0]


def _indicators(label, prediction, num_classes: int, xp):
    """Return what each labeled pixel [P] is counted as: its rows, bool [P,C+1], and its columns, bool [P,C+2]."""
    valid = (label != VOID)[:, None]
    rows = xp.concatenate([unpack(label, num_classes) & valid, valid], axis=1)
    right = (label == prediction)[:, None]
    return rows, xp.concatenate([unpack(prediction, num_classes), xp.ones_like(valid), right], axis=1)


def count_co_occurrences(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Compute `co_occurrences` of one image on the host, as int64 [C+1,C+2]."""
    counts = np.zeros((num_classes + 1, num_classes + 2), np.int64)
    labels, predictions = label.reshape(-1), prediction.reshape(-1)
    for start in range(0, labels.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        rows, columns = _indicators(labels[part], predictions[part], num_classes, np)
        counts += (rows.astype(np.float32).T @ columns.astype(np.float32)).astype(np.int64)
    return counts
