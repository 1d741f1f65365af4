"""SegNet for JAX. Importing this package imports neither TensorFlow nor Orbax and does nothing else."""

__version__ = "0.1.0"
