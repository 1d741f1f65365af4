"""Train the runs of a sweep in order: `python -m segnet_jax.sweep --help`."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from segnet_jax.config.flag_specs import File, Folder
from segnet_jax.config.flags import parse_flags
from segnet_jax.sweep.plan import read_plan
from segnet_jax.sweep.run_all import print_table, train_all

DESCRIPTION = """Train the runs that a TOML file describes, in order, and write a table of their scores.

The file has three tables of config fields: [base] has settings for all runs, [grid] has lists of values whose
combinations are runs, and [runs.NAME] has the settings of a named run. With both [grid] and [runs], each named run is
trained for every combination. If a run fails, the others continue. The same command resumes the sweep and skips
finished runs.

  [base]
  protocol = "demo"
  epochs = 5
  [grid]
  learning_rate = [0.1, 0.03]
  [runs.ce]
  [runs.dice]
  loss = "ce + dice"

Example:
  python -m segnet_jax.sweep losses.toml --out runs/losses"""


@dataclass(frozen=True)
class SweepOptions:
    """Flags of `sweep`."""

    file: Annotated[File, tyro.conf.Positional]  # TOML file of the sweep
    out: Folder = ""  # folder for the run folders and the table; default: runs/NAME for a file NAME.toml
    data: Folder = ""  # dataset of every run; only here may it be in a bucket
    init: str = ""  # initial weights of every run; only here may they be in a bucket or on the Hugging Face Hub
    dry_run: bool = False  # only check the file and list the runs


def main() -> int:
    """Run the command."""
    options = parse_flags(SweepOptions, sys.argv[1:], prog="segnet_jax.sweep", description=DESCRIPTION)
    plan = read_plan(options.file, options.out, {"data": options.data, "init": options.init})
    if options.dry_run:
        print_table(plan)
        return 0
    return train_all(plan)
