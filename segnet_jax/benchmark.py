"""Measure throughput: `python -m segnet_jax.benchmark --help`."""

import sys

from segnet_jax.benchmarks.run import BenchmarkOptions, benchmark
from segnet_jax.config.flags import parse_flags
from segnet_jax.system.command import run_command

DESCRIPTION = """Measure the throughput of training and inference, and find the bottleneck.

train: the training step on a device-resident batch, and with its input pipeline; epoch: a whole epoch over --data with
its evaluation; infer: prediction with BatchNorm folded; input: the host's input pipeline only; pooling: pooling and
unpooling only; scaling: the training step on 1, 2, 4, ... devices.

Example:
  python -m segnet_jax.benchmark train --batch-size-per-device 16 --json now.json --compare before.json"""


def main() -> int:
    """Run the command."""
    return benchmark(parse_flags(BenchmarkOptions, sys.argv[1:], prog="segnet_jax.benchmark", description=DESCRIPTION))


if __name__ == "__main__":
    run_command(main)
