"""Tensors in a file, held against what a network needs before a single number of them is read."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from segnet_jax.system.errors import listed


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not yet read."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def misfits(
    tensors: Mapping[str, StoredTensor], needed: Mapping[str, tuple[int, ...]], unused: Collection[str] = ()
) -> str:
    """Compares a file with a table of names and shapes from both sides.

    Args:
      tensors: all that the file holds.
      needed: the names that it must hold, and their shapes.
      unused: names that may stand in the file and are not needed.

    Returns:
      How many and which tensors are missing, unknown and of another shape; empty where the file is just what it should
      be.
    """
    missing = [name for name in needed if name not in tensors]
    unknown = sorted(tensors.keys() - set(unused) - needed.keys())
    misshapen = [
        f"{name} {_text(tensors[name].shape)} where {_text(shape)} is needed"
        for name, shape in needed.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    faults = {"missing": missing, "unknown": unknown, "of another shape": sorted(misshapen)}
    return "; ".join(f"{len(names)} {fault}: {listed(names)}" for fault, names in faults.items() if names)


def read_numbers(name: str, tensor: StoredTensor) -> np.ndarray:
    """Reads a tensor as float32.

    Raises:
      ValueError: it holds a number that is not finite, or no floating-point numbers.
    """
    stored = tensor.read()
    if stored.dtype.kind != "f":
        raise ValueError(f"tensor {name} holds {stored.dtype}, and weights are floating-point numbers")
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a float64 beyond float32's range becomes infinite, and is refused as that
        values = np.ascontiguousarray(stored, np.float32)
    if num_bad := values.size - np.count_nonzero(np.isfinite(values)):
        raise ValueError(f"tensor {name} holds {num_bad} numbers that are not finite (NaN or infinite)")
    return values


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
