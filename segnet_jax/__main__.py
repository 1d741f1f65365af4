"""The console script `segnet`, also `python -m segnet_jax`: import and run a command."""

import importlib.util
import shutil
import sys
import textwrap
from collections.abc import Sequence

from segnet_jax import __version__
from segnet_jax.system.command_name import PACKAGE, SCRIPT
from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError
from segnet_jax.system.system_limits import leave_if_too_low

COMMANDS = {  # module with a `main` -> summary
    "train": "train SegNet; writes a run folder with checkpoints, metrics and figures",
    "sweep": "train the runs described in a file one by one, and compare them in a table",
    "evaluate": "score a run on a split",
    "predict": "segment images, folders, videos and camera frames",
    "export": "export a run's network to StableHLO, ONNX, safetensors or SavedModel",
    "report": "write a run's report, or compare runs",
    "doctor": "check a dataset folder and suggest fixes",
    "check": "dry-run training, and estimate its memory and time",
    "prepare": "download and prepare CamVid and pretrained weights",
    "convert": "convert a SegNet trained with Caffe into a run",
    "benchmark": "measure throughput",
    "portability": "lower the steps for other platforms, compare machines",
}
COMPLETION = "completion"
SHELLS = ("bash", "zsh")
FIRST_STEPS = (
    ("train --protocol demo", "try it: two minutes on a CPU, no download"),
    ("doctor FOLDER", "check your own images, and print the command to train on them"),
    ("predict RUN FOLDER", "use a trained network"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command named by the first argument and exit with its exit code."""
    leave_if_too_low()
    called = PACKAGE if sys.argv[0].replace("\\", "/").endswith("segnet_jax/__main__.py") else SCRIPT
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "--help-all", "help"):
        print(overview(called))
    elif name == "--version":
        print(f"segnet_jax {__version__}")
    elif name in commands():
        _run(importlib.import_module(f"segnet_jax.{name}").main, [f"{called} {name}", *rest])
    elif name == COMPLETION:
        _complete(rest)
    else:
        _leave(unknown(name, called))


def commands() -> dict[str, str]:
    """Return name -> description of the installed commands."""
    return {name: summary for name, summary in COMMANDS.items() if importlib.util.find_spec(f"segnet_jax.{name}")}


def overview(called: str = SCRIPT, width: int | None = None) -> str:
    """Return the text of `segnet --help`: the first steps, and each command with a summary.

    Args:
      called: "segnet" or "python -m segnet_jax".
      width: number of columns; None means the terminal width, but at most 100.
    """
    width = width or max(40, min(100, shutil.get_terminal_size().columns))
    summaries = commands() | {COMPLETION: f"print the completion script for a shell: {' or '.join(SHELLS)}"}
    lines = [f"usage: {called} COMMAND [flags]", "", "first steps:"]
    lines += _rows([(f"{called} {words}", text) for words, text in FIRST_STEPS], width)
    lines += ["", "commands:", *_rows(list(summaries.items()), width), ""]
    lines += textwrap.wrap(f"{called} COMMAND --help shows a command's flags, {called} --version the version.", width)
    return "\n".join(lines)


def _rows(rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Format two columns, or each text below its left side if the left column exceeds half the width."""
    column = max(len(left) for left, _ in rows) + 4
    if column > width / 2:
        return [line for left, right in rows for line in (f"  {left}", *_wrapped(right, width, "      ", "      "))]
    return [line for left, right in rows for line in _wrapped(right, width, " " * column, f"  {left}".ljust(column))]


def _wrapped(text: str, width: int, indent: str, first: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def unknown(name: str, called: str = SCRIPT) -> UserError:
    """Return the error for an unknown command, with the nearest known one."""
    rest = nearest_hint(name, [*commands(), COMPLETION]) or f"; commands: {', '.join(commands())}"
    if name.startswith("-"):
        rest = f"; flags follow the command: {called} train {name}"
    return UserError(f"unknown command {name!r}{rest} (see {called} --help)")


def _complete(rest: Sequence[str]) -> None:
    if len(rest) != 1 or rest[0] not in SHELLS:
        _leave(UserError(f"segnet {COMPLETION} takes one argument, the shell: {' or '.join(SHELLS)}"))
    from segnet_jax.config.completion import script

    _run(lambda: print(script(rest[0], tuple(commands()))), ["segnet", COMPLETION])


def _run(command, argv: list[str]) -> None:
    from segnet_jax.system.command import run_command  # imports JAX

    sys.argv = argv
    run_command(command)


def _leave(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
