"""Test the folds of cross-validation: they partition the images exactly, by sequence where there are enough."""

import numpy as np
import pytest

from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.data.folds import assign_folds, take_fold
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.system.errors import UserError

DRIVES = [f"{drive}_{frame:05}" for drive, count in (("a", 7), ("b", 5), ("c", 4), ("d", 3)) for frame in range(count)]


def make_dataset(**names):
    """Make a dataset whose samples contain their index."""
    splits, number = {}, 0
    for split, each in names.items():
        start = number

        def read(index, start=start):
            return np.full((1, 1, 3), start + index, np.uint8), np.full((1, 1), start + index, np.uint8)

        splits[split] = Split(tuple(each), read, f"sum of {split}", {name: f"sum of {name}" for name in each})
        number += len(each)
    return Dataset("streets", CAMVID, splits)


def test_whole_sequences_are_in_one_fold_and_folds_are_about_equal():
    folds, how = assign_folds(DRIVES, 3)
    by_drive = {drive: {fold for name, fold in zip(DRIVES, folds, strict=True) if name[0] == drive} for drive in "abcd"}
    assert by_drive == {"a": {0}, "b": {1}, "c": {2}, "d": {2}} and how == "by 4 sequences"  # 7, 5 and 4 + 3


def test_fewer_sequences_than_folds_are_cut_into_consecutive_frames():
    shuffled = list(np.random.default_rng(0).permutation(DRIVES))
    folds, how = assign_folds(shuffled, 5)
    in_time = [fold for _, fold in sorted(zip(shuffled, folds, strict=True))]
    assert in_time == sorted(in_time) and [in_time.count(fold) for fold in range(5)] == [4, 4, 4, 4, 3]
    assert how == "by consecutive frames, as there are only 4 sequences"


def test_images_without_sequences_are_drawn_alike_in_any_order():
    names = [f"photo {letter}" for letter in "abcdefghijklm"]
    folds, how = assign_folds(names, 4)
    again, _ = assign_folds(names[::-1], 4)
    assert folds == again[::-1] and how == "by image" and folds != sorted(folds)
    assert sorted(folds.count(fold) for fold in range(4)) == [3, 3, 3, 4]


@pytest.mark.parametrize("num_folds", [2, 3, 4, 7])
def test_every_image_validates_exactly_once_and_the_test_split_stays(num_folds):
    dataset = make_dataset(train=DRIVES[:12], val=DRIVES[12:], test=["x_1", "x_2"])
    validated = []
    for fold in range(1, num_folds + 1):
        found = take_fold(dataset, num_folds, fold)
        train, val = found.splits["train"], found.splits["val"]
        assert sorted((*train.names, *val.names)) == DRIVES and found.splits["test"] is dataset.splits["test"]
        for split in (train, val):
            numbers = [int(split.read(index)[1][0, 0]) for index in range(len(split))]
            assert [DRIVES[number] for number in numbers] == list(split.names)
        assert train.fingerprint != val.fingerprint and found.name == f"streets-fold-{fold}-of-{num_folds}"
        validated += val.names
    assert sorted(validated) == DRIVES


def test_bad_folds_are_refused():
    with pytest.raises(UserError, match="--folds 5 needs at least as many images, got 3: use fewer folds"):
        take_fold(make_dataset(train=["a", "b"], val=["c"]), 5, 1)
    with pytest.raises(UserError, match="--folds needs unique names, but train and val share a: rename them"):
        take_fold(make_dataset(train=["a", "b"], val=["a"]), 2, 1)
