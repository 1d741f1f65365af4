"""The console script `segnet`, same as `python -m segnet_jax`: imports and runs the named command."""

import difflib
import importlib.util
import sys
from collections.abc import Sequence

from segnet_jax import __version__
from segnet_jax.system.errors import UserError
from segnet_jax.system.limits import leave_if_too_low

COMMANDS = {  # each is a module of this name with a `main`
    "train": "train SegNet; writes a run folder with checkpoints, metrics and figures",
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command named by the first argument and exit with its exit code."""
    leave_if_too_low()
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
    """Return name -> description of the installed commands."""
    return {name: summary for name, summary in COMMANDS.items() if importlib.util.find_spec(f"segnet_jax.{name}")}


def overview() -> str:
    """Return the text of `segnet --help`, one line per command."""
    summaries = commands() | {COMPLETION: f"print the completion script for a shell: {' or '.join(SHELLS)}"}
    lines = (f"  {name:12}{summary}" for name, summary in summaries.items())
    return "\n".join(
        [
            "usage: segnet COMMAND ...        (the same as python -m segnet_jax.COMMAND ...)",
            "",
            *lines,
            "",
            "segnet COMMAND --help lists a command's flags. To try it:  segnet train --protocol demo",
        ]
    )


def unknown(name: str) -> UserError:
    """Return the error for an unknown command, with the nearest known one."""
    near = difflib.get_close_matches(name, [*commands(), COMPLETION], n=1)
    rest = f"; nearest: {near[0]}" if near else f"; commands: {', '.join(commands())}"
    return UserError(f"unknown command {name!r}{rest} (see segnet --help)")


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
