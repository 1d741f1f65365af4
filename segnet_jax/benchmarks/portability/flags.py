"""Flags of the subcommands that take a training config and a few flags of their own."""

import argparse
import pathlib
from collections.abc import Sequence

from segnet_jax.benchmarks.portability.lowering import PLATFORMS
from segnet_jax.config.fields import Config
from segnet_jax.config.files import CONFIG_FILE, read_run
from segnet_jax.config.flags import parse_config
from segnet_jax.config.options import Flag
from segnet_jax.system.errors import UserError
from segnet_jax.system.nearest import nearest_hint
from segnet_jax.training.own_network import import_given

LOWER_FLAGS = (
    Flag("out", "output folder, empty or not existing", "FOLDER", section="lower"),
    Flag("platforms", "platforms to lower for", "{" + ",".join(PLATFORMS) + "} ...", arity=None, section="lower"),
    Flag("run", "run to read config, classes, preprocessing and class weights from", "RUN", section="lower"),
)


def own_flags() -> argparse.ArgumentParser:
    """Return a parser of a subcommand's own flags, which already has --run."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--run", default="")
    return own


def parse_with_config(
    own: argparse.ArgumentParser, args: Sequence[str], *, prog: str, description: str, flags: Sequence[Flag]
) -> tuple[argparse.Namespace, Config]:
    """Parse a subcommand's own flags, and all others as those of a config: the run's with --run, else the default.

    Args:
      own: parser of the subcommand's own flags.
      args: the arguments.
      prog: module of the command, for messages.
      description: description of the command, for `--help`.
      flags: the subcommand's own flags, for `--help`.

    Raises:
      UserError: If a flag is wrong, or the run cannot be read.
    """
    try:
        given, others = own.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if given.run:
        if read_run(given.run).multi_label:
            raise UserError(f"portability is for one class per pixel, and {given.run} predicts several")
        others = ["--config", str(pathlib.Path(given.run) / CONFIG_FILE), *others]
    config = parse_config(others, prog=prog, description=description, own=flags)
    import_given(others)
    return given, config


def check_choices(flag: str, given: Sequence[str], choices: Sequence[str]) -> None:
    """Check the values of a flag.

    Raises:
      UserError: If a value is not among the choices.
    """
    if unknown := [name for name in given if name not in choices]:
        hint = nearest_hint(unknown[0], choices)
        raise UserError(f"--{flag} must be from {', '.join(choices)}, got {' '.join(unknown)}{hint}")
