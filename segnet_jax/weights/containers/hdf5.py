"""Find and read the floating-point arrays of an HDF5 file, without access to any other file.

h5py finds the arrays in a separate process (`hdf5_layout`), so that a file that makes the HDF5 library crash, hang or
use up memory is rejected like any other damaged file; this process then reads the numbers. Arrays must be stored
contiguously inside the file: no external links or storage, virtual datasets, chunks or filters.
"""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from segnet_jax.weights.containers.stored_tensors import StoredTensor

_SCRIPT = Path(__file__).with_name("hdf5_layout.py")
_SECONDS = 60
_FLOATS = ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8")


def read_arrays(file: BinaryIO) -> dict[str, StoredTensor]:
    """Find the arrays in all groups of a file.

    Args:
      file: a file on disk or a BytesIO, which must stay open until the arrays are read.

    Returns:
      Path such as "block1_conv1/block1_conv1/kernel:0" -> array.

    Raises:
      ValueError: If the file is damaged.
    """
    num_bytes = file.seek(0, 2)
    return {
        path: StoredTensor(tuple(shape), partial(_read, file, num_bytes, path, tuple(shape), dtype, start))
        for path, shape, dtype, start in _layout(file)
    }


def _layout(file: BinaryIO) -> list[tuple[str, list[int], str, int | None]]:
    file.seek(0)
    # getvalue, not getbuffer: a view left behind in a traceback makes Python 3.13 complain when the file is freed
    source = {"input": file.getvalue()} if hasattr(file, "getvalue") else {"stdin": file}
    command = [sys.executable, "-P", str(_SCRIPT)]  # -P: some modules next to the script share names with libraries
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # OpenBLAS's threads would take address space
    try:
        done = subprocess.run(command, **source, env=environment, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"is damaged: the HDF5 library did not finish within {_SECONDS} seconds") from None
    if done.returncode < 0:
        raise ValueError(f"is damaged: the HDF5 library crashed on it (signal {-done.returncode})")
    if done.returncode:
        cause = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(f"cannot be read: h5py failed with {cause!r}")
    found = json.loads(done.stdout)
    if "error" in found:
        raise ValueError(f"is a damaged or unsupported HDF5 file: {found['error']}")
    return found["rows"]


def _read(
    file: BinaryIO, num_bytes: int, path: str, shape: tuple[int, ...], dtype: str, start: int | None
) -> np.ndarray:
    if dtype not in _FLOATS:
        raise ValueError(f"tensor {path} has type {dtype}, but weights must be floating-point numbers")
    if start is None:
        raise ValueError(f"tensor {path} is not stored contiguously; save it without chunks or compression")
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    if start + needed > num_bytes:
        raise ValueError(f"tensor {path} of shape {shape} extends beyond the file's {num_bytes} bytes")
    file.seek(start)
    return np.frombuffer(file.read(needed), dtype).reshape(shape)
