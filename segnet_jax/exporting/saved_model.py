"""The network as a TensorFlow SavedModel, by jax2tf: the same StableHLO in TensorFlow's own folder."""

import pathlib

import numpy as np

from segnet_jax.exporting.parity import Label
from segnet_jax.exporting.stablehlo import PLATFORMS
from segnet_jax.exporting.subject import Subject


def write(subject: Subject, path: pathlib.Path) -> None:
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

    tf.saved_model.save(tf.Module(), str(path), signatures=serve)


def read(subject: Subject, path: pathlib.Path) -> Label:
    """Opens a folder in TensorFlow, on the CPU."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def label(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = loaded.signatures["serving_default"](images=tf.constant(images))
        return found["prediction"].numpy(), found["logits"].numpy()

    return label


def use(subject: Subject, path: pathlib.Path) -> str:
    """How to run it, in Python."""
    return f"""import tensorflow as tf
network = tf.saved_model.load({str(path)!r})
found = network.signatures["serving_default"](images=tf.constant(images))  # uint8 [B,H,W,3] RGB, {subject.smallest}\
 pixels or more each way
prediction, logits = found["prediction"], found["logits"]"""
