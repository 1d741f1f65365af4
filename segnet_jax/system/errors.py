"""Errors that end a command without a traceback.

Exit codes: 0 success; 2 usage or data (`UserError`); 3 no usable checkpoint; 4 disk; 5 run folder in use; 6 not finite;
7 out of memory; 8 a host lost; 130 Ctrl-C; 143 SIGTERM.
"""

import errno
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

USAGE = "usage"
"""Kind of a fault that is not in a file, such as a wrong flag or folder name."""


@dataclass(frozen=True)
class Fault:
    """One fault in the user's input.

    Attributes:
      kind: short, stable identifier for scripts, such as "label-out-of-range".
      file: the faulty file, as messages name it; empty if there is none.
      what: the message: what is wrong and why it matters, naming the file.
      fix: how to fix it; may be empty. A fix that begins with -- consists of flags only, to append to the command, and
        is given only if it is the only fix.
      choices: if several interpretations of a folder are possible, the flags of each; the user has to choose.
    """

    kind: str
    file: str
    what: str
    fix: str = ""
    choices: tuple[str, ...] = ()


class UserError(Exception):
    """An error in the user's input: the message says what is wrong, what was given and what to do.

    Commands print it without a traceback and exit with code 2. Bugs raise ordinary exceptions.

    Args:
      what: the message; joined to one line.
      kind: see `Fault`; kinds other than USAGE are appended in brackets.
      file: see `Fault`.
      fix: see `Fault`; appended as "fix: ...".

    Attributes:
      faults: the faults as data.
    """

    def __init__(self, what: str, *, kind: str = USAGE, file: str = "", fix: str = ""):
        fault = Fault(kind, file, shown(" ".join(line.strip() for line in what.splitlines())), fix)
        self.faults: tuple[Fault, ...] = (fault,)
        super().__init__(_line(self.faults))

    @property
    def kind(self) -> str:
        """Kind of the first fault."""
        return self.faults[0].kind

    @property
    def file(self) -> str:
        """File of the first fault."""
        return self.faults[0].file


class UserErrors(UserError):
    """All faults of a folder or archive; the message has a line per kind, with the first five faults and a count.

    Args:
      where: the folder or archive.
      faults: at least one; of duplicates, which may differ in their fix, the first is used.
    """

    def __init__(self, where: object, faults: Iterable[Fault]):
        unique: dict[tuple[str, str, str], Fault] = {}
        for fault in faults:  # checks that see more of the data run first, and may know a better fix
            unique.setdefault((fault.kind, fault.file, fault.what), fault)
        self.faults = tuple(unique.values())
        kinds: dict[str, list[Fault]] = {}
        for fault in self.faults:
            kinds.setdefault(fault.kind, []).append(fault)
        lines = (
            f"{len(alike)} fault{'s' * (len(alike) > 1)} in {shown(str(where))}: {shown(_line(alike))}"
            for alike in kinds.values()
        )
        Exception.__init__(self, "\n".join(lines))


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first five items and the number of other ones, for a message."""
    more = [f"and {len(items) - 5} more"] if len(items) > 5 else []
    return separator.join([*items[:5], *more])


def shown(text: str) -> str:
    """Escape unprintable characters, such as a newline in a file name."""
    return "".join(
        each if each.isprintable() or unicodedata.category(each) == "Zs" else repr(each)[1:-1] for each in text
    )


def printable(text: object) -> str:
    """Escape unprintable characters except line breaks."""
    return "\n".join(map(shown, str(text).split("\n")))


def _line(alike: Sequence[Fault]) -> str:
    """Format faults of one kind in one line, with the fix and the kind."""
    first = alike[0]
    fix = f"; fix: {_fix(alike)}" if first.fix else ""
    kind = f" [{first.kind}]" if first.kind != USAGE else ""
    return shown(listed([fault.what for fault in alike], "; ") + fix) + kind


def _fix(alike: Sequence[Fault]) -> str:
    """Return the fix of faults of one kind: the first one's, or all of them combined if they are `--map` flags."""
    fixes = list(dict.fromkeys(fault.fix for fault in alike))
    if all(fix.startswith("--map ") for fix in fixes):
        changes = (change for fix in fixes for change in fix.split() if change != "--map")
        return " ".join(f"--map {change}" for change in dict.fromkeys(changes))
    return fixes[0]


class ExitError(Exception):
    """Raised to end a command early; its one-line message says why and what to do.

    Attributes:
      exit_code: exit code of the command.
      short: the reason in two or three words, for figures.
    """

    exit_code, short = 1, "ended"


class NoCheckpoint(ExitError):
    """Raised if a run has no valid checkpoint; it is not silently restarted."""

    exit_code, short = 3, "no checkpoint"


class DiskFailed(ExitError):
    """Raised if writing to a disk failed."""

    exit_code, short = 4, "disk failed"


class DiskFull(DiskFailed):
    """Raised if writing failed because the disk is full."""

    short = "disk full"


class RunInUse(ExitError):
    """Raised if another process trains in this run folder."""

    exit_code, short = 5, "run in use"


class NotFinite(ExitError):
    """Raised if the loss, the gradients or the batch statistics contain NaN or infinity."""

    exit_code, short = 6, "not finite"


class OutOfMemory(ExitError):
    """Raised if a device or the host ran out of memory."""

    exit_code, short = 7, "out of memory"


class HostLost(ExitError):
    """Raised if a process of a multi-host training run died or hangs."""

    exit_code, short = 8, "host lost"


class Stopped(ExitError):
    """Raised if the user or the system requested a stop.

    Attributes:
      exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    short = "stopped"

    def __init__(self, exit_code: int, message: str = ""):
        super().__init__(message or f"stopped by {'Ctrl-C' if exit_code == 130 else 'SIGTERM'}")
        self.exit_code = exit_code


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, means that a disk or a quota is full.

    TensorStore, which writes the arrays, reports it in the message only.
    """
    return any(
        isinstance(each, DiskFull)
        or getattr(each, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        or any(words in str(each) for words in ("No space left on device", "Disk quota exceeded"))
        for each in _with_causes(error)
    )


def disk_refusal(error: BaseException) -> str:
    """Return the system's message for a disk error, from an error or one of its causes; "" if it is not one.

    TensorStore raises ValueError, with the errno in its message.
    """
    for each in _with_causes(error):
        if isinstance(each, OSError):
            return each.strerror or str(each)
        if number := re.search(r"os_error_code='?(\d+)", str(each)):
            return os.strerror(int(number[1]))
    return ""


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or the host is out of memory."""
    import jax  # slow to import, and not needed by commands that compute nothing

    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError)
        and any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory"))
    )
