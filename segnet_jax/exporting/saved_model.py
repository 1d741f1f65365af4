"""Export of the network as a TensorFlow SavedModel, using jax2tf with native serialization (StableHLO)."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import jax
import numpy as np

from segnet_jax.exporting.exported_network import PLATFORMS, ExportedNetwork
from segnet_jax.exporting.parity import PredictFn
from segnet_jax.system.errors import UserError


def write(subject: ExportedNetwork, path: pathlib.Path) -> None:
    """Write a SavedModel whose signature "serving_default" maps "images" to "prediction" and "logits"."""
    with _temporary_files_in(path.parent):
        _write(subject, path)


def _write(subject: ExportedNetwork, path: pathlib.Path) -> None:
    import tensorflow as tf
    from jax.experimental import jax2tf

    tf.config.set_visible_devices([], "GPU")  # the GPU belongs to JAX
    converted = jax2tf.convert(
        subject.predict,
        polymorphic_shapes=[subject.shape],
        polymorphic_constraints=subject.constraints,
        native_serialization_platforms=PLATFORMS,
        with_gradient=False,
    )

    images = tf.TensorSpec((None, None, None, subject.pixels.channels), subject.pixels.dtype, name="images")

    @tf.function(autograph=False, input_signature=[images])
    def serve(images):
        prediction, logits = converted(images)
        return {"prediction": prediction, "logits": logits}

    tf.saved_model.save(tf.Module(), str(path), signatures=serve)


@contextlib.contextmanager
def _temporary_files_in(folder: pathlib.Path) -> Iterator[None]:
    """Make TensorFlow and Keras, including their imports, write only to the export's folder.

    Otherwise Python's `tempfile` tests the system's temporary folder on first use, TensorFlow writes generated code
    there, and Keras writes its settings to the home folder.
    """
    before, home = tempfile.tempdir, os.environ.get("KERAS_HOME")
    tempfile.tempdir = str(folder)
    os.environ["KERAS_HOME"] = str(folder / ".keras")
    try:
        yield
    finally:
        tempfile.tempdir = before
        if home is None:
            del os.environ["KERAS_HOME"]
        else:
            os.environ["KERAS_HOME"] = home
        shutil.rmtree(folder / ".keras", ignore_errors=True)


def read(subject: ExportedNetwork, path: pathlib.Path) -> PredictFn:
    """Load a SavedModel into TensorFlow, on the CPU.

    Raises:
      UserError: If this TensorFlow lacks operations of this JAX version; raised on first use.
    """
    with _temporary_files_in(path.parent):
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            outputs = loaded.signatures["serving_default"](images=tf.constant(images))
        except tf.errors.InvalidArgumentError as error:
            if "deserialize" not in str(error):
                raise
            raise UserError(
                f"TensorFlow {tf.__version__} cannot read programs of jax {jax.__version__}: --format saved-model "
                "needs a newer TensorFlow, or an older jax (0.10 with TensorFlow 2.21)"
            ) from None
        return outputs["prediction"].numpy(), outputs["logits"].numpy()

    return predict


def use(subject: ExportedNetwork, path: pathlib.Path) -> str:
    """Return Python code that runs the SavedModel."""
    return f"""import tensorflow as tf
network = tf.saved_model.load({str(path)!r})
outputs = network.signatures["serving_default"](images=tf.constant(images))  # {subject.images}, {subject.smallest}\
 pixels or more each way
prediction, logits = outputs["prediction"], outputs["logits"]"""
