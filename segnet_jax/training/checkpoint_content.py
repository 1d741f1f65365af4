"""What a checkpoint holds, looked at before it is used: its sums may be right and its content strange all the same.

A stranger can seal whatever he likes. Sums tell damage; here types, shapes, sizes and values are held against what a
training of this program saves.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from segnet_jax.system.errors import NoCheckpoint
from segnet_jax.training.manifest import read_manifest
from segnet_jax.training.precision import DTYPES


class OtherState(NoCheckpoint):
    """A checkpoint holds the state of another network."""


MOST_CLASSES = 255
_MOST_LETTERS = 100  # of a class's name, as a class table may have
_MOST_MORE = 64_000_000  # bytes of a checkpoint beside its arrays
_LARGEST = 2_500_000_000  # bytes of the largest network's state at width 1, four times over


def most_bytes(width: float) -> int:
    """The bytes that a checkpoint may have, by the width of its network, before it is read."""
    return _MOST_MORE + int(_LARGEST * width**2)


def check_meta(meta: Any, where: str, is_resumed: bool = False) -> dict[str, Any]:
    """Refuse the JSON of a checkpoint that is not what a training writes.

    Args:
      meta: parsed.
      where: what messages call the checkpoint.
      is_resumed: whether a training is to go on from it, which needs more of it.

    Returns:
      The same.

    Raises:
      NoCheckpoint: naming what is missing or of another kind.
    """
    if not isinstance(meta, dict):
        raise NoCheckpoint(f"{where} holds no description of its network; {_ADVICE}")
    classes = meta.get("classes")
    num_classes = len(classes) if isinstance(classes, list) else 0
    rules = _RULES | (_RULES_TO_RESUME if is_resumed else {})
    for name, is_right in rules.items():
        try:
            right = is_right(meta[name], num_classes)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            right = False
        if not right:
            what = "is missing" if name not in meta else "is not what a training saves"
            raise NoCheckpoint(f"{where} cannot be used: its {name.replace('_', ' ')} {what}; {_ADVICE}")
    return meta


_ADVICE = "put it back from a copy, or train again in another folder (--run)"


def _is_whole(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_names(value: Any) -> bool:
    return 1 <= len(value) <= MOST_CLASSES and len(set(value)) == len(value) and all(map(_is_name, value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MOST_LETTERS and value.isprintable()


def _is_color(value: Any) -> bool:
    return len(value) == 3 and all(_is_whole(each) and each <= 255 for each in value)


def _is_preprocessing(value: Any) -> bool:
    channels = all(len(each) == 3 and all(map(_is_number, each)) for each in value.values())
    return value.keys() == {"mean", "std"} and channels and all(each > 0 for each in value["std"])


def _is_scored(value: Any, num_classes: int) -> bool:
    if value is None:
        return True
    rows = value["confusion"]
    is_square = len(rows) == num_classes and all(len(row) == num_classes for row in rows)
    return _is_whole(value["step"]) and is_square and all(_is_whole(each) for row in rows for each in row)


Rule = Callable[[Any, int], bool]
_RULES: dict[str, Rule] = {
    "step": lambda value, _: _is_whole(value),
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
    "global_batch_size": lambda value, _: _is_whole(value, least=1),
    "last": _is_scored,
    "best": _is_scored,
}


def best_evaluation(meta: Any, where: str) -> dict[str, Any] | None:
    """Return the best evaluation in the metadata of a checkpoint; None if there was none yet.

    Raises:
      NoCheckpoint: it is not what a training saves.
    """
    try:
        best = meta["best"]
        if best is None or _is_scored(best, len(best["confusion"])):
            return best
    except (KeyError, TypeError, AttributeError, OverflowError):
        pass
    raise NoCheckpoint(f"{where} cannot be used: its best is not what a training saves; {_ADVICE}")


def check_arrays(folder: pathlib.Path, like: Any, part: str) -> None:
    """Refuse arrays that would take far more memory than the state that they are to become, before any is read.

    Args:
      folder: of a checkpoint that verifies.
      like: that state, as shapes.
      part: the folder in it that holds the arrays.

    Raises:
      NoCheckpoint: there are no arrays, or too large or too many.
    """
    import tensorstore

    leaves = jax.tree.leaves(like)
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in leaves]
    of_part = {name: known for name, known in read_manifest(folder)["files"].items() if name.startswith(f"{part}/")}
    if sum(known["bytes"] for known in of_part.values()) > 2 * sum(sizes) + _MOST_MORE:
        raise OtherState(f"{folder} is larger than its network's state; {_ADVICE}")
    if f"{part}/manifest.ocdbt" not in of_part:
        raise NoCheckpoint(f"{folder} holds no state; {_ADVICE}")
    try:
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"{(folder / part).as_uri()}/"}).result()
        names = [name for name in store.list().result() if name.endswith(b"/.zarray")]
        if len(names) > 2 * len(leaves) + 100:
            raise NoCheckpoint(f"{folder} holds {len(names)} arrays, and its network {len(leaves)}; {_ADVICE}")
        for name in names:
            told = json.loads(store.read(name).result().value)
            _check_array(told, max(sizes), f"{name.decode(errors='replace')} in {folder}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NoCheckpoint(f"the arrays of {folder} cannot be read ({_short(error)}); {_ADVICE}") from None


def _check_array(told: Mapping[str, Any], most: int, where: str) -> None:
    for part in ("shape", "chunks"):
        if not all(_is_whole(side) for side in told[part]):
            raise ValueError(f"{where} has no {part}")
        if math.prod(told[part]) * np.dtype(told["dtype"]).itemsize > most:
            raise OtherState(f"{where} is larger than any array of its network; {_ADVICE}")


def check_values(state: Any, where: str) -> None:
    """Refuse a restored state that holds NaN or infinity, or a variance below 0.

    Raises:
      NoCheckpoint: naming the array.
    """
    parts = (state.params, state.batch_stats, state.opt_state, state.ema)
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        array, name = np.asarray(leaf), jax.tree_util.keystr(path[1:])
        is_floating = jax.dtypes.issubdtype(array.dtype, np.floating)
        if is_floating and not np.isfinite(array.astype(np.float32)).all():
            raise NoCheckpoint(f"{where} cannot be used: {name} is not finite; {_ADVICE}")
        if name.endswith("['var']") and (array < 0).any():
            raise NoCheckpoint(f"{where} cannot be used: {name} is a variance below 0; {_ADVICE}")


@contextlib.contextmanager
def reading_state(folder: pathlib.Path, like: Any, part: str) -> Iterator[None]:
    """Let Orbax read arrays after a look at their sizes, and say in one line where it finds another state.

    Args:
      folder: as `check_arrays`.
      like: likewise.
      part: likewise.

    Raises:
      OtherState: it is not the state of this network.
    """
    check_arrays(folder, like, part)
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError, RecursionError) as error:
        raise OtherState(f"{folder} does not hold the state of this network ({_short(error)}); {_ADVICE}") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
