"""All faults of a data set in one run, although reading meets them one by one."""

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from segnet_jax.datasets.records import DataSet, Split
from segnet_jax.errors import Fault, UserError, UserErrors


def told_together(data_set: DataSet, where: object) -> DataSet:
    """The same data set, but where one record cannot be read, all are looked at and the error tells all faults.

    Whoever reads, in whatever order and from however many threads, thus gets the same error.

    Args:
      data_set: its records raise UserError where they are at fault.
      where: the folder or archive that messages name.
    """
    lock = threading.Lock()
    found: list[UserErrors] = []

    def read(split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            return split.read(index)
        except UserError as error:
            with lock:
                if not found:
                    found.append(UserErrors(where, [*faults_of(data_set.splits.values()), *error.faults]))
            raise found[0] from None

    splits = {
        name: dataclasses.replace(split, read=functools.partial(read, split)) for name, split in data_set.splits.items()
    }
    return dataclasses.replace(data_set, splits=splits)


def faults_of(splits: Iterable[Split]) -> list[Fault]:
    """What is wrong with the records of splits, after reading all of them."""
    reads = [functools.partial(split.read, index) for split in splits for index in range(len(split))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [fault for faults in pool.map(_faults, reads) for fault in faults]


def _faults(read: Callable[[], object]) -> tuple[Fault, ...]:
    try:
        read()
    except UserError as error:
        return error.faults
    return ()
