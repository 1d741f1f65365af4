"""XLA flags for tests, which compile much and compute little: no optimization, and the older emitters.

The first makes the suite twice as fast; the second cuts the CPU time of compiling a training step from 2.4 s to 0.8 s.
jaxlib 0.11 and newer no longer have the older emitters and reject the flag.
"""

from importlib.metadata import version

QUICK = "--xla_backend_optimization_level=0"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def with_fake_devices(count: int) -> str:
    """Return $XLA_FLAGS for a number of CPU devices."""
    return f"--xla_force_host_platform_device_count={count} {QUICK}"
