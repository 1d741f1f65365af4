"""Compiled programs that are kept: what a kill or a full disk has cut off is removed, what is whole stays."""

import os
import time
import zlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from segnet_jax.system.compilation_cache import remove_cut_off


def test_a_program_that_was_cut_off_is_removed_wherever_the_cut_is(tmp_path):
    whole = zlib.compress(os.urandom(1000) + bytes(1000))
    for length in range(0, len(whole), 7):
        (tmp_path / f"{length:04}-cache").write_bytes(whole[:length])
    (tmp_path / "whole-cache").write_bytes(whole)
    (tmp_path / "unknown-cache").write_bytes(b"compressed in some other way")
    remove_cut_off(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checked", "unknown-cache", "whole-cache"]


def test_only_what_was_written_since_the_last_start_is_looked_at(tmp_path):
    remove_cut_off(tmp_path / "absent")
    old, new = (tmp_path / f"{name}-cache" for name in ("old", "new"))
    remove_cut_off(tmp_path)
    for path in (old, new):
        path.write_bytes(zlib.compress(bytes(1000))[:-1])
    os.utime(old, (time.time() - 60, time.time() - 60))
    remove_cut_off(tmp_path)
    assert old.exists() and not new.exists()


@pytest.fixture
def kept(tmp_path):
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


def test_programs_as_jax_keeps_them_are_told_whole_and_cut_off_ones_are_not(kept):
    jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x) + 25)(jnp.ones((7, 7)))
    found = list(kept.glob("*-cache"))
    assert found
    remove_cut_off(kept)
    assert list(kept.glob("*-cache")) == found
    for path in found:
        path.write_bytes(path.read_bytes()[:-5])
    remove_cut_off(kept)
    assert not list(kept.glob("*-cache"))
