"""The TFDS builder `camvid`. Imports TensorFlow Datasets, so import it only to write datasets."""

import io
import json
import sys
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import track

from segnet_jax.constants import VOID
from segnet_jax.data.camvid.prepared import FULL_SIZE_COUNTS, LABEL_NAMES
from segnet_jax.data.dataset import Split
from segnet_jax.data.images.fit import resize
from segnet_jax.data.labels.classes import CAMVID_TUTORIAL_VOID


class Camvid(tfds.core.GeneratorBasedBuilder):
    """CamVid street scenes, eleven classes and void, as PNG: image RGB, label class ids with 11 for void."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        splits: Mapping[str, Split],
        image_size: tuple[int, int],
        counts: Mapping[str, np.ndarray] | None = None,
        **kwargs,
    ):
        """Initialize the builder with samples from any reader.

        Args:
          splits: the splits to write.
          image_size: height and width that all samples are resized to.
          counts: frame -> int64 [12], pixels of each class and of void at full size, stored with the samples.
          **kwargs: passed to TFDS, such as data_dir.
        """
        self._readers, self._image_size, self._counts = splits, image_size, counts
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.LabeledImage(labels=list(LABEL_NAMES), shape=(None, None, 1)),
                    "name": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        if self._counts is not None:  # in the folder that TFDS renames when complete
            frames = {frame: counts.tolist() for frame, counts in self._counts.items()}
            (self.data_path / FULL_SIZE_COUNTS).write_text(json.dumps({"classes": LABEL_NAMES, "frames": frames}))
        return {name: self._generate_examples(name, split) for name, split in self._readers.items()}

    def _generate_examples(self, split_name, split):
        shown = {"console": Console(stderr=True), "transient": True, "disable": not sys.stderr.isatty()}
        for index in track(range(len(split)), f"writing {split_name}", **shown):
            image, label = resize(*split.read(index), *self._image_size)
            stored = np.where(label == VOID, np.uint8(CAMVID_TUTORIAL_VOID), label)
            yield index, {"name": split.names[index], "image": _png(image), "label": _png(stored)}


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
