"""Check the flags of a command line before they are parsed: their names, and the number and kind of their values."""

import itertools
import re
from collections.abc import Iterator, Sequence

from segnet_jax.config.flag_hints import suggestion
from segnet_jax.config.flag_specs import Flag
from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError

_FLAG = re.compile(r"--?[A-Za-z][\w-]*")
_WORDS_OR_NUMBERS = re.compile(r"\{([\w,-]+)\} \| (.+)")  # a metavar
_SIZE = re.compile(r"(\d+)\s*[xX*,×]\s*(\d+)")


def check_spelling(args: Sequence[str], flags: Sequence[Flag], command: str) -> None:
    """Check arguments against the flags of a command.

    Args:
      args: the arguments.
      flags: the flags and positional arguments of the command.
      command: the command, for messages.

    Raises:
      UserError: If a flag is unknown, is missing, or has too few values or a value of the wrong kind; or if there are
        too few or too many other arguments.
    """
    options = {flag.option: flag for flag in flags if not flag.is_positional}
    known = {*options, *(flag.option.replace("--", "--no-", 1) for flag in options.values() if flag.is_switch)}
    words: list[str] = []  # arguments that belong to no flag
    given, is_greedy = set(), False
    for option, values in _split(args):
        name, equals, value = option.partition("=")
        name, values = name.replace("_", "-"), [value, *values] if equals else values
        if name and name not in known:
            hint = suggestion(name, known)
            raise UserError(f"unknown flag {name}" + (f"; {hint}" if hint else "") + f" (see {command} --help-all)")
        given.add(name)
        flag = options.get(name)
        if flag is None or flag.is_switch:
            words += values
        elif flag.arity is None:
            is_greedy = True  # the parser decides how many words it takes
            _check_values(flag, values)
        else:
            _check_values(flag, values[: flag.arity])
            words += values[flag.arity :]
    for flag in options.values():
        if flag.is_required and flag.option not in given:
            raise UserError(f"{flag.option} {flag.metavar} is missing: {flag.help} (see {command} --help)")
    if not is_greedy:
        _check_words(words, flags, command)


def with_unions_last(args: Sequence[str], flags: Sequence[Flag]) -> list[str]:
    """Move each flag that takes a word or numbers to the end, so that the parser takes no later words as its values.

    Args:
      args: the arguments, after `check_spelling`.
      flags: the flags of the command.
    """
    unions = {flag.option: flag for flag in flags if _WORDS_OR_NUMBERS.fullmatch(flag.metavar)}
    first, last = [], []
    for option, values in _split(args):
        name, equals, value = option.partition("=")
        if name in unions:
            values = [value, *values] if equals else values
            count = _union_values(unions[name], values)
            last += [name, *values[:count]]
            first += values[count:]
        else:
            first += [option, *values] if option else values
    return first + last


def _union_values(flag: Flag, values: Sequence[str]) -> int:
    """Return how many words after a flag are its values: 1 for a choice, or the count of its numbers; 0 if neither."""
    union = _WORDS_OR_NUMBERS.fullmatch(flag.metavar)
    if values and values[0] in union[1].split(","):
        return 1
    count = len(union[2].split())
    return count if len(values) >= count and all(_is_number(each, int) for each in values[:count]) else 0


def _split(args: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each flag with the words up to the next one; "" for the words before the first."""
    option, values = "", []
    for arg in args:
        if _FLAG.fullmatch(arg.partition("=")[0]):
            yield option, values
            option, values = arg, []
        else:
            values.append(arg)
    yield option, values


def _check_values(flag: Flag, values: Sequence[str]) -> None:
    """Raise UserError if a flag has too few values, or one of the wrong kind."""
    if flag.arity == 2 and len(values) == 1 and (size := _SIZE.fullmatch(values[0])):
        first, second = flag.metavar.lower().split()
        raise UserError(
            f"{flag.option} takes {flag.metavar} as two numbers, got {values[0]}; for {first} {size[1]} and {second} "
            f"{size[2]} write {flag.option} {size[1]} {size[2]}"
        )
    if flag.arity is not None and len(values) < flag.arity:
        expected = f"{flag.arity} values, {flag.metavar}" if flag.arity > 1 else f"a value, {_meaning(flag)}"
        raise UserError(f"{flag.option} needs {expected}, got {' '.join(values) or 'none'}")
    if values and (union := _WORDS_OR_NUMBERS.fullmatch(flag.metavar)) and not _union_values(flag, values):
        words = union[1].split(",")
        given = [values[0], *itertools.takewhile(lambda each: _is_number(each, int), values[1:2])]
        hint = nearest_hint(values[0], words)
        raise UserError(f"{flag.option} must be {', '.join(words)} or {union[2]}, got {' '.join(given)}{hint}")
    for value in values:
        if flag.choices and value not in flag.choices:
            hint = nearest_hint(value, flag.choices)
            raise UserError(f"{flag.option} must be one of {', '.join(flag.choices)}, got {value}{hint}")
        if flag.number and not _is_number(value, flag.number):
            kind = "a whole number" if flag.number is int else "a number"
            raise UserError(f"{flag.option} must be {kind}, got {value}")


def _meaning(flag: Flag) -> str:
    if flag.choices:
        return f"one of {', '.join(flag.choices)}"
    return {int: "a whole number", float: "a number"}.get(flag.number) or flag.metavar


def _is_number(value: str, kind: type) -> bool:
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _check_words(words: Sequence[str], flags: Sequence[Flag], command: str) -> None:
    """Raise UserError if there are too few or too many arguments that belong to no flag."""
    positional = [flag for flag in flags if flag.is_positional]
    required = [flag for flag in positional if flag.is_required]
    if len(words) < len(required):
        missing = required[len(words)]
        raise UserError(f"{missing.metavar.removesuffix(' ...')} is missing: {missing.help} (see {command} --help)")
    if len(words) > len(positional) and all(flag.arity is not None for flag in positional):
        raise UserError(f"unexpected argument {words[len(positional)]!r} (see {command} --help)")
