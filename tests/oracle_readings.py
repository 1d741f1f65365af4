"""Read the output files of the commands by value only: numbers without keys, arrays without paths."""

import hashlib
import itertools
import json
import os
import re
import struct

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax import export
from PIL import Image
from program_hash import program_hash

# --- names of files and keys ---

LOG, SCORES = "run/metrics.jsonl", ("run/result.json", "scores.json")
CHECKPOINT_MARK = "_CHECKPOINT_METADATA"  # Orbax writes it beside a checkpoint's arrays, in a folder named by the step
PICTURES, TENSORS, PROGRAMS = "out*/*.png", "exported/*.safetensors", "lowered/*.stablehlo"
VOLATILE = re.compile("second|time|elapsed|date|version|speed|throughput|difference|environment")
"""Keys of numbers that differ from run to run or repeat the config."""


# --- reading: item name -> (kind, value); the kind says how two values are compared ---


def read_case(folder):
    """Return everything that the commands of a case computed."""
    items = {}
    if found := newest_checkpoint(folder):
        arrays = restore(found)
        items["state, arrays"] = "bag", sorted(fingerprint(each) for each in arrays if each.ndim)
        items["state, scalars"] = "bag", sorted(f"{each.dtype} {each}" for each in arrays if not each.ndim)
    if (log := folder / LOG).exists():
        lines = log.read_text().splitlines()
        items["log"] = "rows", [numbers(json.loads(line)) for line in lines]
    for name in SCORES:
        if (file := folder / name).exists():
            tree = json.loads(file.read_text())
            items[f"{name}, numbers"] = "numbers", numbers(tree)
            for matrix in square_matrices(tree):
                items[f"{name}, confusion matrix"] = "exact", matrix
    for file in sorted(folder.glob(PICTURES)):
        with Image.open(file) as image:
            items[str(file.relative_to(folder))] = "exact", fingerprint(np.asarray(image))
    for file in sorted(folder.glob(TENSORS)):
        items[str(file.relative_to(folder))] = "bag", sorted(fingerprint(each) for each in safetensors(file))
    for file in sorted(folder.glob(PROGRAMS)):
        text = export.deserialize(bytearray(file.read_bytes())).mlir_module()
        items[f"program {file.stem}"] = "program", program_hash(text)
    return items


def fingerprint(array):
    """Return shape, dtype and a hash of the values."""
    sum_ = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype}{list(array.shape)} {sum_[:16]}"


def newest_checkpoint(folder):
    """Return the folder of the checkpoint with the highest step, or None."""
    marks = list(folder.rglob(CHECKPOINT_MARK))
    return (
        max(marks, key=lambda mark: max(int(part) for part in mark.parts if part.isdigit())).parent if marks else None
    )


def restore(folder):
    """Return the arrays of a checkpoint without their paths, read with Orbax only."""
    checkpointer = ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpointer.restore(folder, restore_args=as_numpy))]


def safetensors(file):
    """Return the tensors of a file as arrays."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    dtypes = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8}
    for name, about in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            first, last = (8 + length + offset for offset in about["data_offsets"])
            yield np.frombuffer(content[first:last], dtypes[about["dtype"]]).reshape(about["shape"])


def numbers(tree):
    """Return all numbers of a JSON value, sorted, except those of volatile keys."""
    return sorted(_numbers(tree), key=lambda text: (float(text), text))


def _numbers(tree):
    if isinstance(tree, dict):
        tree = [value for key, value in tree.items() if not VOLATILE.search(key)]
    if isinstance(tree, list):
        yield from itertools.chain.from_iterable(map(_numbers, tree))
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield repr(float(tree))


def square_matrices(tree):
    """Return the square integer matrices in a JSON value that are larger than 2x2."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        rows = [row for row in tree if isinstance(row, list) and len(row) == len(tree)]
        if len(rows) == len(tree) > 2 and all(isinstance(cell, int) for row in rows for cell in row):
            yield tree
        else:
            yield from itertools.chain.from_iterable(map(square_matrices, tree))
