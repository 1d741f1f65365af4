"""Tensors in a file, whose names and shapes are checked before any data are read."""

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
    """Compare the tensors in a file with a table of names and shapes.

    Args:
      tensors: all tensors in the file.
      needed: names that the file must contain, and their shapes.
      unused: names of other tensors that the file may contain.

    Returns:
      A description of missing, unknown and misshapen tensors; empty if there are none.
    """
    missing = [name for name in needed if name not in tensors]
    unknown = sorted(tensors.keys() - set(unused) - needed.keys())
    misshapen = [
        f"{name} {shape_text(tensors[name].shape)} instead of {shape_text(shape)}"
        for name, shape in needed.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    faults = {"missing": missing, "unknown": unknown, "of the wrong shape": sorted(misshapen)}
    return "; ".join(f"{len(names)} {fault}: {listed(names)}" for fault, names in faults.items() if names)


def read_numbers(name: str, tensor: StoredTensor) -> np.ndarray:
    """Read a tensor as float32.

    Raises:
      ValueError: If a number is not finite, or the tensor does not have a floating-point type.
    """
    stored = tensor.read()
    if stored.dtype.kind != "f":
        raise ValueError(f"tensor {name} has type {stored.dtype}, but weights must be floating-point numbers")
    with np.errstate(over="ignore", invalid="ignore"):  # values out of float32's range become infinite: see below
        values = np.ascontiguousarray(stored, np.float32)
    if num_bad := values.size - np.count_nonzero(np.isfinite(values)):
        raise ValueError(f"tensor {name} has {num_bad} numbers that are not finite (NaN or infinite)")
    return values


def shape_text(shape: tuple[int, ...]) -> str:
    """Format a shape as "3x3x64x64"."""
    return "x".join(map(str, shape)) or "scalar"
