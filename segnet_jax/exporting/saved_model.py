"""The network as a TensorFlow SavedModel, by jax2tf: the same StableHLO in TensorFlow's own folder."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

import jax
import numpy as np

from segnet_jax.exporting.parity import Label
from segnet_jax.exporting.subject import PLATFORMS, ExportedNetwork
from segnet_jax.system.errors import UserError


def write(subject: ExportedNetwork, path: pathlib.Path) -> None:
    """Writes a folder whose signature "serving_default" takes "images" and gives "prediction" and "logits"."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    tf.config.set_visible_devices([], "GPU")  # the GPU belongs to JAX
    converted = jax2tf.convert(
        subject.label,
        polymorphic_shapes=[subject.shape],
        polymorphic_constraints=subject.constraints,
        native_serialization_platforms=PLATFORMS,
        with_gradient=False,
    )

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")])
    def serve(images):
        prediction, logits = converted(images)
        return {"prediction": prediction, "logits": logits}

    with _temporary_files_in(path.parent):
        tf.saved_model.save(tf.Module(), str(path), signatures=serve)


@contextlib.contextmanager
def _temporary_files_in(folder: pathlib.Path) -> Iterator[None]:
    """Let TensorFlow put code that it generates into the export's own folder and not into the system's."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def read(subject: ExportedNetwork, path: pathlib.Path) -> Label:
    """Opens a folder in TensorFlow, on the CPU.

    Raises:
      UserError: when it is first used, where this TensorFlow does not know the operations of this JAX yet.
    """
    import tensorflow as tf

    with _temporary_files_in(path.parent):
        loaded = tf.saved_model.load(str(path))

    def label(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            found = loaded.signatures["serving_default"](images=tf.constant(images))
        except tf.errors.InvalidArgumentError as error:
            if "deserialize" not in str(error):
                raise
            raise UserError(
                f"TensorFlow {tf.__version__} cannot read what jax {jax.__version__} writes: --format saved-model "
                "needs a newer TensorFlow, or an older jax (0.10 with TensorFlow 2.21)"
            ) from None
        return found["prediction"].numpy(), found["logits"].numpy()

    return label


def use(subject: ExportedNetwork, path: pathlib.Path) -> str:
    """How to run it, in Python."""
    return f"""import tensorflow as tf
network = tf.saved_model.load({str(path)!r})
found = network.signatures["serving_default"](images=tf.constant(images))  # uint8 [B,H,W,3] RGB, {subject.smallest}\
 pixels or more each way
prediction, logits = found["prediction"], found["logits"]"""
