"""Test the host input path: decoding, augmentation, tf.data."""

import errno
import hashlib
import os
import time

import loky
import numpy as np
import pytest

from segnet_jax.constants import VOID
from segnet_jax.data.dataset import Split
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.augment import ON_HOST, augment
from segnet_jax.data.input_pipeline.cache import CachedSplit, streamed
from segnet_jax.data.input_pipeline.class_counts import count_labels, count_split
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.system import files
from segnet_jax.system.errors import UserError


def fails_with(number):
    def fail(*args, **settings):
        raise OSError(number, os.strerror(number))

    return fail


def random_split(count, height, width, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, height, width, 3), np.uint8)
    labels = rng.choice(np.array([0, 1, 2, VOID], np.uint8), (count, height, width))
    names = tuple(f"frame{number}" for number in range(count))
    return Split(names, lambda i: (images[i], labels[i]), hashlib.sha256(images.tobytes()).hexdigest())


def augment_by_loop(image, label, flip, shift_y, shift_x):
    height, width = label.shape
    new_image, new_label = np.zeros_like(image), np.full_like(label, VOID)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y - shift_y, x - shift_x
            if 0 <= from_y < height and 0 <= from_x < width:
                column = width - 1 - from_x if flip else from_x
                new_image[y, x], new_label[y, x] = image[from_y, column], label[from_y, column]
    return new_image, new_label


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [(0, 0), (2, -3), (-4, 1), (5, 7), (-9, 20)])
def test_augmentation_equals_a_loop_over_pixels(flip, shift):
    image, label = random_split(1, 5, 7).read(0)
    params = dict(zip(("flip", "shift_y", "shift_x"), np.int32([flip, *shift]), strict=True))
    for ours, looped in zip(
        augment(image, label, params, ON_HOST), augment_by_loop(image, label, flip, *shift), strict=True
    ):
        assert np.array_equal(ours, looped)


def test_batches_are_the_samplers_parameters_applied_sample_by_sample():
    split, sampler = random_split(13, 6, 8), Sampler(13, 12, seed=4, flip=True, shift=2)
    shard = tf_data.BatchShard(num_devices=3, first_device=0, num_local_devices=3, batch_size_per_device=2)
    batches = list(tf_data.training_batches(streamed(split, (6, 8)), sampler, shard, 2, range(3)))
    assert len(batches) == 3
    for step, batch in enumerate(batches):
        assert batch["image"].shape == (3, 2, 2, 6, 8, 3) and batch["label"].shape == (3, 2, 2, 6, 8)
        draws = sampler.batch(step)
        for device in range(3):
            for accumulated in range(2):
                for slot in range(2):
                    i = accumulated * 6 + device * 2 + slot
                    image, label = augment_by_loop(
                        *split.read(int(draws.index[i])), draws.flip[i], draws.shift_y[i], draws.shift_x[i]
                    )
                    assert np.array_equal(batch["image"][device, accumulated, slot], image)
                    assert np.array_equal(batch["label"][device, accumulated, slot], label)


def test_batches_from_any_step_on_are_the_tail_of_all_batches():
    split, sampler = random_split(10, 4, 4), Sampler(10, 4, seed=0, flip=True, shift=1)
    shard = tf_data.BatchShard(1, 0, 1, 4)
    samples = streamed(split, (4, 4))
    whole = list(tf_data.training_batches(samples, sampler, shard, 1, range(6)))
    tail = list(tf_data.training_batches(samples, sampler, shard, 1, range(3, 6)))
    for ours, expected in zip(tail, whole[3:], strict=True):
        assert np.array_equal(ours["image"], expected["image"]) and np.array_equal(ours["label"], expected["label"])


def test_evaluation_shows_every_sample_once_and_pads_with_void():
    split = random_split(11, 4, 6)
    shares = [tf_data.BatchShard(4, first, 2, 2) for first in (0, 2)]  # two processes of two devices
    seen = []
    for shard in shares:
        assert tf_data.num_evaluation_steps(11, shard) == 2
        for step, batch in enumerate(tf_data.evaluation_batches(streamed(split, (4, 6)), shard)):
            indices = tf_data.evaluation_indices(11, shard, step)
            for place, index in np.ndenumerate(indices):
                if index < 0:
                    assert (batch["label"][place] == VOID).all() and not batch["image"][place].any()
                else:
                    seen.append(index)
                    assert np.array_equal(batch["image"][place], split.read(index)[0])
                    assert np.array_equal(batch["label"][place], split.read(index)[1])
    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize("num_cpus, most", [(2, 2), (192, 16)])
