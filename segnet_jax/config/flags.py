"""From the command line to a config: defaults, protocol, config file and flags on top of one another."""

import argparse
import contextlib
import io
import logging
import pathlib
import re
from collections.abc import Sequence
from typing import TypeVar

from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_config, read_protocol, read_run
from segnet_jax.system import logs
from segnet_jax.system.errors import UserError

T = TypeVar("T")

_VERBOSITY = """-q, --quiet: print only warnings and errors.  -v, --verbose: print more, with times."""


def parse_config(args: Sequence[str], *, prog: str, description: str) -> Config:
    """Reads a training's config from flags.

    With `--resume` the resumed run's config takes the place of the defaults.

    Raises:
      UserError: for whatever is wrong in the flags or the files that they name.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--protocol", default="")
    first.add_argument("--config", default="")
    try:
        base, flags = first.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    run = _resumed_run(flags)
    config = read_run(run) if run else Config()
    if base.protocol:
        config = read_protocol(base.protocol, config)
    if base.config:
        config = read_config(pathlib.Path(base.config), config)
        if base.protocol not in ("", config.protocol):
            of = config.protocol or "none"
            raise UserError(f"--protocol {base.protocol}, but {base.config} is of protocol {of}: leave one away")
    return parse_flags(Config, flags, default=config, prog=prog, description=description)


def _resumed_run(flags: Sequence[str]) -> str:
    """The run that is to be resumed, or nothing."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--run", nargs="?", default="")
    first.add_argument("--resume", action="store_true")
    found, _ = first.parse_known_args(flags)
    return found.run if found.resume and found.run else ""


def parse_flags(kind: type[T], args: Sequence[str], *, default: T | None = None, prog: str, description: str) -> T:
    """Reads flags into a dataclass with tyro; `--help` prints and leaves.

    Raises:
      UserError: for a flag that is unknown or has a wrong value, in one line.
    """
    import tyro

    args = _take_verbosity(args)
    description = f"{description}\n\n{_VERBOSITY}"
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            return tyro.cli(kind, args=list(args), prog=f"python -m {prog}", description=description, default=default)
    except SystemExit as exit_:
        if not exit_.code:  # --help
            print(printed.getvalue(), end="")
            raise
        raise UserError(f"{_message(printed.getvalue())} (see python -m {prog} --help)") from None


def _take_verbosity(args: Sequence[str]) -> list[str]:
    """Set how much the console shows by `-q` and `-v`, which are not part of any config; return the other flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    level = first.add_mutually_exclusive_group()
    level.add_argument("-q", "--quiet", action="store_const", dest="level", const=logging.WARNING)
    level.add_argument("-v", "--verbose", action="store_const", dest="level", const=logging.DEBUG)
    try:
        found, others = first.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if found.level is not None:
        logs.configure(found.level)
    return others


def _message(box: str) -> str:
    """What tyro's error box says, as one line. Its parts, title, message and hints, stand between rules."""
    parts = [[]]
    for line in map(str.strip, box.splitlines()):
        if line and not line.strip("-"):
            parts.append([])
        else:
            parts[-1].append(line)
    _, message, *hints = [" ".join(part) for part in parts]
    nearest = re.search(r"Perhaps you meant: (--[\w-]+)", " ".join(hints))
    return message + (f"; nearest: {nearest[1]}" if nearest else "")
