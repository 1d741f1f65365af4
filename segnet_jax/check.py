"""Dry-run training: `python -m segnet_jax.check --help`."""

import contextlib
import dataclasses
import sys
import time
from typing import Any

from segnet_jax.config.fields import Config
from segnet_jax.config.flag_specs import Flag
from segnet_jax.config.flags import parse_config
from segnet_jax.reporting.remaining_time import duration
from segnet_jax.runs.default_recipe import default_config
from segnet_jax.runs.dry_run import read, try_out
from segnet_jax.system.command import run_command
from segnet_jax.system.console import echo
from segnet_jax.system.disk import format_bytes
from segnet_jax.system.errors import NotFinite, UserError
from segnet_jax.system.files import check_place, write_result
from segnet_jax.system.signals import Stop
from segnet_jax.training.custom_augmentation import CustomAugmentation
from segnet_jax.training.custom_network import import_given
from segnet_jax.training.custom_objects import NO_OBJECTS, CustomObjects

DESCRIPTION = """Dry-run training: read all data, take two steps, evaluate some images, save and restore a checkpoint,
and estimate the memory and time of the whole run. Creates no run folder. Takes the flags of train, and --json.

Examples:
  python -m segnet_jax.check --protocol demo
  python -m segnet_jax.check --protocol camvid-tutorial --data camvid --json check.json"""

OWN_FLAGS = (Flag("json", "JSON file to write the results to", "FILE", section="result"),)


def main() -> int:
    """Run the command."""
    args, json = _split_json(sys.argv[1:])
    flags = {"prog": "segnet_jax.check", "description": DESCRIPTION, "defaults": default_config, "own": OWN_FLAGS}
    config = parse_config(args, **flags)
    import_given(args)
    return check(config, json, CustomObjects(augment=CustomAugmentation.named(config.augment, args)))


def check(config: Config, json: str = "", own: CustomObjects = NO_OBJECTS) -> int:
    """Dry-run training, print the results and, if requested, write the JSON; return the exit code.

    Raises:
      UserError: If training would reject the config or the data.
      ExitError: If training would end with this error.
    """
    if config.resume:
        raise UserError("check does not resume runs; remove --resume")
    if config.coordinator:
        raise UserError("check runs on one host only; remove --coordinator")
    check_place("json", json)
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop())
        stack.enter_context(stop.at_once())
        setup, initial = read(config, own)
        reading = {"seconds": time.monotonic() - start}
        found = {"reading": reading} | try_out(setup, initial)
    found["seconds"] = time.monotonic() - start
    echo("\n".join(lines(found)))
    if json:
        write_result(json, found | {"config": dataclasses.asdict(config)})
    if not found["step"]["finite"]:
        raise NotFinite("the loss of the first steps is not finite; try a lower --learning-rate")
    return 0


def lines(found: dict[str, Any]) -> list[str]:
    """Format the results as lines of text."""
    step, scoring, showing, saving, memory = (
        found[name] for name in ("step", "scoring", "showing", "saving", "memory")
    )
    rate = found["global_batch_size"] / step["seconds_a_step"]
    device = max(memory["step"] or 0, memory["device"] or 0)
    of_device = f"device {format_bytes(device)} of {format_bytes(memory['of_a_device'])}, " if device else ""
    return [
        f"data     read and checked in {found['reading']['seconds']:.1f} s",
        f"step     {step['seconds_a_step']:.3g} s for {found['global_batch_size']} images, {rate:.1f} images/s; "
        f"loss {step['loss']:.4g} after {step['taken']} steps, compiled in {step['compiling']:.1f} s",
        f"evaluate {scoring['seconds_a_batch']:.3g} s per batch, {scoring['batches']} batches; "
        f"{sum(showing.values()):.1f} s for figures",
        f"save     {format_bytes(saving['bytes'])} in {saving['seconds']:.1f} s, restored bit-identically",
        f"memory   {of_device}host {format_bytes(memory['host'])}",
        f"time     {duration(found['seconds_an_epoch'])} per epoch, {duration(found['seconds_in_all'])} for "
        f"{found['epochs']:.4g} epochs",
        f"no problems found; checked in {found['seconds']:.0f} s",
    ]


def _split_json(args: list[str]) -> tuple[list[str], str]:
    """Separate the value of `--json` from the flags of `train`.

    Raises:
      UserError: If `--json` has no value.
    """
    kept, json, rest = [], "", iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name != "--json":
            kept.append(arg)
            continue
        json = value if equals else next(rest, "")
        if not json or json.startswith("--"):
            raise UserError("--json needs a file to write to")
    return kept, json


if __name__ == "__main__":
    run_command(main)
