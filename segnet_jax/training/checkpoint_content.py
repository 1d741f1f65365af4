"""Validate the content of a checkpoint before it is used.

A valid manifest excludes damage, not malice, because anyone can write one. These functions check that types, shapes,
sizes and values are such as this program saves.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from segnet_jax.constants import MAX_CHANNELS
from segnet_jax.system.errors import NoCheckpoint
from segnet_jax.training.manifest import read_manifest
from segnet_jax.training.precision import DTYPES


class OtherState(NoCheckpoint):
    """Raised if a checkpoint contains the state of another network."""


MAX_CLASSES = 255
_MAX_NAME_LENGTH = 100  # of a class name, as in class tables
_OVERHEAD_BYTES = 64_000_000  # limit for everything in a checkpoint except its arrays
_MAX_STATE_BYTES = 2_500_000_000  # four times the state of the largest network at width 1


def max_checkpoint_bytes(width: float, is_own: bool = False) -> int:
    """Return the size limit of a checkpoint by its network's width; for a custom network, at least that of width 1."""
    return _OVERHEAD_BYTES + int(_MAX_STATE_BYTES * max(width, is_own) ** 2)


def check_meta(meta: Any, where: str, is_resumed: bool = False) -> dict[str, Any]:
    """Validate and return the JSON metadata of a checkpoint; `is_resumed` also requires the entries needed to resume.

    Raises:
      NoCheckpoint: If an entry is missing or invalid; the message names it.
    """
    if not isinstance(meta, dict):
        raise NoCheckpoint(f"{where} cannot be used: its metadata are not a JSON object; {_ADVICE}")
    classes = meta.get("classes")
    num_classes = len(classes) if isinstance(classes, list) else 0
    rules = _RULES | (_RULES_TO_RESUME if is_resumed else {})
    meta.setdefault("evaluations_since_best", 0)  # missing in checkpoints of older versions
    for name, check in rules.items():
        try:
            is_valid = check(meta[name], num_classes)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            is_valid = False
        if not is_valid:
            fault = "is missing" if name not in meta else "is invalid"
            raise NoCheckpoint(f"{where} cannot be used: {name} {fault} in its metadata; {_ADVICE}")
    return meta


_ADVICE = "restore it from a backup, or train again in another folder (--run)"


