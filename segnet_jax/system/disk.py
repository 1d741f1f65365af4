"""Retry writes on a full disk: stop, or wait until space is freed."""

import logging
import pathlib
import time
from collections.abc import Callable
from typing import TypeVar

from segnet_jax.system.errors import DiskFailed, DiskFull, is_disk_full
from segnet_jax.system.signals import Stop

logger = logging.getLogger(__name__)

T = TypeVar("T")
_SECONDS = 1.0  # between two attempts


class DiskRetry:
    """Calls functions that write into a run folder; on a full disk, raises an error or retries.

    Args:
      folder: run folder, for messages.
      waits: whether to retry until there is space (`--on-disk-full wait`).
      stop: signal handler whose stop request ends the waiting.
    """

    def __init__(self, folder: pathlib.Path, waits: bool, stop: Stop):
        self._folder, self.waits, self._stop = folder, waits, stop

    def __call__(self, write: Callable[[], T]) -> T:
        """Call `write`, which must be atomic, and retry it while the disk is full.

        Raises:
          DiskFull: If the disk is full, and waiting is off or was stopped.
          DiskFailed: If writing failed for another reason.
        """
        logged = False
        while True:
            try:
                done = write()
            except (OSError, DiskFailed) as error:
                full = _exit_error(error, self._folder)
                if not self.waits or self._stop.requested() or not isinstance(full, DiskFull):
                    raise full from error
                if not logged:
                    logger.info(f"{full}; waiting for free space (--on-disk-full wait)")
                logged = True
                time.sleep(_SECONDS)
            else:
                if logged:
                    logger.info("disk space is available again: resuming")
                return done


def _exit_error(error: Exception, folder: pathlib.Path) -> DiskFailed:
    if isinstance(error, DiskFailed):
        return error
    if is_disk_full(error):
        return DiskFull(f"no space left on the disk of {folder}: {error}")
    return DiskFailed(f"cannot write to {folder}: {error}")


def format_bytes(num_bytes: int) -> str:
    """Format 1386000000 as "1.39 GB", and less than a gigabyte as "56 MB"."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
