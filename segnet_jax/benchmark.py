"""Measures speed: `python -m segnet_jax.benchmark --help`."""

import sys

from segnet_jax.benchmarks.run import BenchmarkOptions, benchmark
from segnet_jax.config.flags import parse_flags
from segnet_jax.system.command import run_command

DESCRIPTION = """Measures how fast the network trains and infers, and what holds it up.

train: the training step on a batch that lies on the devices, then with its input; epoch: a whole one over --data, with
its evaluation; infer: predictions, BatchNorm folded; input: the host's batches alone; pooling: pool and unpool alone;
scaling: the training step on 1, 2, 4, ... devices.

Example:  python -m segnet_jax.benchmark train --batch-size-per-device 16 --json now.json --compare before.json"""


def main() -> int:
    """The command."""
    return benchmark(parse_flags(BenchmarkOptions, sys.argv[1:], prog="segnet_jax.benchmark", description=DESCRIPTION))


if __name__ == "__main__":
    run_command(main)
