"""What ends a command early: the user's mistakes, told without a traceback, and other endings.

Each has its exit code: 0 done; 2 usage or data (`UserError`); 3 no usable checkpoint; 4 disk; 5 run folder in use;
6 not finite; 7 out of memory; 8 a host lost; 130 Ctrl-C; 143 SIGTERM.
"""

import errno
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

USAGE = "usage"
"""The kind of a mistake that lies in no file: a flag, a folder's name, what is not prepared yet."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
      kind: its short, stable name, such as "label-out-of-range", by which scripts can tell it.
      file: the file that is at fault, as messages call it; empty where it is none.
      what: what is wrong and why that is a fault, naming the file.
      fix: what to do about it; empty where `what` leaves no question. One that begins with -- is flags alone, to be
        pasted behind a command, and is printed only where it is the only one that fits.
      choices: where several readings of a folder fit, the flags of each; none of them is a fix before its owner has
        chosen.
    """

    kind: str
    file: str
    what: str
    fix: str = ""
    choices: tuple[str, ...] = ()


class UserError(Exception):
    """A mistake in what the user gave: the message says what is wrong, what was given and what to do.

    Every command prints it without a traceback and exits with code 2. Faults of our own stay ordinary exceptions.

    Args:
      what: the message; it comes to stand on one line.
      kind: as `Fault`; every kind but USAGE stands in brackets behind the message.
      file: as `Fault`.
      fix: as `Fault`; it stands behind the message, as "fix: ...".

    Attributes:
      faults: what is wrong, as data: one fault, or all those of `UserErrors`.
    """

    def __init__(self, what: str, *, kind: str = USAGE, file: str = "", fix: str = ""):
        fault = Fault(kind, file, shown(" ".join(line.strip() for line in what.splitlines())), fix)
        self.faults: tuple[Fault, ...] = (fault,)
        super().__init__(_line(self.faults))

    @property
    def kind(self) -> str:
        """The first fault's kind."""
        return self.faults[0].kind

    @property
    def file(self) -> str:
        """The first fault's file."""
        return self.faults[0].file


class UserErrors(UserError):
    """All that is wrong in one place: the message has a line for each kind, with the first five faults and a count.

    Args:
      where: the folder or archive.
      faults: at least one; what is told twice counts once, with the fix that was told first.
    """

    def __init__(self, where: object, faults: Iterable[Fault]):
        told: dict[tuple[str, str, str], Fault] = {}
        for fault in faults:  # whoever sees more of the data may know a better fix, and looks first
            told.setdefault((fault.kind, fault.file, fault.what), fault)
        self.faults = tuple(told.values())
        kinds: dict[str, list[Fault]] = {}
        for fault in self.faults:
            kinds.setdefault(fault.kind, []).append(fault)
        lines = (
            f"{len(alike)} fault{'s' * (len(alike) > 1)} in {shown(str(where))}: {shown(_line(alike))}"
            for alike in kinds.values()
        )
        Exception.__init__(self, "\n".join(lines))


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first five of many items and how many more there are, for a message."""
    more = [f"and {len(items) - 5} more"] if len(items) > 5 else []
    return separator.join([*items[:5], *more])


def shown(text: str) -> str:
    """The text as it is, but that what cannot be printed, such as a line's end in a file's name, is escaped."""
    return "".join(
        each if each.isprintable() or unicodedata.category(each) == "Zs" else repr(each)[1:-1] for each in text
    )


def printable(text: object) -> str:
    """Escape what cannot be printed, but keep the line breaks."""
    return "\n".join(map(shown, str(text).split("\n")))


def _line(alike: Sequence[Fault]) -> str:
    """What faults of one kind are, what to do about them, and the kind."""
    first = alike[0]
    fix = f"; fix: {_fix(alike)}" if first.fix else ""
    kind = f" [{first.kind}]" if first.kind != USAGE else ""
    return shown(listed([fault.what for fault in alike], "; ") + fix) + kind


def _fix(alike: Sequence[Fault]) -> str:
    """What to do about faults of one kind: the first one's fix, but all changes of values at once."""
    fixes = list(dict.fromkeys(fault.fix for fault in alike))
    if all(fix.startswith("--map ") for fix in fixes):
        changes = (change for fix in fixes for change in fix.split() if change != "--map")
        return " ".join(f"--map {change}" for change in dict.fromkeys(changes))
    return fixes[0]


class ExitError(Exception):
    """A command ends early: the message says why, in one line, and what to do; commands print it and exit so.

    Attributes:
      exit_code: of the command.
      short: why, in two or three words, as for a picture.
    """

    exit_code, short = 1, "ended"


class NoCheckpoint(ExitError):
    """A run has no checkpoint left that verifies; it is never begun anew in silence."""

    exit_code, short = 3, "no checkpoint"


class DiskFailed(ExitError):
    """What was to be written could not be."""

    exit_code, short = 4, "disk failed"


class DiskFull(DiskFailed):
    """What was to be written found no room."""

    short = "disk full"


class RunInUse(ExitError):
    """Another process trains in this run folder."""

    exit_code, short = 5, "run in use"


class NotFinite(ExitError):
    """The loss, the gradients or BatchNorm's statistics held NaN or infinity."""

    exit_code, short = 6, "not finite"


class OutOfMemory(ExitError):
    """A device or the host had not the memory that was asked for."""

    exit_code, short = 7, "out of memory"


class HostLost(ExitError):
    """A process of a training over several hosts has gone or is stuck."""

    exit_code, short = 8, "host lost"


class Stopped(ExitError):
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
    import jax  # takes a second, and commands that compute nothing report errors too

    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError)
        and any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory"))
    )
