"""Compare the training step's work and the imports at startup with `kept_figures.json`.

These counts are the same on every machine; `tests/timed_suite.py` checks the time of the suite. A change that increases
them on purpose stores the printed figures and explains them in its commit.
"""

import json
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from segnet_jax.benchmarks.portability.compiled.compiling import compile_program
from segnet_jax.benchmarks.portability.compiled.hlo import kernels
from segnet_jax.benchmarks.portability.steps import StepConstants, build_program
from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import AXIS

KEPT = json.loads((pathlib.Path(__file__).parent / "kept_figures.json").read_text())
CONFIG = Config(init="none", depth=2, width=1 / 16, image_size=(24, 32), batch_size_per_device=2, shift=2)
TOLERANCE = 1.02


def exceeded(figures, kept):
    """Return the figures that are more than two percent above the stored ones, as name -> (figure, stored)."""
    assert figures.keys() == kept.keys()
    return {name: (value, kept[name]) for name, value in figures.items() if value > TOLERANCE * kept[name]}


def work_of_the_step(num_devices, **changes):
    """Return kernels, bytes and FLOPs of the training step compiled for a CPU."""
    config = Config(**vars(CONFIG) | changes)
    program = build_program("train", config, StepConstants(11), "float32", "cpu", num_devices)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))
    compiled, _ = compile_program(program, SimpleNamespace(mesh=mesh, chip=SimpleNamespace(platform="cpu")))
    costs = compiled.cost_analysis()
    return {
        "kernels": len(kernels(compiled.as_text())),
        "bytes_accessed": int(costs["bytes accessed"]),
        "flop": int(costs["flops"]),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


@pytest.mark.parametrize("num_devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_the_training_step_needs_no_more_kernels_bytes_and_flop_than_before(num_devices):
    kept = KEPT["step"].get(jax.__version__)
    if kept is None:
        pytest.skip(f"no figures are kept for jax {jax.__version__}, whose compiler makes other programs")
    figures = work_of_the_step(num_devices)
    assert not exceeded(figures, kept[str(num_devices)]), figures


def test_a_step_that_does_more_is_found():
    kept = KEPT["step"].get(jax.__version__)
    if kept is None:
        pytest.skip(f"no figures are kept for jax {jax.__version__}")
    more = work_of_the_step(1, stage_convolutions=(2, 3), stage_channels=(64, 128))
    assert {"kernels", "bytes_accessed", "flop"} <= exceeded(more, kept["1"]).keys()


def test_starting_a_command_imports_no_more_than_before():
    code = (
        "import jax, flax.linen, optax, sys; before = set(sys.modules)\n"
        "import segnet_jax.train, json; new = set(sys.modules) - before\n"
        "ours = [name for name in new if name.split('.')[0] == 'segnet_jax']\n"
        "lines = sum(len(open(sys.modules[name].__file__).readlines()) for name in ours)\n"
        "print(json.dumps({'modules': len(ours), 'lines': lines, 'other_modules': len(new) - len(ours)}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    figures, kept = json.loads(done.stdout), KEPT["start"]
    assert figures["modules"] <= kept["modules"] and figures["lines"] <= TOLERANCE * kept["lines"], figures
    assert figures["other_modules"] <= 1.3 * kept["other_modules"], figures  # of other libraries, which versions change
