"""The help of a command: its usage, examples, flags by section, and protocols, fitted to the terminal's width."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from segnet_jax.config.flag_specs import Flag
from segnet_jax.system.command_name import as_called

MAX_WIDTH = 100
_GENERAL = (
    ("-h, --help", "show this help"),
    ("--help-all", "show all flags"),
    ("-q, --quiet", "print only warnings and errors"),
    ("-v, --verbose", "print more, with times"),
)


def help_text(
    prog: str,
    description: str,
    flags: Sequence[Flag],
    protocols: Sequence[tuple[str, str]] = (),
    *,
    show_all: bool = False,
    width: int | None = None,
) -> str:
    """Return the help of a command.

    Args:
      prog: the command as messages name it, such as "python -m segnet_jax.train".
      description: what the command does; paragraphs are separated by empty lines, and indented lines are commands.
      flags: its flags and positional arguments.
      protocols: name and summary of each protocol.
      show_all: whether to show all flags, or only the basic ones.
      width: number of columns; None means the terminal width, but at most `MAX_WIDTH`.
    """
    width = width or max(40, min(MAX_WIDTH, shutil.get_terminal_size().columns))
    positional = [flag for flag in flags if flag.is_positional]
    options = [flag for flag in flags if not flag.is_positional]
    shown = [flag for flag in options if show_all or flag.is_basic]
    is_partial = len(shown) < len(options)
    sections = {"arguments": [(_positional(flag), _text(flag)) for flag in positional]} if positional else {}
    for flag in shown:
        sections.setdefault(flag.section, []).append((_invocation(flag), _text(flag)))
    sections["general"] = [row for row in _GENERAL if row[0] != "--help-all" or is_partial or show_all]
    required = [_invocation(flag) for flag in options if flag.is_required]
    words = [prog, *(_positional(flag) for flag in positional), *required, "[flags]"]
    parts = [_command(as_called(" ".join(words)), width, indent="", first="usage: ")]
    parts += list(_paragraphs(description, width))
    column = _column([left for rows in sections.values() for left, _ in rows], width)
    parts += [_section(title, rows, column, width) for title, rows in sections.items()]
    if protocols:
        column = _column([name for name, _ in protocols], width)
        parts.append(_section("protocols, for --protocol", protocols, column, width))
    if is_partial:
        command = as_called(f"{prog} --help-all")
        parts.append(_fill(f"These are {len(shown)} of {len(options)} flags; {command} shows all.", width))
    return "\n\n".join(parts)


def default_text(value: Any) -> str:
    """Return a default value as it would be written on the command line; "" if it need not be shown."""
    if value is None or value is False or value in ("", ()):
        return ""
    if value is True:
        return "on"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(default_text, value)) if isinstance(value, tuple | list) else str(value)


def _positional(flag: Flag) -> str:
    return flag.metavar if flag.is_required else f"[{flag.metavar}]"


def _invocation(flag: Flag) -> str:
    """Return how a flag is written, such as "--epochs N" or "--[no-]flip"."""
    if flag.is_switch:
        return flag.option.replace("--", "--[no-]", 1) if flag.default else flag.option
    return f"{flag.option} {flag.metavar}"


def _text(flag: Flag) -> str:
    """Return a flag's help text, with its default unless the text already states it."""
    default = "" if "default:" in flag.help else default_text(flag.default)
    return f"{flag.help} (default: {default})" if default else flag.help


def _paragraphs(description: str, width: int) -> Iterator[str]:
    for paragraph in as_called(description).strip().split("\n\n"):
        lines = paragraph.splitlines()
        text = [line for line in lines if not line.startswith(" ")]
        commands = [line for line in lines if line.startswith(" ")]
        filled = [_fill(" ".join(text), width)] if text else []
        yield "\n".join([*filled, *(_command(line.strip(), width) for line in commands)])


def _fill(text: str, width: int, indent: str = "", first: str | None = None) -> str:
    start = indent if first is None else first
    return textwrap.fill(
        text, width, initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _command(command: str, width: int, indent: str = "  ", first: str = "") -> str:
    """Wrap a long command with backslashes, without separating a flag from its values."""
    chunks: list[str] = []
    for word in command.split(" "):
        if chunks and not word.startswith(("-", "[")):
            chunks[-1] += f" {word}"
        else:
            chunks.append(word)
    lines = [f"{indent}{first}{chunks[0]}"]
    for chunk in chunks[1:]:
        if len(lines[-1]) + 1 + len(chunk) > width - 2:
            lines[-1] += " \\"
            lines.append(f"{indent}    {chunk}")
        else:
            lines[-1] += f" {chunk}"
    return "\n".join(lines)


def _column(lefts: Sequence[str], width: int) -> int:
    """Return the start of the right column: after the longest left side, within a limit."""
    return min(max(map(len, lefts)) + 4, 26 if width >= 80 else 21)


def _section(title: str, rows: Sequence[tuple[str, str]], column: int, width: int) -> str:
    """Format a heading and two columns; a left side too long for its column gets separate lines."""
    lines = [f"{title}:"]
    for left, right in rows:
        first = f"  {left}"
        if len(first) > column - 2:
            lines += _broken(first, width)
            first = ""
        lines.append(_fill(right, width, " " * column, first.ljust(column)))
    return "\n".join(lines)


def _broken(text: str, width: int) -> list[str]:
    """Break a flag that is too long after commas between its choices."""
    if len(text) <= width:
        return [text]
    filled = _fill(text.strip().replace(",", ", "), width, "      ", "  ")
    return filled.replace(", ", ",").split("\n")
