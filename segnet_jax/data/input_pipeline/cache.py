"""A split's records at one size: decoded once into a file that is mapped into memory ever after.

Reading a record from it is copying 0.7 MB at 360x480, a hundred times faster than decoding a PNG. What is in the cache
is found by the split's fingerprint, held against its sums when it is opened, and made anew where it is damaged. What
does not fit there is decoded for each use.
"""

import errno
import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from segnet_jax.data.dataset import Split
from segnet_jax.data.images.fit import Fit, fit_record
from segnet_jax.system import budget
from segnet_jax.system.files import atomic_write_json, sum_of_file
from segnet_jax.system.staging import finish, remove, sweep, unfinished

logger = logging.getLogger(__name__)

Read = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""index -> (image uint8 [H,W,3], label uint8 [H,W]); not to be written to."""

VERSION = 1
"""To be raised with every change of decoding or resizing that changes a pixel."""

LIMIT = 64 * 2**30
"""Bytes up to which a split is kept decoded; a larger one is decoded anew for each use."""

_PREFIX = "decoded-"
_HEADER = "header.json"
_ARRAYS = ("images", "labels")
_BLOCK = 2**20  # bytes


@dataclass(frozen=True)
class CachedSplit:
    """A split's records at one size.

    Attributes:
      read: index -> record.
      num_records: how many there are.
      image_size: height and width.
      images: uint8 [N,H,W,3], mapped from the cache; None where records are decoded for each use.
      labels: uint8 [N,H,W], likewise.
    """

    read: Read
    num_records: int
    image_size: tuple[int, int]
    images: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return self.num_records

    @property
    def num_bytes(self) -> int:
        """Of all images and labels."""
        return self.num_records * 4 * math.prod(self.image_size)


def from_arrays(images: np.ndarray, labels: np.ndarray) -> CachedSplit:
    """The records that uint8 [N,H,W,3] and [N,H,W] hold."""
    return CachedSplit(lambda index: (images[index], labels[index]), len(labels), labels.shape[1:], images, labels)


def streamed(split: Split, image_size: tuple[int, int], fit: Fit = "stretch") -> CachedSplit:
    """Records that are decoded and resized each time they are asked for."""

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        with budget.pictures.scope():
            return fit_record(*split.read(index), image_size, fit)

    return CachedSplit(read, len(split), image_size)


def decoded(
    split: Split,
    image_size: tuple[int, int],
    cache: pathlib.Path,
    on_record: Callable[[], None] = lambda: None,
    fit: Fit = "stretch",
) -> CachedSplit:
    """Opens a split's decoded records, after decoding them where the cache has them not.

    Args:
      split: what to read.
      image_size: height and width that records are resized to.
      cache: folder that keeps decoded splits.
      on_record: called after each record that is decoded; what it raises ends the decoding at once, leaving nothing.
      fit: how records of another shape come to that size.

    Raises:
      UserError: that of the split's reader.
    """
    height, width = image_size
    sweep(cache, _PREFIX)
    folder = cache / f"{_PREFIX}{VERSION}-{split.fingerprint[:32]}-{height}x{width}{f'-{fit}' * (fit != 'stretch')}"
    if (kept := _open(folder)) is not None:
        return kept
    if os.path.lexists(folder):
        logger.warning(f"{folder} is damaged; it is made anew")
        remove(folder)
    samples = streamed(split, image_size, fit)
    why = _why_it_does_not_fit(cache, samples.num_bytes)
    if not why:
        try:
            with unfinished(folder) as parts:
                _decode(samples, parts, on_record)
                finish(parts, folder)  # or another process was faster: its records are the same
            return _open(folder) or samples
        except OSError as error:  # the disk has filled up since it was looked at, or is limited otherwise
            why = f"{cache} cannot take them ({error.strerror or error})"
    logger.info(
        f"{in_words(samples.num_bytes)} of decoded images are not kept, for {why}: they are decoded for each use"
    )
    return samples


def in_words(num_bytes: int) -> str:
    """A number of bytes in words."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _why_it_does_not_fit(cache: pathlib.Path, needed: int) -> str:
    if needed > LIMIT:
        return f"the limit is {in_words(LIMIT)}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
    except OSError as error:
        return f"{cache} cannot be used ({error.strerror})"
    if needed > 0.9 * free:
        return f"only {in_words(free)} are free in {cache}"
    return "" if os.access(cache, os.W_OK) else f"{cache} cannot be written to"


def _decode(samples: CachedSplit, folder: pathlib.Path, on_record: Callable[[], None]) -> None:
    shapes = {"images": (len(samples), *samples.image_size, 3), "labels": (len(samples), *samples.image_size)}
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape)
        for name, shape in shapes.items()
    }
    for array in arrays.values():
        _reserve(array)

    def keep(index: int) -> None:
        arrays["images"][index], arrays["labels"][index] = samples.read(index)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in pool.map(keep, range(len(samples))):
                on_record()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for array in arrays.values():
        array.flush()
    atomic_write_json(folder / _HEADER, _sums(folder))


def _reserve(array: np.memmap) -> None:
    """Takes the room of a mapped file on the disk: one that finds none when it is written to is a SIGBUS, the end.

    Raises:
      OSError: there is no room.
    """
    with open(array.filename, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
        except (AttributeError, OSError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            file.seek(array.offset)  # a system that does not know the call: what is written has its room
            for start in range(0, array.nbytes, _BLOCK):
                file.write(bytes(min(_BLOCK, array.nbytes - start)))


def _open(folder: pathlib.Path) -> CachedSplit | None:
    """What a folder holds, or None where that is not what was written."""
    try:
        if json.loads((folder / _HEADER).read_text(encoding="utf-8")) != _sums(folder):
            return None
        # Only now, for numpy fails in many ways on a file that is not its own.
        return from_arrays(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS})
    except (OSError, ValueError):  # absent, no JSON
        return None


def _sums(folder: pathlib.Path) -> dict[str, str]:
    """sha256 of each file of arrays."""
    return {name: sum_of_file(folder / f"{name}.npy") for name in _ARRAYS}
