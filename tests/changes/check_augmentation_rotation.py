"""Test `augmentation_rotation.patch`: the geometry, bit-identical input paths, and a training run with each."""

import numpy as np
import pytest
from test_device_resident import mapped, random_samples
from test_scale_and_color import by_both, whole_epoch
from test_train import digest_of, run

from segnet_jax.constants import VOID
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.augment import PIXEL, rotate
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.data.input_pipeline.tf_data import BatchShard
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.training import inputs


def rotated(image, label, degrees):
    """Rotate with numpy and with JAX, and check that the results agree."""
    angle = np.deg2rad(degrees)
    numbers = (np.int32(np.rint(PIXEL * function(angle))) for function in (np.cos, np.sin))
    return by_both(rotate, image, label, *numbers)


@pytest.mark.parametrize("size", [(6, 6), (7, 7)])
def test_quarter_turns_are_numpys(size):
    random = np.random.default_rng(0)
    image, label = random.integers(0, 256, (*size, 3), np.uint8), random.integers(0, 11, size, np.uint8)
    for turns in range(4):
        found = rotated(image, label, 90 * turns)
        assert np.array_equal(found[0], np.rot90(image, turns)) and np.array_equal(found[1], np.rot90(label, turns))


@pytest.mark.parametrize("degrees", [17.0, -160.0])
def test_a_slope_turns_with_the_image_and_its_corners_are_void(degrees):
    height, width = 40, 60
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    slope = 100 + 2 * x + y
    image = np.repeat(slope.astype(np.uint8)[..., None], 3, axis=-1)
    found, label = rotated(image, np.zeros((height, width), np.uint8), degrees)
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    from_y, from_x = cosine * y + sine * x, cosine * x - sine * y
    inside = (abs(from_y) < (height - 3) / 2) & (abs(from_x) < (width - 3) / 2)
    outside = (abs(from_y) > (height + 1) / 2) | (abs(from_x) > (width + 1) / 2)
    assert inside.sum() > 800 and outside.sum() > 100
    np.testing.assert_allclose(found[inside][:, 0], (100 + 2 * from_x + from_y)[inside], atol=1.6)  # of bytes cut off
    assert (label[inside] == 0).all() and (label[outside] == VOID).all() and not found[outside].any()


@pytest.mark.parametrize("count, place, grad_accum_steps", [(1, "device", 2), (8, "shards", 1)])
def test_both_input_paths_make_the_same_batches(count, place, grad_accum_steps):
    devices, shard = choose_devices(str(count)), BatchShard(count, 0, count, batch_size_per_device=2)
    samples = random_samples(4 * count * grad_accum_steps, 9, 14)
    batch_size = 2 * count * grad_accum_steps
    sampler = Sampler(len(samples), batch_size, seed=2, flip=True, shift=3, scale=(0.5, 2.0), color=0.3, rotation=30)
    plain = Sampler(len(samples), batch_size, seed=2, flip=True, shift=3, scale=(0.5, 2.0), color=0.3)
    source = inputs.training_input(place, samples, sampler, shard, grad_accum_steps, devices)
    make, steps = mapped(source, devices), range(sampler.steps_per_epoch)
    for step, draws in zip(steps, source.inputs([range(step, step + 1) for step in steps]), strict=True):
        made = make(draws)
        expected = tf_data.training_batch(samples, sampler, shard, grad_accum_steps, step)
        unrotated = tf_data.training_batch(samples, plain, shard, grad_accum_steps, step)
        for name in ("image", "label"):
            assert np.array_equal(made[name][:, 0], expected[name])
            assert not np.array_equal(expected[name], unrotated[name])


def test_angles_are_drawn_over_the_whole_range_and_nothing_else_is_drawn_differently():
    settings = {"seed": 4, "flip": True, "shift": 3, "scale": (0.5, 2.0), "color": 0.25}
    plain, more = (whole_epoch(Sampler(20_000, 100, **settings, rotation=angle)) for angle in (0.0, 30.0))
    assert plain.keys() == more.keys() - {"cosine", "sine"}
    assert all(np.array_equal(plain[name], more[name]) for name in plain)
    degrees = np.rad2deg(np.arctan2(more["sine"], more["cosine"]))
    np.testing.assert_allclose(np.quantile(degrees, [0, 0.25, 0.5, 0.75, 1]), [-30, -15, 0, 15, 30], atol=0.7)


def test_training_ends_with_the_same_bits_on_either_input_path(tmp_path):
    found = {}
    for name, flags in {"host": ("--input", "host"), "device": ("--input", "device"), "plain": ()}.items():
        rotation = () if name == "plain" else ("--rotation", 20)
        assert run("--run", tmp_path / name, *flags, *rotation) == 0
        found[name] = digest_of(tmp_path / name)
    assert found["host"] == found["device"] != found["plain"]
