"""Folds for cross-validation over the training and validation images."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from segnet_jax.data.dataset import Dataset, regroup
from segnet_jax.data.sequences import sequence_and_frame, sequences_of
from segnet_jax.system.errors import UserError, listed

FOLD_SEED = 0
"""Seed of the folds; not `--seed`, so that runs with different seeds are scored on the same images."""


def assign_folds(names: Sequence[str], num_folds: int) -> tuple[list[int], str]:
    """Assign images to folds of about equal size, the same way on every machine.

    Sequences are not divided, because similar frames in training and validation would make the scores too high. With
    fewer sequences than folds, each fold consists of consecutive frames.

    Args:
      names: unique image names.
      num_folds: number of folds.

    Returns:
      The fold of each image, counted from 0, and a description of how the folds were formed.

    Raises:
      UserError: If there are fewer images than folds.
    """
    if len(names) < num_folds:
        raise UserError(f"--folds {num_folds} needs at least as many images, got {len(names)}: use fewer folds")
    sequences = sequences_of(names)
    if sequences is None:
        order = sorted(range(len(names)), key=lambda i: hashlib.sha256(f"{FOLD_SEED} {names[i]}".encode()).digest())
        return _consecutive(order, num_folds), "by image"
    counts = Counter(sequences)
    if len(counts) < num_folds:
        order = sorted(range(len(names)), key=lambda i: sequence_and_frame(names[i]))
        return _consecutive(order, num_folds), f"by consecutive frames, as there are only {len(counts)} sequences"
    sizes, of_sequence = [0] * num_folds, {}
    for sequence, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):  # the largest first
        fold = sizes.index(min(sizes))
        of_sequence[sequence], sizes[fold] = fold, sizes[fold] + count
    return [of_sequence[sequence] for sequence in sequences], f"by {len(counts)} sequences"


def _consecutive(order: Sequence[int], num_folds: int) -> list[int]:
    """Cut `order` into folds of about equal size, and return the fold of each index."""
    folds = [0] * len(order)
    for fold, part in enumerate(np.array_split(order, num_folds)):
        for index in part:
            folds[index] = fold
    return folds


def take_fold(dataset: Dataset, num_folds: int, fold: int) -> Dataset:
    """Return a dataset that validates on one fold of the training and validation images and trains on the others.

    `fold` is counted from 1. The test split is unchanged.

    Raises:
      UserError: If two images share a name, or there are fewer images than folds.
    """
    splits = [dataset.splits[name] for name in ("train", "val") if name in dataset.splits]
    places = [(split, index) for split in splits for index in range(len(split))]
    names = [split.names[index] for split, index in places]
    if len(set(names)) < len(names):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"--folds needs unique names, but train and val share {listed(twice)}: rename them")
    folds, how = assign_folds(names, num_folds)
    parts = {
        "train": [place for place, each in zip(places, folds, strict=True) if each != fold - 1],
        "val": [place for place, each in zip(places, folds, strict=True) if each == fold - 1],
    }
    note = f"folds    {fold} of {num_folds}, {how}: {len(parts['train'])} train, {len(parts['val'])} val"
    return regroup(dataset, f"{dataset.name}-fold-{fold}-of-{num_folds}", parts, splits, notes=(note,))
