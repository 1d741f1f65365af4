"""Run the suite and compare its CPU time with the stored figure; called by `.ci/run`.

    python tests/timed_suite.py -n 2

CPU time depends on the machine and its load, so it is divided by the CPU time of importing JAX, Flax, optax and Orbax,
measured before and after. Fails like pytest, or with exit code 1 if the suite takes `LIMIT` times the figure of
`benchmarks/kept_figures.json`.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time

KEPT = json.loads((pathlib.Path(__file__).parent / "benchmarks" / "kept_figures.json").read_text())
IMPORTS = "import jax, flax.linen, optax, orbax.checkpoint"
LIMIT = 1.6


def cpu_seconds(*command):
    """Run a command; return its exit code, and the CPU seconds of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run(command).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return code, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    """Run pytest with the given arguments; return the exit code."""
    cpu_seconds(sys.executable, "-c", IMPORTS)  # reads the files, and compiles them to bytecode
    first = min(cpu_seconds(sys.executable, "-c", IMPORTS)[1] for _ in range(3))
    start = time.monotonic()
    code, used = cpu_seconds(sys.executable, "-m", "pytest", *sys.argv[1:])
    minutes = (time.monotonic() - start) / 60
    last = min(cpu_seconds(sys.executable, "-c", IMPORTS)[1] for _ in range(3))
    ratio, kept = 2 * used / (first + last), KEPT["suite_in_imports"]
    print(f"the suite took {minutes:.1f} min, {used:.0f} s of CPU time: {ratio:.0f} imports of JAX, kept: {kept}")
    if code == 0 and ratio > LIMIT * kept:
        print(f"error: that is more than {LIMIT} times the kept figure; see tests/README.md, Time", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