def _is_integer(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_names(value: Any) -> bool:
    return 1 <= len(value) <= MAX_CLASSES and len(set(value)) == len(value) and all(map(_is_name, value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME_LENGTH and value.isprintable()


def _is_color(value: Any) -> bool:
    return len(value) == 3 and all(_is_integer(each) and each <= 255 for each in value)


def _is_preprocessing(value: Any) -> bool:
    numbers = all(1 <= len(each) <= MAX_CHANNELS and all(map(_is_number, each)) for each in value.values())
    are_alike = value.keys() == {"mean", "std"} and len(value["mean"]) == len(value["std"])
    return are_alike and numbers and all(each > 0 for each in value["std"])


def _is_evaluation(value: Any, num_classes: int) -> bool:
    if value is None:
        return True
    rows = value["confusion"]
    shape = len(rows), *{len(row) for row in rows}  # the second is that of several classes per pixel
    has_shape = num_classes > 0 and shape in ((num_classes, num_classes), (num_classes + 1, num_classes + 2))
    return _is_integer(value["step"]) and has_shape and all(_is_integer(each) for row in rows for each in row)


Rule = Callable[[Any, int], bool]
_RULES: dict[str, Rule] = {
    "step": lambda value, _: _is_integer(value),
    "classes": lambda value, _: _are_names(value),
    "colors": lambda value, count: len(value) == count and all(map(_is_color, value)),
    "preprocessing": lambda value, _: _is_preprocessing(value),
    "precision": lambda value, _: value in DTYPES,
    "class_weights": lambda value, count: len(value) == count and all(_is_number(each) and each >= 0 for each in value),
}
_RULES_TO_RESUME: dict[str, Rule] = {
    "seconds": lambda value, _: _is_number(value) and value >= 0,
    "class_weights_by": lambda value, _: isinstance(value, str),
    "data": lambda value, _: all(isinstance(each, str) for each in (*value.keys(), *value.values())),
    "global_batch_size": lambda value, _: _is_integer(value, least=1),
    "last": _is_evaluation,
    "best": _is_evaluation,
    "evaluations_since_best": lambda value, _: _is_integer(value),
}


def best_evaluation(meta: Any, where: str) -> dict[str, Any] | None:
    """Return the best evaluation in the metadata of a checkpoint, or None if there was none yet.

    Raises:
      NoCheckpoint: If the evaluation is invalid.
    """
    try:
        best = meta["best"]
        sizes = () if best is None else (len(best["confusion"]), len(best["confusion"]) - 1)
        if best is None or any(_is_evaluation(best, size) for size in sizes):
            return best
    except (KeyError, TypeError, AttributeError, OverflowError):
        pass
    raise NoCheckpoint(f"{where} cannot be used: its best evaluation is invalid; {_ADVICE}")


def check_arrays(folder: pathlib.Path, like: Any, part: str) -> None:
    """Check the sizes of a checkpoint's arrays before they are read, so that none takes excessive memory.

    The checkpoint must have a valid manifest, and the arrays must be in its subfolder `part`. `like` has the shapes of
    the state to restore; if its `opt_state` is None, two more copies of the parameters are allowed.

    Raises:
      NoCheckpoint: If there are no arrays, or they are too large or too many.
    """
    import tensorstore

    leaves = jax.tree.leaves((like, (like.params, like.params) if like.opt_state is None else ()))
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in leaves]
    files = {name: entry for name, entry in read_manifest(folder)["files"].items() if name.startswith(f"{part}/")}
    if sum(entry["bytes"] for entry in files.values()) > 2 * sum(sizes) + _OVERHEAD_BYTES:
        raise OtherState(f"{folder} is larger than its network's state; {_ADVICE}")
    if f"{part}/manifest.ocdbt" not in files:
        raise NoCheckpoint(f"{folder} does not contain a state; {_ADVICE}")
    try:
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"{(folder / part).as_uri()}/"}).result()
        names = [name for name in store.list().result() if name.endswith(b"/.zarray")]
        if len(names) > 2 * len(leaves) + 100:
            raise NoCheckpoint(f"{folder} contains {len(names)} arrays, but its network has {len(leaves)}; {_ADVICE}")
        for name in names:
            header = json.loads(store.read(name).result().value)
            _check_array(header, max(sizes), f"{name.decode(errors='replace')} in {folder}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NoCheckpoint(f"the arrays of {folder} cannot be read ({_short(error)}); {_ADVICE}") from None


def _check_array(header: Mapping[str, Any], max_bytes: int, where: str) -> None:
    for part in ("shape", "chunks"):
        if not all(_is_integer(side) for side in header[part]):
            raise ValueError(f"{where} has no valid {part}")
        if math.prod(header[part]) * np.dtype(header["dtype"]).itemsize > max_bytes:
            raise OtherState(f"{where} is larger than any array of its network; {_ADVICE}")


def check_values(state: Any, where: str) -> None:
    """Check that a restored state contains no NaN, infinity or negative variance.

    Raises:
      NoCheckpoint: If an array contains such a value; the message names it.
    """
    parts = (state.params, state.batch_stats, state.opt_state, state.ema)
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        array, name = np.asarray(leaf), jax.tree_util.keystr(path[1:])
        is_floating = jax.dtypes.issubdtype(array.dtype, np.floating)
        if is_floating and not np.isfinite(array.astype(np.float32)).all():
            raise NoCheckpoint(f"{where} cannot be used: {name} is not finite; {_ADVICE}")
        if name.endswith("['var']") and (array < 0).any():
            raise NoCheckpoint(f"{where} cannot be used: {name} has a negative variance; {_ADVICE}")


@contextlib.contextmanager
def reading_state(folder: pathlib.Path, like: Any, part: str) -> Iterator[None]:
    """Call `check_arrays`, and convert Orbax's errors in the context to one-line errors.

    Raises:
      OtherState: If the checkpoint contains the state of another network.
      NoCheckpoint: If `check_arrays` finds another fault.
    """
    check_arrays(folder, like, part)
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError, RecursionError) as error:
        raise OtherState(f"{folder} does not contain the state of this network ({_short(error)}); {_ADVICE}") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
