"""BatchNorm's statistics that were taken afresh after a training, kept beside the checkpoint that they belong to.

In `checkpoints/statistics/SUM`, a sealed folder named by the sum of the checkpoint's state: they are found for that
state alone, and the checkpoint itself, from which a training goes on bit for bit, stays as it was saved.
"""

import pathlib
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from segnet_jax import confined
from segnet_jax.errors import UserError
from segnet_jax.training.sealing import Damaged, NewerFormat, seal, verify

_FOLDER, _FILE = "statistics", "batch_stats.safetensors"


def keep(checkpoints: pathlib.Path, state: str, batch_stats: dict[str, Any], facts: dict[str, Any]) -> None:
    """Keeps statistics; the same are not kept twice.

    Args:
      checkpoints: the folder of the run's checkpoints.
      state: the sum of the checkpoint's state.
      batch_stats: of its network.
      facts: how they were taken, as JSON.

    Raises:
      OSError: from the disk.
    """
    folder = _place(checkpoints, state)
    if kept(checkpoints, state, batch_stats) is not None:
        return
    partial = folder.with_name(f".{folder.name}.partial")
    around = checkpoints.parent
    for path in (partial, folder):  # what a kill has left, or what is damaged
        confined.remove(around, path.relative_to(around).as_posix())
    confined.make_folder(around, partial.relative_to(around).as_posix())
    save_file(_named(batch_stats), partial / _FILE)
    seal(partial, folder, {"state": state, **facts})


def kept(checkpoints: pathlib.Path, state: str, like: dict[str, Any]) -> dict[str, Any] | None:
    """The statistics that are kept for a checkpoint; None where there are none that are whole.

    Args:
      checkpoints: the folder of the run's checkpoints.
      state: the sum of the checkpoint's state.
      like: statistics of the same shapes.
    """
    folder = _place(checkpoints, state)
    wanted = _named(like)
    try:
        if confined.status(checkpoints.parent, folder.relative_to(checkpoints.parent).as_posix()) is None:
            return None
        if verify(folder)["state"] != state:
            return None
        found = load(confined.read_bytes(folder, _FILE))
    except (Damaged, NewerFormat, OSError, UserError, KeyError, ValueError, SafetensorError):
        return None
    if {name: array.shape for name, array in found.items()} != {name: array.shape for name, array in wanted.items()}:
        return None
    leaves = [found[name].astype(array.dtype) for name, array in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _place(checkpoints: pathlib.Path, state: str) -> pathlib.Path:
    return checkpoints / _FOLDER / state[:16]


def _named(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """The leaves in their order, each by its path."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in paths}
