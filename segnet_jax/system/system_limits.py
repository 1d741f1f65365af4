"""Check system limits under which JAX hangs or crashes, before it is imported."""

import os
import resource
import sys

LEAST_FILES, USUAL_FILES = 128, 4096
"""File descriptors: with fewer than the first, saving a checkpoint hangs; the second is set if possible."""
LEAST_MEMORY = 4 * 2**30
"""Bytes of address space; JAX and TensorFlow reserve far more than they use."""
MEMORY_OF_A_PROCESSOR = 64 * 2**20
"""Additional bytes per CPU."""


def problem() -> str:
    """Raise the limit on open files, if allowed; return a one-line message on a limit that is still too low, or ""."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = USUAL_FILES if hard == resource.RLIM_INFINITY else min(USUAL_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        return f"this process may open only {soft} files, but needs {LEAST_FILES}: raise the limit (ulimit -n)"
    memory, _ = resource.getrlimit(resource.RLIMIT_AS)
    least = LEAST_MEMORY + MEMORY_OF_A_PROCESSOR * (os.cpu_count() or 1)
    if memory != resource.RLIM_INFINITY and memory < least:
        return (
            f"this process may use {memory / 1e9:.1f} GB of address space, but JAX reserves {least / 1e9:.1f} GB: "
            "raise the limit (ulimit -v), or limit the memory in use instead"
        )
    return ""


def leave_if_too_low() -> None:
    """Exit with an error line and code 2 if a system limit is too low."""
    if message := problem():
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
