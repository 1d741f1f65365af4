"""Flags of the subcommands that accept a training config and additional flags."""

import argparse
import pathlib
from collections.abc import Sequence

from segnet_jax.benchmarks.portability.lowering import PLATFORMS
from segnet_jax.config.fields import Config
from segnet_jax.config.files import CONFIG_FILE, read_run
from segnet_jax.config.flag_specs import Flag
from segnet_jax.config.flags import parse_config
from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError
from segnet_jax.training.custom_network import import_given

LOWER_FLAGS = (
    Flag("out", "output folder, empty or not existing", "FOLDER", section="lower"),
    Flag("platforms", "platforms to lower for", "{" + ",".join(PLATFORMS) + "} ...", arity=None, section="lower"),
    Flag("run", "run to read config, classes, preprocessing and class weights from", "RUN", section="lower"),
)


def own_flags() -> argparse.ArgumentParser:
    """Return a parser for a subcommand's additional flags, which already has --run."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--run", default="")
    return own


def parse_with_config(
    own: argparse.ArgumentParser, args: Sequence[str], *, prog: str, description: str, flags: Sequence[Flag]
) -> tuple[argparse.Namespace, Config]:
    """Parse a subcommand's additional flags with `own`; the others override the config of `--run`, or the defaults.

    `prog` is for messages; `description` and `flags`, the additional flags, are for `--help`.

    Raises:
      UserError: If a flag is invalid, or the run cannot be read.
    """
    try:
        given, others = own.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if given.run:
        read_run(given.run)  # raises the errors of a damaged run
        others = ["--config", str(pathlib.Path(given.run) / CONFIG_FILE), *others]
    config = parse_config(others, prog=prog, description=description, own=flags)
    if config.multi_label:
        source = given.run or "--multi-label"
        raise UserError(f"portability is for networks with one class per pixel, got {source}, which has several")
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
