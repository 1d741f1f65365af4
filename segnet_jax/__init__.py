"""SegNet for JAX. Importing this package imports neither TensorFlow nor Orbax and does nothing else."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`segnet_jax.load`, imported when it is asked for."""
    if name == "load":
        from segnet_jax.inference.network import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
