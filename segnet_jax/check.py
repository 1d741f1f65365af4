"""Tries a training out before it is begun: `python -m segnet_jax.check --help`."""

import contextlib
import dataclasses
import sys
import time
from typing import Any

from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.data.input_pipeline.cache import in_words
from segnet_jax.reporting.pace import duration
from segnet_jax.runs.dry_run import read, try_out
from segnet_jax.system.command import run_command
from segnet_jax.system.console import echo
from segnet_jax.system.errors import NotFinite, UserError
from segnet_jax.system.files import check_place, write_result
from segnet_jax.system.signals import Stop

DESCRIPTION = """Checks a training before it is begun: reads all data, takes two steps, scores some images, saves and
restores, and tells the memory and the time that the whole run will take. Leaves no run. Flags as those of train.

Example:  python -m segnet_jax.check --protocol demo

As data:  python -m segnet_jax.check --protocol camvid-tutorial --data DIR --json check.json"""


def main() -> int:
    """The command."""
    args, json = _without_json(sys.argv[1:])
    return check(parse_config(args, prog="segnet_jax.check", description=DESCRIPTION), json)


def check(config: Config, json: str = "") -> int:
    """Tries the training out, prints what was found, and writes the JSON if asked; returns the exit code.

    Raises:
      UserError: for what a training would refuse.
      ExitError: what would end the training.
    """
    if config.resume:
        raise UserError("check looks at a training before it is begun: leave out --resume")
    if config.coordinator:
        raise UserError("check looks at this machine alone: leave out --coordinator")
    check_place("json", json)
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop())
        stack.enter_context(stop.at_once())
        setup, initial = read(config)
        reading = {"seconds": time.monotonic() - start}
        found = {"reading": reading} | try_out(setup, initial)
    found["seconds"] = time.monotonic() - start
    echo("\n".join(lines(found)))
    if json:
        write_result(json, found | {"config": dataclasses.asdict(config)})
    if not found["step"]["finite"]:
        raise NotFinite("the first steps were not finite: try a lower --learning-rate")
    return 0


def lines(found: dict[str, Any]) -> list[str]:
    """What was found, a line each."""
    step, scoring, showing, saving, memory = (
        found[name] for name in ("step", "scoring", "showing", "saving", "memory")
    )
    rate = found["global_batch_size"] / step["seconds_a_step"]
    device = max(memory["step"] or 0, memory["device"] or 0)
    of_device = f"a device {in_words(device)} of {in_words(memory['of_a_device'])}, " if device else ""
    return [
        f"data     read and checked in {found['reading']['seconds']:.1f} s",
        f"step     {step['seconds_a_step']:.3g} s for {found['global_batch_size']} images, {rate:.1f} images/s; "
        f"loss {step['loss']:.4g} after {step['taken']}, compiled in {step['compiling']:.1f} s",
        f"scoring  {scoring['seconds_a_batch']:.3g} s a batch, {scoring['batches']} batches; "
        f"{sum(showing.values()):.1f} s to draw what was found",
        f"saving   {in_words(saving['bytes'])} in {saving['seconds']:.1f} s, restored bit for bit",
        f"memory   {of_device}the process {in_words(memory['host'])}",
        f"time     {duration(found['seconds_an_epoch'])} an epoch, {duration(found['seconds_in_all'])} for all "
        f"{found['epochs']}",
        f"all is well; checked in {found['seconds']:.0f} s",
    ]


def _without_json(args: list[str]) -> tuple[list[str], str]:
    """The flags of a training, and the file that `--json` names.

    Raises:
      UserError: `--json` names none.
    """
    kept, json, rest = [], "", iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name != "--json":
            kept.append(arg)
            continue
        json = value if equals else next(rest, "")
        if not json or json.startswith("--"):
            raise UserError("--json needs the file to write to")
    return kept, json


if __name__ == "__main__":
    run_command(main)
