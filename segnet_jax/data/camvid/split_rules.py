"""Apply CamVid's split rules to a dataset, and count the pixels of labels."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from segnet_jax.data.camvid_frames import FRAMES, missing_frames, split_names
from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.system.errors import UserError, listed


def apply_split_rule(dataset: Dataset, rule: str) -> Dataset:
    """Rearrange the 701 frames of CamVid by a rule of `split_names`, ignoring the dataset's splits.

    Raises:
      UserError: If the rule is unknown, frames are missing, or samples are not CamVid frames.
    """
    names = split_names(rule)
    places = {name: (split, index) for split in dataset.splits.values() for index, name in enumerate(split.names)}
    missing, others = missing_frames(places), sorted(set(places) - set(FRAMES))
    if missing:
        raise UserError(
            f"--split-rule {rule} needs all 701 frames of CamVid, but {len(missing)} are missing: {listed(missing)}; "
            "run `python -m segnet_jax.prepare camvid` and pass --data camvid"
        )
    if others:
        raise UserError(f"--split-rule {rule} accepts only frames of CamVid, but the dataset also has {listed(others)}")
    source = ",".join(split.fingerprint for split in dataset.splits.values())
    files = {name: digest for split in dataset.splits.values() for name, digest in split.files.items()}
    splits = {}
    for split, chosen in names.items():
        digest = hashlib.sha256("\n".join((source, *chosen)).encode()).hexdigest()
        read = functools.partial(_read, [places[name] for name in chosen])
        splits[split] = Split(chosen, read, digest, files)
    return dataclasses.replace(dataset, name=f"camvid-{rule}", splits=splits, sizes={})


def _read(places: Sequence[tuple[Split, int]], index: int) -> tuple[np.ndarray, np.ndarray]:
    split, place = places[index]
    return split.read(place)


def pixel_counts(label: np.ndarray) -> np.ndarray:
    """Count the pixels of each class and, last, of void.

    Args:
      label: uint8 [H,W] of CamVid's class ids or VOID.

    Returns:
      int64 [12].
    """
    counts = np.bincount(label.ravel(), minlength=256)
    return np.append(counts[: len(CAMVID)], counts[-1])
