"""The training step compiled for an H200 that is not present: what `portability compile` must report."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
JAX = ("0.11.2",)  # the versions of JAX whose compiler these figures are of
TOLERANCE = 1.02  # of bytes and kernels

pytestmark = pytest.mark.slow


def missing():
    """Return why the programs cannot be compiled here, or ""."""
    if not any(importlib.util.find_spec(name) for name in ("jax_cuda13_plugin", "jax_cuda12_plugin")):
        return 'the compiler for GPUs is not installed: pip install "segnet_jax[aot]"'
    import jax

    return "" if jax.__version__ in JAX else f"the figures are of jax {JAX[0]}, not {jax.__version__}"


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    if reason := missing():
        pytest.skip(reason)


def compiled(folder, *flags):
    """Return the output of `portability compile` for the training step on H200s in bfloat16."""
    file = folder / "h200.json"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
    command = [sys.executable, "-m", "segnet_jax.portability", "compile", "--target", "h200", "--programs", "train"]
    command += ["--json", str(file), "--init", "none", "--batch-size-per-device", "16", *flags]
    environment = clean | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(file.read_text())["programs"]["train"]


def test_the_step_of_one_device_has_few_kernels_and_bytes_and_every_convolution_is_3x3(tmp_path):
    program = compiled(tmp_path)
    assert program["convolutions"]["windows"] == {"3x3": 77}
    assert program["mb_per_image"] <= 2345 * TOLERANCE
    assert program["num_kernels"] <= 500 * TOLERANCE
    assert program["copies"]["mb_per_image"] < 60  # kernels and their gradients change layout; no parameter does
    assert 200 * 3 * 16 < program["convolutions"]["gflop"] < 220 * 3 * 16
    assert program["limit"]["images_per_second"] > 1000


def test_every_convolution_is_3x3_with_ceil_pooling_too(tmp_path):
    assert compiled(tmp_path, "--pooling", "ceil")["convolutions"]["windows"] == {"3x3": 77}


def test_eight_devices_sum_gradients_while_they_compute(tmp_path):
    collectives = compiled(tmp_path, "--devices", "8")["collectives"]
    synchronous = [each for each in collectives if not each["is_async"]]
    assert {each["part"] for each in synchronous} == {"batch_norm_sums"}
    assert len(synchronous) <= 50 and sum(each["bytes"] for each in synchronous) < 1e6
    gradients = [each for each in collectives if each["part"] == "gradient_sum"]
    assert sum(each["bytes"] for each in gradients) == pytest.approx(4 * 29_441_419, rel=0.01)


def test_with_local_statistics_eight_devices_need_few_sums(tmp_path):
    collectives = compiled(tmp_path, "--devices", "8", "--no-sync-batch-norm")["collectives"]
    assert len(collectives) <= 10
