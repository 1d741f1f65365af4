"""The console script `segnet`, and `python -m segnet_jax`: each command by its name, imported when that is known."""

import difflib
import importlib.util
import sys
from collections.abc import Sequence

from segnet_jax import __version__
from segnet_jax.system.errors import UserError

COMMANDS = {  # each a module of this name with a `main`
    "train": "train SegNet; leaves a run folder with checkpoints, scores and pictures",
    "evaluate": "score a run on a split",
    "predict": "label images, folders, videos and camera frames",
    "export": "write a run's network for use elsewhere",
    "report": "draw a run's report, or set runs side by side",
    "doctor": "find what is wrong with a data folder",
    "check": "try a training in short, and estimate its memory and time",
    "prepare": "download and prepare CamVid and first weights",
    "convert": "make a run of a SegNet that Caffe has trained",
    "benchmark": "measure speed",
    "portability": "lower the steps for other platforms, compare machines",
}
COMPLETION = "completion"
SHELLS = ("bash", "zsh")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the first word names, and leaves the process with its exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview())
    elif name == "--version":
        print(f"segnet_jax {__version__}")
    elif name in commands():
        _run(importlib.import_module(f"segnet_jax.{name}").main, [f"segnet {name}", *rest])
    elif name == COMPLETION:
        _complete(rest)
    else:
        _leave(unknown(name))


def commands() -> dict[str, str]:
    """The commands that are there, and what each does."""
    return {name: told for name, told in COMMANDS.items() if importlib.util.find_spec(f"segnet_jax.{name}")}


def overview() -> str:
    """The commands, a line for each."""
    told = commands() | {COMPLETION: f"print what teaches a shell these words: {' or '.join(SHELLS)}"}
    lines = (f"  {name:12}{does}" for name, does in told.items())
    return "\n".join(
        [
            "usage: segnet COMMAND ...        (the same as python -m segnet_jax.COMMAND ...)",
            "",
            *lines,
            "",
            "segnet COMMAND --help tells more. Try it:  segnet train --protocol demo",
        ]
    )


def unknown(name: str) -> UserError:
    """What to say of a word that is no command."""
    near = difflib.get_close_matches(name, [*commands(), COMPLETION], n=1)
    rest = f"; nearest: {near[0]}" if near else f"; commands: {', '.join(commands())}"
    return UserError(f"segnet has no command {name!r}{rest} (see segnet --help)")


def _complete(rest: Sequence[str]) -> None:
    if len(rest) != 1 or rest[0] not in SHELLS:
        _leave(UserError(f"segnet {COMPLETION} takes the name of a shell: {' or '.join(SHELLS)}"))
    from segnet_jax.config.completion import script

    _run(lambda: print(script(rest[0], tuple(commands()))), ["segnet", COMPLETION])


def _run(command, argv: list[str]) -> None:
    from segnet_jax.system.command import run_command  # it imports JAX

    sys.argv = argv
    run_command(command)


def _leave(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
