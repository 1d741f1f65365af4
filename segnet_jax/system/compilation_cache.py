"""JAX's persistent compilation cache, and source paths in lowered programs."""

import contextlib
import os
import pathlib
import time
import zlib

import jax

from segnet_jax.system.files import cache_folder

_SECONDS = 0.5  # programs that compile faster are not cached
_CHECKED = "checked"  # a file whose mtime is the time of the last check
_BLOCK = 2**20


def keep_compiled_programs() -> None:
    """Enable the persistent compilation cache in the cache folder, unless JAX is configured to use another one."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = cache_folder() / "compiled"
        remove_cut_off(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def keep_no_paths() -> None:
    """Make lowered programs refer to source files by name only, without this machine's folders."""
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")


def remove_cut_off(folder: pathlib.Path) -> None:
    """Remove truncated programs, which a kill or a full disk leaves behind.

    JAX writes them in place; it would warn and recompile at every start, and never replace them.

    Args:
      folder: folder of the cache; files written since the last call are checked.
    """
    with contextlib.suppress(OSError):  # no such folder, or not writable
        checked, now = folder / _CHECKED, time.time()
        since = checked.stat().st_mtime if checked.exists() else 0.0
        for path in folder.glob("*-cache"):
            if path.stat().st_mtime >= since - 1 and not _is_whole(path):
                path.unlink(missing_ok=True)
        checked.touch()
        os.utime(checked, (now, now))


def _is_whole(path: pathlib.Path) -> bool:
    """Return whether a compressed file is complete; assumed for formats other than zlib and Zstandard."""
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