def test_no_more_batches_wait_than_there_are_threads_and_two(num_cpus, most, monkeypatch):
    monkeypatch.setattr(loky, "cpu_count", lambda: num_cpus)
    monkeypatch.setattr(os, "cpu_count", lambda: 192)  # of the machine, whatever this process may use of it
    split, reads = random_split(1, 2, 2), []

    def read(index):
        reads.append(index)
        return split.read(0)

    sampler = Sampler(100, 1, seed=0, flip=False, shift=0)
    batches = tf_data.training_batches(
        CachedSplit(read, 100, (2, 2)), sampler, tf_data.BatchShard(1, 0, 1, 1), 1, range(100)
    )
    next(batches)
    seen = -1
    while seen != len(reads):  # until it stops, as nothing consumes the next
        seen = len(reads)
        time.sleep(0.3)
    assert most <= seen <= most + 2 + 1  # the one is what was taken
    assert len(list(batches)) == 99 and len(reads) == 100


def test_a_fault_found_while_streaming_is_raised_unchanged():
    def read(index):
        raise UserError(f"label {index} is damaged")

    sampler = Sampler(4, 4, seed=0, flip=False, shift=0)
    with pytest.raises(UserError, match=r"^label \d is damaged$"):
        list(
            tf_data.training_batches(CachedSplit(read, 4, (4, 4)), sampler, tf_data.BatchShard(1, 0, 1, 4), 1, range(1))
        )


def test_labels_are_counted_as_by_a_loop_and_kept_by_fingerprint(tmp_path):
    split = random_split(5, 6, 7)
    counts = count_split(split, 4, tmp_path)
    for class_id in range(4):
        in_each = [(split.read(i)[1] == class_id).sum() for i in range(5)]
        assert counts.pixels[class_id] == sum(in_each)
        assert counts.image_pixels[class_id] == sum(42 for number in in_each if number)
    assert counts.total == 5 * 42

    def fail(index):
        raise AssertionError("the labels were read again")

    again = count_split(Split(split.names, fail, split.fingerprint), 4, tmp_path)
    assert np.array_equal(again.pixels, counts.pixels) and np.array_equal(again.image_pixels, counts.image_pixels)
    assert (again.total, again.num_void) == (counts.total, counts.num_void) == (5 * 42, 0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_text(path.read_text()[:30]),
        lambda path: path.write_bytes(b"\xff\0"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"pixels": 7, "image_pixels": 7, "total": 1, "num_void": 0}'),
        lambda path: path.write_text(path.read_text().replace("num_void", "num")),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["emptied", "cut off", "no text", "of another kind", "of no classes", "a key lacks", "a folder"],
)
def test_counts_that_cannot_be_read_are_counted_again(damage, tmp_path):
    split = random_split(5, 6, 7)
    counts = count_split(split, 4, tmp_path)
    (kept,) = tmp_path.iterdir()
    damage(kept)
    again = count_split(split, 4, tmp_path)
    assert np.array_equal(again.pixels, counts.pixels) and np.array_equal(again.image_pixels, counts.image_pixels)
    assert (again.total, again.num_void) == (counts.total, counts.num_void)


def in_the_way(cache, monkeypatch):
    cache.write_text("a file where the cache should be")


def read_only(cache, monkeypatch):
    cache.mkdir()
    monkeypatch.setattr(files, "open", fails_with(errno.EROFS), raising=False)


def full(cache, monkeypatch):
    monkeypatch.setattr(os, "fsync", fails_with(errno.ENOSPC))


@pytest.mark.parametrize("hinder", [in_the_way, read_only, full])
def test_counts_are_not_kept_where_nothing_can_be_written(hinder, tmp_path, monkeypatch):
    split, cache = random_split(5, 6, 7), tmp_path / "cache"
    hinder(cache, monkeypatch)
    counts = count_split(split, 4, cache)
    assert counts.pixels[2] == sum((split.read(i)[1] == 2).sum() for i in range(5))
    assert not cache.is_dir() or not list(cache.iterdir())


def test_labels_of_nothing_but_void_are_counted():
    labels = [np.full((2, 3), VOID, np.uint8), np.zeros((2, 3), np.uint8), np.full((2, 3), VOID, np.uint8)]
    assert count_labels(labels.__getitem__, 3, 2).num_void == 2
