"""Endings of a command that are neither success nor the user's mistake, each with its exit code.

0 done; 2 usage or data (`errors.UserError`); 3 no usable checkpoint; 4 disk; 5 run folder in use; 6 not finite; 7 out
of memory; 8 a host lost; 130 Ctrl-C; 143 SIGTERM.
"""

import errno
import os
import re
from collections.abc import Iterator

import jax


class Ending(Exception):
    """A command ends early: the message says why, in one line, and what to do; commands print it and exit so.

    Attributes:
      exit_code: of the command.
      short: why, in two or three words, as for a picture.
    """

    exit_code, short = 1, "ended"


class NoCheckpoint(Ending):
    """A run has no checkpoint left that verifies; it is never begun anew in silence."""

    exit_code, short = 3, "no checkpoint"


class DiskFailed(Ending):
    """What was to be written could not be."""

    exit_code, short = 4, "disk failed"


class DiskFull(DiskFailed):
    """What was to be written found no room."""

    short = "disk full"


class RunInUse(Ending):
    """Another process trains in this run folder."""

    exit_code, short = 5, "run in use"


class NotFinite(Ending):
    """The loss, the gradients or BatchNorm's statistics held NaN or infinity."""

    exit_code, short = 6, "not finite"


class OutOfMemory(Ending):
    """A device or the host had not the memory that was asked for."""

    exit_code, short = 7, "out of memory"


class HostLost(Ending):
    """A process of a training over several hosts has gone or is stuck."""

    exit_code, short = 8, "host lost"


class Stopped(Ending):
    """Somebody asked to stop.

    Attributes:
      exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    short = "stopped"

    def __init__(self, exit_code: int, message: str = ""):
        super().__init__(message or f"stopped by {'Ctrl-C' if exit_code == 130 else 'SIGTERM'}")
        self.exit_code = exit_code


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk or a quota is full.

    TensorStore, which writes the arrays, tells it in words alone.
    """
    return any(
        isinstance(each, DiskFull)
        or getattr(each, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        or any(words in str(each) for words in ("No space left on device", "Disk quota exceeded"))
        for each in _with_causes(error)
    )


def disk_refusal(error: BaseException) -> str:
    """In which words a disk refused, if that is what an error or one that it came from says; else empty.

    TensorStore raises ValueError, with the system's number for it in its words.
    """
    for each in _with_causes(error):
        if isinstance(each, OSError):
            return each.strerror or str(each)
        if number := re.search(r"os_error_code='?(\d+)", str(each)):
            return os.strerror(int(number[1]))
    return ""


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from, one after another."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the host has no memory left."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError)
        and any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory"))
    )
