"""Test XLA options for GPUs: set on the program in one process, in XLA_FLAGS in several, only for NVIDIA GPUs."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import AheadOfTime
from segnet_jax.distributed.xla_options import gpu_options, with_options
from segnet_jax.training import choose_devices as training_devices

OVERLAP, SAME_BITS = "xla_gpu_enable_latency_hiding_scheduler", "xla_gpu_deterministic_ops"


@pytest.mark.parametrize(
    "platform, total, deterministic, expected",
    [
        ("gpu", 1, False, {}),
        ("gpu", 8, False, {OVERLAP: True}),
        ("gpu", 1, True, {SAME_BITS: True}),
        ("gpu", 8, True, {OVERLAP: True, SAME_BITS: True}),
        ("cpu", 8, True, {}),
        ("tpu", 8, True, {}),
    ],
)
def test_a_step_is_compiled_with_the_options_of_its_devices(platform, total, deterministic, expected):
    given = []
    lowered = SimpleNamespace(compile=lambda compiler_options: given.append(compiler_options))
    devices = SimpleNamespace(
        local=[SimpleNamespace(platform=platform)] * total, total=total, deterministic=deterministic, mapping="pmap"
    )
    AheadOfTime(SimpleNamespace(lower=lambda *_: lowered), "a step", devices).program(jnp.ones(2), jnp.ones(2))
    assert given == [expected]


@pytest.mark.parametrize("mapping, given", [("pmap", []), ("shard_map", [{OVERLAP: True}])])
def test_with_several_processes_a_step_is_compiled_with_them_if_the_mapping_allows(mapping, given, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    options = []
    lowered = SimpleNamespace(compile=lambda compiler_options: options.append(compiler_options) or (lambda *_: "done"))

    def step(*_):
        return "done"

    step.lower = lambda *_: lowered
    devices = SimpleNamespace(local=[SimpleNamespace(platform="gpu")], total=2, deterministic=False, mapping=mapping)
    assert AheadOfTime(step, "a step", devices)(jnp.ones(2), jnp.ones(2)) == "done"
    assert options == given


def test_xla_knows_the_options():
    lowered = jax.jit(jnp.sin).lower(1.0)
    lowered.compile(compiler_options=gpu_options(are_several=True, deterministic=True))
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_nothing"):
        lowered.compile(compiler_options={"xla_gpu_nothing": True})


@pytest.mark.parametrize("flags, code", [(gpu_options(True, True), 0), ({"xla_gpu_nothing": True}, 1)])
def test_xla_without_a_gpu_accepts_the_flags_and_would_abort_at_an_unknown_one(flags, code):
    environment = os.environ | {"XLA_FLAGS": with_options("", flags), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == code


@pytest.mark.parametrize(
    "there, expected",
    [
        ("", f"--{OVERLAP}=true --{SAME_BITS}=true"),
        ("--xla_dump_to=x", f"--xla_dump_to=x --{OVERLAP}=true --{SAME_BITS}=true"),
        (f" --{OVERLAP}=false", f"--{OVERLAP}=false --{SAME_BITS}=true"),  # the user's options stay
        (f"--{SAME_BITS} --{OVERLAP}", f"--{SAME_BITS} --{OVERLAP}"),
        (f"--{OVERLAP}_too=true", f"--{OVERLAP}_too=true --{OVERLAP}=true --{SAME_BITS}=true"),
        ("flags.txt", "flags.txt"),  # a file of flags, as XLA takes it
    ],
)
def test_existing_flags_are_kept(there, expected):
    assert with_options(there, gpu_options(True, True)) == expected


@pytest.fixture
def several_gpus(monkeypatch, tmp_path):
    """Simulate one of several processes on a machine with NVIDIA driver and plugin."""
    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(training_devices, "NVIDIA_DRIVER", str(driver))
    monkeypatch.setattr(training_devices, "PLUGINS", ("jax",))  # a package that is there
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setenv("XLA_FLAGS", "")
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    yield driver
    jax.config.update("jax_platforms", before)


def flags_after_start(**changes):
    devices, _ = training_devices.start_devices(Config(devices="1", **changes))
    return os.environ["XLA_FLAGS"], devices.deterministic


def test_several_processes_get_the_flags_before_the_first_device(several_gpus):
    assert flags_after_start() == (f"--{OVERLAP}=true", False)
    jax.config.update("jax_platforms", "cuda,cpu")
    assert flags_after_start(deterministic=True) == (f"--{OVERLAP}=true --{SAME_BITS}=true", True)


def test_other_environments_do_not_get_the_flags(several_gpus, monkeypatch):
    for platforms in ("cpu", "tpu,cpu", "rocm"):
        jax.config.update("jax_platforms", platforms)
        assert flags_after_start()[0] == ""
    jax.config.update("jax_platforms", None)
    for name, value in (("PLUGINS", ("no_such_plugin",)), ("NVIDIA_DRIVER", f"{several_gpus}-not")):
        with monkeypatch.context() as without:
            without.setattr(training_devices, name, value)
            assert flags_after_start()[0] == ""
    assert flags_after_start(mapping="shard_map") == ("", False)  # whose program contains them
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    assert flags_after_start(deterministic=True) == ("", True)
