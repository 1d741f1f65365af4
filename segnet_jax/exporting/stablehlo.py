"""The network as StableHLO, its weights inside: what JAX runs without this package."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from segnet_jax.exporting.parity import Label
from segnet_jax.exporting.subject import PLATFORMS, ExportedNetwork

MONTHS_READABLE, WEEKS_BEFORE = 6, 3
"""For which JAX promises to read what its `export` wrote, by later and by earlier versions (docs.jax.dev, export)."""


def write(subject: ExportedNetwork, path: pathlib.Path) -> None:
    """Exports for CPU, NVIDIA GPU and TPU, with batch, height and width left open."""
    shape = export.symbolic_shape(subject.shape, constraints=subject.constraints)
    exported = export.export(jax.jit(subject.label), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.uint8))
    path.write_bytes(exported.serialize())


def read(subject: ExportedNetwork, path: pathlib.Path) -> Label:
    """Opens a file in JAX, on the device at hand.

    Raises:
      ValueError: it is not for all platforms, or not for images of any number and size.
    """
    exported = export.deserialize(bytearray(path.read_bytes()))
    (images,) = exported.in_avals
    if exported.platforms != PLATFORMS or any(isinstance(size, int) for size in images.shape[:3]):
        raise ValueError(f"{path} is for {exported.platforms} and images {images.shape}")
    call = jax.jit(exported.call)
    return lambda images: tuple(map(np.asarray, call(images)))


def warranty() -> str:
    """Which JAX wrote a file, and which versions promise to read it."""
    return (
        f"written by jax {jax.__version__}: its versions of the next {MONTHS_READABLE} months read it, and "
        f"those of the last {WEEKS_BEFORE} weeks, as JAX promises; for others, export the run again"
    )


def use(subject: ExportedNetwork, path: pathlib.Path) -> str:
    """How to run the file, in Python."""
    return f"""from jax import export
network = export.deserialize(bytearray(open({str(path)!r}, "rb").read()))
prediction, logits = network.call(images)  # uint8 [B,H,W,3] RGB, {subject.smallest} pixels or more each way"""
