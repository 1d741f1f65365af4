"""Test `augmentation_elastic.patch`: the field, bit-identical input paths, and a training run with each."""

import numpy as np
import pytest
from scipy import ndimage
from test_device_resident import mapped, random_samples
from test_scale_and_color import by_both, whole_epoch
from test_train import digest_of, run

from segnet_jax.constants import VOID
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.augment import bend
from segnet_jax.data.input_pipeline.sampler import GRID, Sampler
from segnet_jax.data.input_pipeline.tf_data import BatchShard
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.training import step_inputs


@pytest.mark.parametrize("size", [(24, 31), (2, 3), (1, 9)])
def test_pixels_are_displaced_as_scipy_displaces_them(size):
    random = np.random.default_rng(0)
    image, label = random.integers(0, 256, (*size, 3), np.uint8), random.integers(0, 11, size, np.uint8)
    offsets = random.integers(-64 * 3, 64 * 3, (2, GRID, GRID)).astype(np.int32)
    found, known = by_both(bend, image, label, offsets)
    place = np.meshgrid(*(np.linspace(0, GRID - 1, each) if each > 1 else [0.0] for each in size), indexing="ij")
    field = np.stack([ndimage.map_coordinates(each / 64, place, order=1, mode="nearest") for each in offsets])
    at = np.indices(size) + field
    limits = np.array(size)[:, None, None]
    is_inside = ((at > -0.45) & (at < limits - 0.55)).all(axis=0)
    is_outside = ((at < -0.55) | (at > limits - 0.45)).any(axis=0)
    assert is_inside.any() and (known[is_outside] == VOID).all() and not found[is_outside].any()
    is_clear = is_inside & (abs(at - np.floor(at) - 0.5) > 0.05).all(axis=0)
    assert np.array_equal(known[is_clear], ndimage.map_coordinates(label, at, order=0, mode="nearest")[is_clear])
    for c in range(3):
        expected = ndimage.map_coordinates(image[..., c].astype(float), at, order=1, mode="nearest")
        assert abs(found[..., c] - expected)[is_inside].max(initial=0) < 16  # positions in 256ths of a grid's cell


def test_without_offsets_nothing_moves():
    random = np.random.default_rng(0)
    image, label = random.integers(0, 256, (7, 9, 3), np.uint8), random.integers(0, 11, (7, 9), np.uint8)
    found, known = by_both(bend, image, label, np.zeros((2, GRID, GRID), np.int32))
    assert np.array_equal(found, image) and np.array_equal(known, label)


@pytest.mark.parametrize("count, place, grad_accum_steps", [(1, "device", 2), (8, "shards", 1)])
def test_both_input_paths_make_the_same_batches(count, place, grad_accum_steps):
    devices, shard = choose_devices(str(count)), BatchShard(count, 0, count, batch_size_per_device=2)
    samples = random_samples(4 * count * grad_accum_steps, 9, 14)
    batch_size = 2 * count * grad_accum_steps
    settings = {"seed": 2, "flip": True, "shift": 3, "scale": (0.5, 2.0), "rotate": 30.0, "class_mix": 0.5}
    sampler, plain = (Sampler(len(samples), batch_size, **settings, elastic=each) for each in (2.5, 0.0))
    source = step_inputs.training_input(place, samples, sampler, shard, grad_accum_steps, devices)
    make, steps = mapped(source, devices), range(sampler.steps_per_epoch)
    for step, draws in zip(steps, source.inputs([range(step, step + 1) for step in steps]), strict=True):
        made = make(draws)
        expected = tf_data.training_batch(samples, sampler, shard, grad_accum_steps, step)
        unmoved = tf_data.training_batch(samples, plain, shard, grad_accum_steps, step)
        for name in ("image", "label"):
            assert np.array_equal(made[name][:, 0], expected[name])
            assert not np.array_equal(expected[name], unmoved[name])


def test_offsets_are_drawn_over_the_whole_range_and_nothing_else_is_drawn_differently():
    settings = {"seed": 4, "flip": True, "shift": 3, "scale": (0.5, 2.0), "color": 0.25, "rotate": 10.0, "blur": 1.0}
    plain, more = (whole_epoch(Sampler(20_000, 100, **settings, elastic=pixels)) for pixels in (0.0, 4.0))
    assert plain.keys() == more.keys() - {"offsets"}
    assert all(np.array_equal(plain[name], more[name]) for name in plain)
    quantiles = np.quantile(more["offsets"] / 64, [0, 0.25, 0.5, 0.75, 1], axis=0)
    np.testing.assert_allclose(
        quantiles, np.broadcast_to(np.reshape([-4, -2, 0, 2, 4], (5, 1, 1, 1)), quantiles.shape), atol=0.2
    )


def test_training_ends_with_the_same_bits_on_either_input_path(tmp_path):
    found = {}
    for name, flags in {"host": ("--input", "host"), "device": ("--input", "device"), "plain": ()}.items():
        elastic = () if name == "plain" else ("--elastic", 3)
        assert run("--run", tmp_path / name, *flags, *elastic) == 0
        found[name] = digest_of(tmp_path / name)
    assert found["host"] == found["device"] != found["plain"]
