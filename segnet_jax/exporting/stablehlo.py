"""Export of the network, weights included, as StableHLO, which JAX runs without this package."""

import pathlib

import jax
import numpy as np
from jax import export

from segnet_jax.exporting.exported_network import PLATFORMS, ExportedNetwork
from segnet_jax.exporting.parity import PredictFn

MONTHS_READABLE, WEEKS_BEFORE = 6, 3
"""Backward and forward compatibility that JAX guarantees for exported programs (docs.jax.dev, export)."""


def write(subject: ExportedNetwork, path: pathlib.Path) -> None:
    """Export for CPU, NVIDIA GPU and TPU, with symbolic batch, height and width."""
    shape = export.symbolic_shape(subject.shape, constraints=subject.constraints)
    images = jax.ShapeDtypeStruct(shape, subject.pixels.dtype)
    exported = export.export(jax.jit(subject.predict), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def read(subject: ExportedNetwork, path: pathlib.Path) -> PredictFn:
    """Load a file into JAX, on the default device.

    Raises:
      ValueError: If the program is not for all of PLATFORMS, or its batch, height or width is fixed.
    """
    exported = export.deserialize(bytearray(path.read_bytes()))
    (images,) = exported.in_avals
    if exported.platforms != PLATFORMS or any(isinstance(size, int) for size in images.shape[:3]):
        raise ValueError(
            f"{path} must be exported for {PLATFORMS} with dynamic batch, height and width; "
            f"got {exported.platforms} and {images.shape}: export it again"
        )
    call = jax.jit(exported.call)
    return lambda images: tuple(map(np.asarray, call(images)))


def warranty() -> str:
    """Return a sentence stating which JAX versions can read a file written now."""
    return (
        f"written by jax {jax.__version__}; JAX guarantees that versions of the next {MONTHS_READABLE} months and of "
        f"the last {WEEKS_BEFORE} weeks can read it; for other versions, export the run again"
    )


def use(subject: ExportedNetwork, path: pathlib.Path) -> str:
    """Return Python code that runs the file."""
    return f"""from jax import export
network = export.deserialize(bytearray(open({str(path)!r}, "rb").read()))
prediction, logits = network.call(images)  # {subject.images}, {subject.smallest} pixels or more each way"""
