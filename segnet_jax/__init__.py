"""SegNet for JAX. Importing this package imports neither TensorFlow nor Orbax and does nothing else."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m segnet_jax.COMMAND`, before JAX is imported
    from segnet_jax.system.limits import leave_if_too_low

    leave_if_too_low()

__version__ = "0.1.0"


def __getattr__(name: str):
    """Import `segnet_jax.load` on first use."""
    if name == "load":
        from segnet_jax.inference.network import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
