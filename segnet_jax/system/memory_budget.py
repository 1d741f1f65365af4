"""A memory budget for decoded images: threads that decode large ones wait for each other."""

import contextlib
import ctypes
import pathlib
import threading
from collections.abc import Iterator

import numpy as np

BYTES = 256 * 2**20
"""Limit for all threads together, which one thread at a time may exceed."""


_PART = 2**20  # elements
_CGROUP = "/sys/fs/cgroup"  # cgroup v2, as seen in a container


class Budget:
    """Memory that threads reserve before they allocate it.

    A thread waits until its request fits, or until no other thread is over the limit. The one thread over the limit
    does not wait again until its scope ends, which prevents deadlocks.

    Args:
      limit: bytes.
    """

    def __init__(self, limit: int = BYTES):
        self._limit, self._used = limit, 0
        self._over: int | None = None  # id of the thread over the limit
        self._changed = threading.Condition()
        self._mine = threading.local()

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Reserve the memory that this thread announces, until its outermost scope ends."""
        if getattr(self._mine, "depth", 0):
            yield
            return
        self._mine.depth, self._mine.held = 1, 0
        try:
            yield
        finally:
            with self._changed:
                self._used -= self._mine.held
                if self._over == threading.get_ident():
                    self._over = None
                self._changed.notify_all()
            self._mine.depth = 0
            if self._mine.held > self._limit:
                release_freed_memory()

    def announce(self, num_bytes: int) -> None:
        """Wait until this many more bytes may be allocated; outside a scope, return immediately."""
        if not getattr(self._mine, "depth", 0):
            return
        me = threading.get_ident()
        with self._changed:
            while self._used + num_bytes > self._limit and self._over not in (None, me):
                self._changed.wait()
            if self._used + num_bytes > self._limit:
                self._over = me
            self._used += num_bytes
            self._mine.held += num_bytes


def release_freed_memory() -> None:
    """Return freed memory to the system; the C library may retain hundreds of megabytes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_memory() -> int:
    """Return the bytes that the system and the control group still allow this process to allocate; 0 if unknown."""
    limits = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo") as file:
            limits.append(next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError, KeyError):  # a container's limit; "max" if there is none
        limit, used = (int(pathlib.Path(_CGROUP, name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in pathlib.Path(_CGROUP, "memory.stat").read_text().splitlines())
        limits.append(max(0, limit - used + int(statistics["inactive_file"])))  # cached files can be evicted
    return min(limits, default=0)


def count_values(values: np.ndarray, least: int = 0) -> np.ndarray:
    """Compute `np.bincount` in parts, as numpy converts every element to eight bytes."""
    flat = values.reshape(-1)
    parts = (flat[start : start + _PART] for start in range(0, max(flat.size, 1), _PART))
    size = max(least, int(flat.max(initial=0)) + 1)
    return sum((np.bincount(part, minlength=size) for part in parts), start=np.zeros(size, np.int64))


pictures = Budget()
"""The budget of this process."""
