"""Test start-up times."""

import os
import pathlib
import re
import resource
import subprocess
import sys
import time

import pytest


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds_of(*command, **environment):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return time.monotonic() - start, done


@pytest.mark.slow
def test_the_second_start_takes_its_first_step_within_eight_seconds_of_the_command(tmp_path):
    plain = {"XLA_FLAGS": "", "SEGNET_JAX_CACHE": str(tmp_path / "cache")}  # as a user starts it, not as the tests do
    command = ["-m", "segnet_jax.train", "--protocol", "demo", "--max-steps", "1", "--run"]
    _, first = seconds_of(*command, str(tmp_path / "first"), **plain)
    before = processor_seconds()
    seconds, second = seconds_of(*command, str(tmp_path / "second"), **plain)  # which ends with a checkpoint besides
    used, before = processor_seconds() - before, processor_seconds()
    seconds_of("-c", "import jax, flax, optax, orbax.checkpoint", **plain)
    imports = processor_seconds() - before
    # On a busy machine, as within this suite, only CPU time is meaningful.
    assert seconds < 8 or used < 8 * imports, (seconds, used, imports)
    compiling = [
        float(re.search(r"compiled the training step in ([\d.]+) s", run.stderr)[1]) for run in (first, second)
    ]
    assert compiling[1] < compiling[0]  # it was kept
    assert any(path.is_file() for path in (pathlib.Path(tmp_path) / "cache" / "compiled").rglob("*"))


def test_the_package_adds_little_to_the_import_of_jax():
    code = "import jax, time; start = time.monotonic(); import segnet_jax; print(time.monotonic() - start)"
    assert min(float(seconds_of("-c", code)[1].stdout) for _ in range(3)) < 0.3
