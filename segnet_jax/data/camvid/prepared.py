"""CamVid as prepared TFDS files, loaded undecoded and decoded by `read_image` and `read_label`."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segnet_jax.data.dataset import Dataset, Split, report_all_faults
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.label_files.decode_labels import read_label
from segnet_jax.data.labels.classes import CAMVID, CAMVID_TUTORIAL_VOID
from segnet_jax.system.errors import UserError, listed

LABEL_NAMES = (*CAMVID.names, "Void")
"""Names of the ids in prepared labels; void is 11, as in SegNet-Tutorial."""

FULL_SIZE_COUNTS = "full_size_counts.json"
"""File with the pixels per class of each full-size label in the archives, for the `matlab` class weights."""

_PREPARE_AGAIN = "delete it and run `python -m segnet_jax.prepare camvid` again"
_MAX_BYTES = 1_000_000  # of a JSON file; valid files have 2 kB, or 80 kB with counts

# Content of the feature descriptions that `prepare camvid` writes.
_CLASSES = "tensorflow_datasets.core.features"
_CLASS_NAMES = ("features_dict.FeaturesDict", "image_feature.Image", "labeled_image.LabeledImage", "text_feature.Text")
_WORDS = set(
    "featuresDict features image label name text pythonClassName dtype encodingFormat shape dimensions numClasses "
    "useColormap".split()
)
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def find_prepared(folder: Path) -> Path | None:
    """Return the TFDS folder: `folder`, `camvid/1.0.0` or `1.0.0` below it, or None if there is none."""
    for path in (folder, folder / "1.0.0", folder / "camvid" / "1.0.0"):
        if (path / "dataset_info.json").is_file():
            return path
    return None


def read_prepared(folder: Path) -> Dataset:
    """Load prepared CamVid into memory, undecoded (about 180 MB for all 701 frames at 360x480).

    Raises:
      UserError: If it cannot be read or contains a different dataset.
    """
    _check_description(folder)
    _check_files(folder)
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    try:
        tf.config.set_visible_devices([], "GPU")  # the GPU belongs to JAX
    except RuntimeError:
        pass  # TensorFlow is already initialized
    undecoded = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}
    try:
        builder = tfds.builder_from_directory(folder)
        names = builder.info.features["label"].names
        records = {
            split: list(builder.as_dataset(split=split, decoders=undecoded).as_numpy_iterator())
            for split in builder.info.splits
        }
    except (OSError, KeyError, AttributeError, ValueError, TypeError, ParseError, tf.errors.OpError) as error:
        message = f"{folder} cannot be read as prepared CamVid ({type(error).__name__}: {str(error)[:200]})"
        raise UserError(message, kind="broken-records", file=str(folder), fix=_PREPARE_AGAIN) from None
    if tuple(names) != LABEL_NAMES:
        message = f"the classes of {folder} are not CamVid's: {listed(names)}"
        raise UserError(message, kind="other-classes", file=str(folder), fix="pass another folder with --data")
    return report_all_faults(
        Dataset("camvid-tutorial", CAMVID, {split: _split(records[split]) for split in records}), folder
    )


def full_size_counts(folder: Path) -> dict[str, np.ndarray] | None:
    """Return pixels per class of the labels before they were resized.

    Returns:
      frame -> int64 [12], of each class and, last, of void; or None if not prepared from the archives.
    """
    path = folder / FULL_SIZE_COUNTS
    if not path.is_file():
        return None
    frames = _read_json(path).get("frames")
    if isinstance(frames, dict) and all(map(_are_counts, frames.values())):
        return {frame: np.array(counts, np.int64) for frame, counts in frames.items()}
    raise UserError(f"{path} is damaged", kind="broken-records", file=str(path), fix=_PREPARE_AGAIN)


def _are_counts(counts: object) -> bool:
    """Return whether a JSON value is a list of pixels per class, with void last."""
    return (
        isinstance(counts, list)
        and len(counts) == len(LABEL_NAMES)
        and all(type(count) is int and 0 <= count < 2**40 for count in counts)
    )


def _check_description(folder: Path) -> None:
    """Refuse unknown feature descriptions, because TFDS imports any module that they name.

    Raises:
      UserError: If a key or class is unknown.
    """
    path = folder / "features.json"
    nodes: list[object] = [_read_json(path)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            named = node.get("pythonClassName", f"{_CLASSES}.image_feature.Image")
            if not node.keys() <= _WORDS or named not in [f"{_CLASSES}.{name}" for name in _CLASS_NAMES]:
                message = f"{path} does not describe the dataset of `prepare camvid` ({listed(sorted(node))}: {named})"
                raise UserError(message, kind="other-records", file=str(path), fix=_PREPARE_AGAIN)
        nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _check_files(folder: Path) -> None:
    """Refuse unexpected file paths and truncated files, on which TensorFlow crashes.

    Raises:
      UserError: If there is such a path or file.
    """
    info = _read_json(path := folder / "dataset_info.json")
    splits = info.get("splits")
    ours = info.get("name") == "camvid" and info.get("fileFormat") == "tfrecord" and isinstance(splits, list)
    if not ours or not all(
        isinstance(split, dict)
        and split.get("filepathTemplate") == _TEMPLATE
        and split.get("name") in ("train", "val", "test")
        for split in splits
    ):
        message = f"{path} lists files that `prepare camvid` does not write"
        raise UserError(message, kind="other-records", file=str(path), fix=_PREPARE_AGAIN)
    for path in sorted(folder.glob("camvid-*.tfrecord-*")):
        try:
            whole = path.is_file() and _is_whole(path)
        except OSError:
            whole = False
        if not whole:
            message = f"{path} cannot be read as prepared CamVid: it is truncated or damaged"
            raise UserError(message, kind="broken-records", file=str(path), fix=_PREPARE_AGAIN)


def _is_whole(path: Path) -> bool:
    """Return whether a TFRecord file is complete: its record lengths add up to its size. Checksums are not verified."""
    size, place = path.stat().st_size, 0
    with open(path, "rb") as file:
        while place < size:
            file.seek(place)
            place += 8 + 4 + int.from_bytes(file.read(8), "little") + 4
    return place == size


def _read_json(path: Path) -> dict:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is not a file, or too large")
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        message = f"{path} cannot be read: {error}"
        raise UserError(message, kind="broken-records", file=str(path), fix=_PREPARE_AGAIN) from None
    return values


def _split(records: Sequence[dict]) -> Split:
    names = tuple(record["name"].decode() for record in records)
    digest, files = hashlib.sha256(), {}
    for name, record in zip(names, records, strict=True):
        sums = {part: hashlib.sha256(record[part]).hexdigest() for part in ("image", "label")}
        digest.update("\n".join((name, *sums.values(), "")).encode())
        files |= {f"{part} of {name}": digest_of_part for part, digest_of_part in sums.items()}
    return Split(names, functools.partial(_read, records, names), digest.hexdigest(), files)


def _read(records: Sequence[dict], names: Sequence[str], index: int) -> tuple[np.ndarray, np.ndarray]:
    image, label, name = records[index]["image"], records[index]["label"], names[index]
    return (
        read_image(image, f"prepared image {name}"),
        read_label(label, f"prepared label {name}", len(CAMVID), void=CAMVID_TUTORIAL_VOID),
    )
