"""Test the sampler: order, flips and shifts depend only on (seed, epoch)."""

import hashlib

import numpy as np
import pytest

from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.data.input_pipeline.tf_data import BatchShard
from segnet_jax.system.errors import UserError


def epoch_of(sampler, epoch):
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    return np.concatenate([sampler.batch(step).index for step in steps])


def test_an_epoch_takes_each_sample_at_most_once_and_leaves_out_less_than_a_batch():
    sampler = Sampler(num_samples=367, global_batch_size=32, seed=3, flip=True, shift=10)
    seen = epoch_of(sampler, 5)
    assert sampler.steps_per_epoch == 11
    assert len(seen) == len(set(seen)) == 352


def test_epochs_and_seeds_have_orders_of_their_own():
    sampler = Sampler(100, 4, seed=0, flip=True, shift=10)
    other = Sampler(100, 4, seed=1, flip=True, shift=10)
    assert not np.array_equal(epoch_of(sampler, 0), epoch_of(sampler, 1))
    assert not np.array_equal(epoch_of(sampler, 0), epoch_of(other, 0))
    assert np.array_equal(epoch_of(sampler, 7), epoch_of(Sampler(100, 4, seed=0, flip=True, shift=10), 7))


def test_a_sample_keeps_its_flip_and_shift_for_any_batch_size():
    small, large = (Sampler(64, size, seed=9, flip=True, shift=10) for size in (4, 32))
    for field in ("index", "flip", "shift_y", "shift_x"):
        many = np.concatenate([getattr(small.batch(step), field) for step in range(8)])
        assert np.array_equal(many, getattr(large.batch(0), field))


def test_flips_are_even_and_shifts_uniform_over_both_ends():
    draws = Sampler(20_000, 20_000, seed=0, flip=True, shift=2).batch(0)
    assert abs(draws.flip.mean() - 0.5) < 0.02
    for shift in (draws.shift_y, draws.shift_x):
        values, counts = np.unique(shift, return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert abs(counts / 20_000 - 0.2).max() < 0.02
    assert abs(np.corrcoef(draws.shift_y, draws.shift_x)[0, 1]) < 0.03


def test_without_augmentation_nothing_is_flipped_or_shifted():
    draws = Sampler(50, 50, seed=0, flip=False, shift=0).batch(0)
    assert not draws.flip.any() and not draws.shift_y.any() and not draws.shift_x.any()


def test_the_plan_of_a_seed_is_the_same_on_every_machine_and_in_every_release():
    sampler = Sampler(367, 4, seed=0, flip=True, shift=10)
    digest = hashlib.sha256()
    for step in range(20 * sampler.steps_per_epoch):
        draws = sampler.batch(step)
        digest.update(np.stack([draws.index, draws.flip, draws.shift_y, draws.shift_x]).astype("<i8").tobytes())
    # Recorded when the sampler was written; a change breaks resuming of every existing run.
    assert digest.hexdigest() == "5797c43a6ca4e0d64e1e4d4cacc1e846b04afe356b065bd768c8e83cc68a74f7"


def test_too_few_images_for_one_step_are_refused_with_both_numbers():
    with pytest.raises(UserError, match="5 training images are fewer than the global batch of 8"):
        Sampler(5, 8, seed=0, flip=True, shift=10)


def test_processes_and_devices_share_each_batch_without_overlap():
    whole = BatchShard(num_devices=8, first_device=0, num_local_devices=8, batch_size_per_device=2).places(
        grad_accum_steps=3
    )
    halves = [BatchShard(8, first, 4, 2).places(grad_accum_steps=3) for first in (0, 4)]
    assert whole.shape == (8, 3, 2)
    assert np.array_equal(np.concatenate(halves), whole)
    assert sorted(whole.ravel()) == list(range(48))
    # Accumulated batch a is the a-th 16 of the 48, so that three steps' worth of images are what they would be.
    assert sorted(whole[:, 1].ravel()) == list(range(16, 32))
