"""Build a config from defaults, protocol, config file and flags; later ones override earlier ones."""

import argparse
import contextlib
import dataclasses
import io
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from segnet_jax.config.command_line_checks import check_spelling, with_unions_last
from segnet_jax.config.fields import Config
from segnet_jax.config.files import is_run, protocol_summaries, read_config, read_protocol, read_run, read_run_in
from segnet_jax.config.flag_specs import CONFIG_FLAG, Flag, flags_of, with_own
from segnet_jax.config.help import help_text
from segnet_jax.system import logs
from segnet_jax.system.bucket_address import remember_named
from segnet_jax.system.command_name import as_called
from segnet_jax.system.errors import UserError
from segnet_jax.system.flag_names import option_of

T = TypeVar("T")

_HELP = ("-h", "--help", "--help-all")


def parse_config(
    args: Sequence[str],
    *,
    prog: str,
    description: str,
    defaults: Callable[[str, str | None], Config] = lambda data, init: Config(),
    own: Sequence[Flag] = (),
) -> Config:
    """Read the training config from command-line arguments; with `--resume`, the run's config replaces the defaults.

    Args:
      args: the arguments.
      prog: module of the command, for messages.
      description: description of the command, for `--help`.
      defaults: maps the values of `--data` and `--init`, None if absent, to the defaults; called only if the arguments
        name neither a protocol, a config file nor a run to resume.
      own: the command's other flags, already taken from `args`, for `--help`.

    Raises:
      UserError: If the flags, or the files they name, are invalid.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--protocol", default="")
    first.add_argument("--config", default="")
    try:
        base, flags = first.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    flags = _take_verbosity(flags)
    remember_named(flags)  # before `defaults`, which may read them
    given = _peek(flags)
    run = given.run if given.resume else ""
    if run and given.folds and not given.fold and not is_run(pathlib.Path(run)):  # a cross-validation folder
        config = dataclasses.replace(read_run_in(run, "fold-1"), fold=0)
    else:
        config = read_run(run) if run else Config()
    if not (run or base.protocol or base.config or set(_HELP) & set(flags)):
        config = defaults(given.data or config.data, given.init)
    if base.protocol:
        config = read_protocol(base.protocol, config)
    if base.config:
        config = read_config(pathlib.Path(base.config), config)
        if base.protocol not in ("", config.protocol):
            raise UserError(
                f"--protocol {base.protocol} contradicts {base.config}, which sets protocol "
                f'"{config.protocol}": use only one of them'
            )
    if given.epochs and not given.steps:  # explicit epochs take precedence over a protocol's steps
        config = dataclasses.replace(config, steps=0)
    own = (CONFIG_FLAG, *own)
    parsed = parse_flags(Config, flags, default=config, prog=prog, description=description, own=own)
    _check_implied(parsed, given)
    return parsed


def _check_implied(config: Config, given: argparse.Namespace) -> None:
    """Raise UserError if a flag on the command line contradicts what `--swa-epochs` implies."""
    for name in ("batch_norm", "result_checkpoint"):
        value, implied = getattr(given, name), getattr(config, name)
        if config.swa_epochs and value not in (None, implied):
            option = option_of(name)
            raise UserError(
                f"--swa-epochs {config.swa_epochs} implies {option} {implied}, got {option} {value}: remove one of them"
            )


def _peek(flags: Sequence[str]) -> argparse.Namespace:
    """Parse only the flags that determine the defaults; absent ones are None."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("run", "data", "init", "epochs", "steps", "folds", "fold", "batch-norm", "result-checkpoint"):
        parser.add_argument(f"--{name}", nargs="?")
    parser.add_argument("--resume", action="store_true")
    return parser.parse_known_args(flags)[0]


def parse_flags(
    kind: type[T],
    args: Sequence[str],
    *,
    default: T | None = None,
    prog: str,
    description: str,
    own: Sequence[Flag] = (),
) -> T:
    """Parse flags into a dataclass with tyro; `--help` and `--help-all` print the help and exit.

    Args:
      kind: the dataclass.
      args: the arguments.
      default: instance with the default values; None: the class defaults.
      prog: module of the command, for messages.
      description: description of the command, for `--help`.
      own: the command's flags that are not fields of the dataclass, for `--help`.

    Raises:
      UserError: If a flag is unknown or has an invalid value; the message is one line.
    """
    import tyro

    args = _take_verbosity(args)
    remember_named(args)
    called = f"python -m {prog}"
    flags = with_own(flags_of(kind, default), own)
    if set(_HELP) & set(args):
        summaries = protocol_summaries() if kind is Config else ()
        print(help_text(called, description, flags, summaries, show_all="--help-all" in args))
        raise SystemExit(0)
    check_spelling(args, flags, as_called(called))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            return tyro.cli(kind, args=with_unions_last(args, flags), prog=called, default=default, add_help=False)
    except SystemExit:
        raise UserError(f"{_message(printed.getvalue())} (see {as_called(f'{called} --help')})") from None


def _take_verbosity(args: Sequence[str]) -> list[str]:
    """Set the console's verbosity by `-q` and `-v`, which are not config fields; return the other flags."""
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
    """Return the message of tyro's error box as one line. Horizontal rules separate its title, message and hints."""
    parts = [[]]
    for line in map(str.strip, box.splitlines()):
        if line and not line.strip("-"):
            parts.append([])
        else:
            parts[-1].append(line)
    return " ".join(parts[1]).removesuffix(".")
