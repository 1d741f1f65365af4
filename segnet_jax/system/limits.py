"""Limits of the system under which JAX hangs or crashes, looked at before it is imported."""

import os
import resource
import sys

LEAST_FILES, USUAL_FILES = 128, 4096
"""Descriptors: with fewer than the first, saving a checkpoint waits for ever; the second is asked for."""
LEAST_MEMORY = 4 * 2**30
"""Bytes of address space, of which JAX and TensorFlow reserve far more than they use; and for each processor:"""
MEMORY_OF_A_PROCESSOR = 64 * 2**20


def problem() -> str:
    """What limit is too low, and what to do about it, in one line; empty where none is.

    The limit on open files is raised first, as far as the system lets this process raise it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = USUAL_FILES if hard == resource.RLIM_INFINITY else min(USUAL_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        return f"this process may open only {soft} files, and needs {LEAST_FILES}: raise the limit (ulimit -n)"
    memory, _ = resource.getrlimit(resource.RLIMIT_AS)
    least = LEAST_MEMORY + MEMORY_OF_A_PROCESSOR * (os.cpu_count() or 1)
    if memory != resource.RLIM_INFINITY and memory < least:
        return (
            f"this process may have {memory / 1e9:.1f} GB of address space, and JAX reserves {least / 1e9:.1f} GB: "
            "raise the limit (ulimit -v), or limit the memory in use instead"
        )
    return ""


def leave_if_too_low() -> None:
    """End the process with one line and exit code 2, where a command is being started under too low a limit."""
    if told := problem():
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)
