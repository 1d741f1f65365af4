"""What to do where a disk is full: end, or wait until somebody has made room."""

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
    """Carries out what writes into a run folder; a full disk ends the run, or is waited for.

    Args:
      folder: the run's, for the message.
      waits: whether to wait for room rather than to end (`--on-disk-full wait`).
      stop: ends the waiting too.
    """

    def __init__(self, folder: pathlib.Path, waits: bool, stop: Stop):
        self._folder, self.waits, self._stop = folder, waits, stop

    def __call__(self, write: Callable[[], T]) -> T:
        """Calls `write`, which leaves nothing half done where it fails, until there is room for it.

        Raises:
          DiskFull: there is no room, and nobody wants to wait (any longer).
          DiskFailed: the disk refuses otherwise.
        """
        told = False
        while True:
            try:
                done = write()
            except (OSError, DiskFailed) as error:
                full = _as_ending(error, self._folder)
                if not self.waits or self._stop.requested() or not isinstance(full, DiskFull):
                    raise full from error
                if not told:
                    logger.info(f"{full}; waiting for room, as --on-disk-full wait says")
                told = True
                time.sleep(_SECONDS)
            else:
                if told:
                    logger.info("there is room again: going on")
                return done


def _as_ending(error: Exception, folder: pathlib.Path) -> DiskFailed:
    if isinstance(error, DiskFailed):
        return error
    if is_disk_full(error):
        return DiskFull(f"no room on the disk of {folder}: {error}")
    return DiskFailed(f"cannot write to {folder}: {error}")
