"""Programs outside the process: compiled ones, that a second start finds again, and lowered ones, that go elsewhere."""

import contextlib
import os
import pathlib
import time
import zlib

import jax

from segnet_jax.system.download import cache_folder

_SECONDS = 0.5  # a program that compiles faster is not kept
_CHECKED = "checked"  # a file whose time says when all that was there was found whole
_BLOCK = 2**20


def keep_compiled_programs() -> None:
    """Lets a second start find what the first has compiled, unless JAX was told to keep it somewhere else."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = cache_folder() / "compiled"
        remove_cut_off(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def keep_no_paths() -> None:
    """Lets lowered programs name the lines they come from by file alone: no folder of this machine gets about."""
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")


def remove_cut_off(folder: pathlib.Path) -> None:
    """Removes programs that a kill or a full disk has cut off.

    JAX writes them in place, warns of such a one at every start, compiles anew and never puts a whole one there.

    Args:
      folder: what was written to it since the last call is looked at.
    """
    with contextlib.suppress(OSError):  # no such folder, or not ours to write to
        checked, now = folder / _CHECKED, time.time()
        since = checked.stat().st_mtime if checked.exists() else 0.0
        for path in folder.glob("*-cache"):
            if path.stat().st_mtime >= since - 1 and not _is_whole(path):
                path.unlink(missing_ok=True)
        checked.touch()
        os.utime(checked, (now, now))


def _is_whole(path: pathlib.Path) -> bool:
    """Whether a compressed file comes to its end; one that is compressed otherwise than by zlib or Zstandard does."""
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(0)
        if head == b"\x28\xb5\x2f\xfd":
            with contextlib.suppress(ImportError):
                import zstandard

                return _ends(file, zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError)
        elif head[:1] == b"\x78" or len(head) < 4:
            return _ends(file, zlib.decompressobj(), zlib.error)
    return True


def _ends(file, stream, error: type[Exception]) -> bool:
    try:
        while not stream.eof and (block := file.read(_BLOCK)):
            stream.decompress(block)
    except error:
        return False
    return stream.eof
