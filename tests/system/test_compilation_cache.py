"""Test the compilation cache: truncated programs are removed, complete ones stay."""

import os
import time
import zlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from segnet_jax.system.compilation_cache import remove_cut_off


def test_a_truncated_program_is_removed_wherever_it_ends(tmp_path):
    whole = zlib.compress(os.urandom(1000) + bytes(1000))
    for length in range(0, len(whole), 7):
        (tmp_path / f"{length:04}-cache").write_bytes(whole[:length])
    (tmp_path / "whole-cache").write_bytes(whole)
    (tmp_path / "unknown-cache").write_bytes(b"compressed in some other way")
    remove_cut_off(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checked", "unknown-cache", "whole-cache"]


def test_only_programs_written_since_the_last_check_are_checked(tmp_path):
    remove_cut_off(tmp_path / "absent")
    old, new = (tmp_path / f"{name}-cache" for name in ("old", "new"))
    remove_cut_off(tmp_path)
    for path in (old, new):
        path.write_bytes(zlib.compress(bytes(1000))[:-1])
    os.utime(old, (time.time() - 60, time.time() - 60))
    remove_cut_off(tmp_path)
    assert old.exists() and not new.exists()


@pytest.fixture
def cache(tmp_path):
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_written_by_jax_stay_and_are_removed_once_truncated(cache):
    jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x) + 25)(jnp.ones((7, 7)))
    programs = list(cache.glob("*-cache"))
    assert programs
    remove_cut_off(cache)
    assert list(cache.glob("*-cache")) == programs
    for path in programs:
        path.write_bytes(path.read_bytes()[:-5])
    remove_cut_off(cache)
    assert not list(cache.glob("*-cache"))
