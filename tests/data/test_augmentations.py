"""Test blur, rotation, shear, vertical flips, crops and class-mix: against SciPy, Pillow and loops, on both paths."""

import hashlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from test_device_resident import random_samples
from test_order import marked_records, shares
from test_scale_and_color import assert_batches_are_equal, by_both, whole_epoch

from segnet_jax.constants import VOID
from segnet_jax.data.input_pipeline import device_resident, tf_data
from segnet_jax.data.input_pipeline.augment import ON_HOST as HOST
from segnet_jax.data.input_pipeline.augment import Backend, augment, blur, warp
from segnet_jax.data.input_pipeline.class_mix import choose_classes, class_mix
from segnet_jax.data.input_pipeline.sampler import CROP_BITS, PIXEL, Sampler, _kernels, _matrices
from segnet_jax.data.input_pipeline.tf_data import BatchShard
from segnet_jax.distributed.data_parallel import choose_devices

EACH = {
    "blur": {"blur": 1.5},
    "rotate": {"rotate": 40.0},
    "shear": {"shear": 25.0},
    "vertical_flip": {"vertical_flip": True},
    "crop": {"crop": (5, 7)},
    "class_mix": {"class_mix": 0.7},
}
ALL = {name: value for each in EACH.values() for name, value in each.items()}
ALL |= {"scale": (0.6, 1.8), "color": 0.4}
PLAIN = {"index", "flip", "shift_y", "shift_x"}


def random_pair(height, width, seed=0, num_classes=11):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image, rng.integers(0, num_classes, (height, width), np.uint8)


def matrix_of(rotation, shear=0.0):
    return _matrices(*np.deg2rad([[rotation], [shear]]))[0].astype(np.int32)


# ---------------------------------------------------------------------------------------------------------------------
# Each against an independent implementation; `by_both` also compares numpy with JAX
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rotation, shear", [(17.0, 0.0), (-160.0, 0.0), (0.0, 30.0), (0.0, -45.0), (33.0, -20.0)])
def test_rotation_and_shear_are_scipys(rotation, shear):
    height, width = 24, 31
    image, label = random_pair(height, width)
    found, known = by_both(warp, image, label, matrix_of(rotation, shear))
    a, t = np.deg2rad(rotation), np.tan(np.deg2rad(shear))
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])  # of (y, x), y downward: counterclockwise
    sheared = np.array([[1, 0], [t, 1]])  # first the shear, which moves what is below to the right
    inverse = np.linalg.inv(turn @ sheared)
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    y, x = np.mgrid[:height, :width]
    at = np.einsum("ij,jyx->iyx", inverse, np.stack([y, x]) - middle[:, None, None]) + middle[:, None, None]
    limits = np.array([height, width])[:, None, None]
    is_inside = ((at > -0.49) & (at < limits - 0.51)).all(axis=0)
    is_outside = ((at < -0.51) | (at > limits - 0.49)).any(axis=0)
    assert is_inside.sum() > 250 and is_outside.sum() > 30
    assert (known[is_outside] == VOID).all() and not found[is_outside].any()
    is_clear = is_inside & (abs(at - np.floor(at) - 0.5) > 0.01).all(axis=0)  # no two pixels are equally near
    assert np.array_equal(known[is_clear], ndimage.map_coordinates(label, at, order=0, mode="nearest")[is_clear])
    for c in range(3):
        expected = ndimage.map_coordinates(image[..., c].astype(float), at, order=1, mode="nearest")
        assert abs(found[..., c] - expected)[is_inside].max() < 2.6  # weights of 8 bits, two of them


@pytest.mark.parametrize("degrees", [25.0, -70.0, 140.0])
def test_labels_turn_as_pillow_turns_them(degrees):
    _, label = random_pair(30, 40)
    _, known = by_both(warp, np.zeros((30, 40, 3), np.uint8), label, matrix_of(degrees))
    expected = np.asarray(Image.fromarray(label).rotate(degrees, Image.Resampling.NEAREST, fillcolor=VOID))
    assert (known == expected).mean() > 0.995 and (known == VOID).any()  # but for pixels between two


@pytest.mark.parametrize("size", [(6, 6), (7, 7)])
def test_quarter_turns_are_numpys(size):
    image, label = random_pair(*size)
    for turns in range(4):
        found, known = by_both(warp, image, label, matrix_of(90.0 * turns))
        assert np.array_equal(found, np.rot90(image, turns)) and np.array_equal(known, np.rot90(label, turns))


def test_the_largest_size_and_the_strongest_map_stay_within_32_bits():
    image, label = np.full((16384, 2, 3), 200, np.uint8), np.zeros((16384, 2), np.uint8)
    found, known = by_both(warp, image, label, matrix_of(0.0, 45.0))
    is_inside = np.zeros((16384, 2), bool)
    is_inside[8191, 0] = is_inside[8192] = is_inside[8193, 1] = True  # a row further down, a pixel further right
    assert np.array_equal(known, np.where(is_inside, 0, VOID)) and (found == 200 * is_inside[..., None]).all()
    for rotation in (0, 45, 90, 180):
        assert abs(_matrices(*np.deg2rad([[rotation], [45.0]]))).reshape(2, 2).sum(axis=1).max() < 3 * PIXEL


@pytest.mark.parametrize("deviation", [0.0, 0.3, 1.0, 2.7])
def test_blur_is_scipys(deviation):
    image = random_pair(19, 26)[0]
    kernel = _kernels(np.array([deviation]), 9)[0].astype(np.int32)
    found = by_both(blur, image, kernel)
    if deviation == 0:
        assert np.array_equal(found, image)
        return
    expected = ndimage.gaussian_filter(image.astype(float), (deviation, deviation, 0), mode="nearest", radius=9)
    assert abs(found - expected).max() < 0.6


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_16_bits_are_blurred_and_turned_as_those_of_8_bits(channels):
    rng = np.random.default_rng(3)
    deep = rng.integers(0, 2**16, (19, 26, channels)).astype(np.uint16)
    deep[4:9, 3:12] = 2**16 - 1  # where 32 bits would overflow first
    deep[12:, :5] = 0
    kernel = _kernels(np.array([1.5]), 9)[0].astype(np.int32)
    found = by_both(blur, deep, kernel)
    expected = deep.astype(float)
    for axis in (0, 1):
        expected = ndimage.correlate1d(expected, kernel / 2**14, axis, mode="nearest")
    assert found.dtype == np.uint16 and abs(found - expected).max() < 1.01  # rounded after each pass

    label = np.zeros(deep.shape[:2], np.uint8)
    turned, _ = by_both(warp, deep, label, matrix_of(25.0, 10.0))
    shallow, _ = by_both(warp, (deep >> 8).astype(np.uint8), label, matrix_of(25.0, 10.0))
    assert turned.dtype == np.uint16 and turned.max() == 2**16 - 1
    assert abs(turned / 256 - shallow).max() < 2


def test_outside_an_image_each_channel_has_its_value_if_one_is_given():
    """Check an image of 20,000 +- 100, from whose mean zeros outside would deviate by 200 standard deviations."""
    image, label = np.full((20, 26, 2), (20_000, 300), np.uint16), np.zeros((20, 26), np.uint8)
    label[0] = label[:, 0] = 1
    params = {"index": 0, "flip": 0, "shift_y": 3, "shift_x": -2, "step": 2**15, "place_y": 2**13, "place_x": 2**13}
    params["matrix"] = matrix_of(30.0)

    def augmented(xp, fill):
        on_device = Backend(jnp, device_resident._flip, partial(device_resident._shift, most=5), device_resident._cut)
        arrays = {name: xp.asarray(value, xp.int32) for name, value in params.items()}
        return augment(xp.asarray(image), xp.asarray(label), arrays, HOST if xp is np else on_device, fill=fill)

    for xp in (np, jnp):
        filled, labels = augmented(xp, (20_000, 300))
        assert (np.asarray(labels) == VOID).mean() > 0.5 and np.array_equal(filled, image)
        empty, same = augmented(xp, ())
        assert np.array_equal(same, labels) and (np.asarray(empty)[np.asarray(labels) == VOID] == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 5)])
def test_blur_of_an_image_smaller_than_its_kernel(size):
    image = random_pair(*size)[0]
    kernel = _kernels(np.array([2.0]), 6)[0].astype(np.int32)
    expected = ndimage.gaussian_filter(image.astype(float), (2, 2, 0), mode="nearest", radius=6)
    assert abs(by_both(blur, image, kernel) - expected).max() < 0.6


def choose_by_sorting(label, seed):
    """Choose half of the classes with Python's integers."""

    def key(number):
        x = (seed * 256 + number) % 2**32
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    present = sorted({*label.ravel().tolist()} - {VOID}, key=key)
    return present[: len(present) // 2]


@pytest.mark.parametrize("seed", [0, 1, 77, 2**24 - 1])
def test_class_mix_is_a_loop_over_pixels(seed):
    (image, label), (other_image, other_label) = random_pair(9, 12, 1), random_pair(9, 12, 2, num_classes=255)
    other_label[:4] = VOID
    found, known = by_both(class_mix, image, label, other_image, other_label, np.int32(seed))
    chosen = choose_by_sorting(other_label, seed)
    for y, x in np.ndindex(label.shape):
        source = (other_image, other_label) if other_label[y, x] in chosen else (image, label)
        assert np.array_equal(found[y, x], source[0][y, x]) and known[y, x] == source[1][y, x]
    assert (found[:4] == image[:4]).all()  # void is never pasted
    own = by_both(class_mix, image, label, image, label, np.int32(seed))
    assert np.array_equal(own[0], image) and np.array_equal(own[1], label)


@pytest.mark.parametrize("classes", [(), (3,), (0, 254), (2, 5, 9, 31, 32), tuple(range(255))])
def test_half_of_the_classes_are_chosen_all_equally_often(classes):
    label = np.array([[*classes, VOID]], np.uint8)
    seeds = range(0, 2**24, 2**24 // 600)
    counts = sum(choose_classes(label, np.int32(seed), np).astype(int) for seed in seeds)
    absent = sorted({*range(256)} - {*classes})
    assert not counts[absent].any() and counts.sum() == len(classes) // 2 * len(seeds)
    if len(classes) > 1:
        share = len(classes) // 2 / len(classes)
        assert abs(counts[[*classes]] / len(seeds) - share).max() < 0.09  # more than four standard deviations


def test_crops_are_cut_out_everywhere_and_flips_turn_the_image_upside_down():
    image, label = random_pair(6, 9)
    base = {"flip": 0, "shift_y": 0, "shift_x": 0}
    seen = set()
    for place_y, place_x in np.ndindex(7, 11):
        places = {"crop_y": place_y * (2**CROP_BITS - 1) // 6, "crop_x": place_x * (2**CROP_BITS - 1) // 10}
        found, known = augment(image, label, base | places, HOST, crop=(4, 5))
        matches = [
            (y, x)
            for y, x in np.ndindex(3, 5)
            if np.array_equal(found, image[y : y + 4, x : x + 5]) and np.array_equal(known, label[y : y + 4, x : x + 5])
        ]
        assert len(matches) == 1
        seen |= {*matches}
    assert seen == {*np.ndindex(3, 5)}
    found, known = augment(image, label, base | {"vertical_flip": 1}, HOST)
    assert np.array_equal(found, np.flipud(image)) and np.array_equal(known, np.flipud(label))


# ---------------------------------------------------------------------------------------------------------------------
# Parameters
# ---------------------------------------------------------------------------------------------------------------------
SETTINGS = {"seed": 4, "flip": True, "shift": 3}
MANY = Sampler(20_000, 100, **SETTINGS, **ALL | {"augment": "mine:own"})


def is_uniform(values, low, high):
    counts = np.histogram(np.clip(values, low, high), 10, (low, high))[0]  # clipped, because parameters are rounded
    return abs(values).max() < 1.001 * max(-low, high) and abs(counts / 2000 - 1).max() < 0.1


def test_parameters_are_uniform_over_their_ranges():
    drawn = whole_epoch(MANY)
    angles = whole_epoch(Sampler(20_000, 100, **SETTINGS, rotate=40.0))["matrix"]
    assert is_uniform(np.rad2deg(np.arctan2(angles[:, 1], angles[:, 0])), -40, 40)
    slants = whole_epoch(Sampler(20_000, 100, **SETTINGS, shear=25.0))["matrix"]
    assert is_uniform(np.rad2deg(np.arctan2(-slants[:, 2], slants[:, 3])), -25, 25)
    assert is_uniform(drawn["crop_y"], 0, 2**15) and is_uniform(drawn["crop_x"], 0, 2**15)
    assert is_uniform(drawn["class_seed"], 0, 2**24)
    assert abs(drawn["vertical_flip"].mean() - 0.5) < 0.02 and abs((drawn["key"] > 0).mean() - 0.5) < 0.02
    kernel = drawn["kernel"] / 2**14
    assert kernel.shape[1] == 2 * 5 + 1 and (kernel.sum(axis=1) == 1).all() and (kernel >= 0).all()
    deviations = np.sqrt((kernel * np.arange(-5, 6) ** 2).sum(axis=1))
    assert deviations.max() < 1.5 and 0.7 < deviations.mean() < 0.75
    distance = (drawn["partner"] - drawn["index"]) % 20_000
    assert abs((distance == 0).mean() - 0.3) < 0.02
    assert abs(np.histogram(distance[distance > 0], 8, (1, 20_000))[0] / (distance > 0).mean() / 2500 - 1).max() < 0.1


@pytest.mark.parametrize("name", EACH)
def test_each_is_drawn_alone_and_changes_no_other_parameter(name):
    alone, drawn = (
        whole_epoch(Sampler(2000, 100, **SETTINGS, **EACH[name])),
        whole_epoch(Sampler(2000, 100, **SETTINGS)),
    )
    assert drawn.keys() == PLAIN < alone.keys() and all(np.array_equal(alone[each], drawn[each]) for each in PLAIN)
    others = {other: value for each, values in EACH.items() if each != name for other, value in values.items()}
    others = whole_epoch(Sampler(2000, 100, **SETTINGS, **others, scale=(0.6, 1.8), color=0.4))
    both = whole_epoch(Sampler(2000, 100, **SETTINGS, **ALL))
    shared = others.keys() - {"matrix"}  # of rotation and shear together
    assert all(np.array_equal(both[each], others[each]) for each in shared)


def test_the_draws_of_a_seed_are_the_same_on_every_machine_and_in_every_release():
    digest = hashlib.sha256()
    for name, array in sorted(whole_epoch(MANY).items()):
        digest.update(name.encode() + array.astype("<i8").tobytes())
    # Recorded when written; a change breaks resuming of every run that uses them.
    assert digest.hexdigest() == "80fe5d21f880b7712a01a0589e8369a4550c0a8b49e1e4c8b77f3317100f6f3e"


# ---------------------------------------------------------------------------------------------------------------------
# Both input paths, devices, processes
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", EACH)
def test_each_makes_the_same_batches_on_both_paths(name):
    samples, shard = random_samples(9, 9, 14), BatchShard(1, 0, 1, batch_size_per_device=3)
    sampler = Sampler(9, 3, seed=2, flip=True, shift=2, **EACH[name])
    store = jax.tree.map(jnp.asarray, device_resident.whole(samples))
    make = jax.jit(lambda draws: device_resident.training_batch(draws, store, most=2, crop=sampler.crop))
    plain, steps = Sampler(9, 3, seed=2, flip=True, shift=2), [range(step, step + 1) for step in range(3)]
    for step, draws in enumerate(device_resident.training_draws(sampler, shard, 1, steps)):
        made = make({each: jnp.asarray(array[0, 0]) for each, array in draws.items()})
        expected = tf_data.training_batch(samples, sampler, shard, 1, step)
        without = tf_data.training_batch(samples, plain, shard, 1, step)
        for each in ("image", "label"):
            assert made[each].dtype == np.uint8 and np.array_equal(made[each], expected[each][0])
            is_changed = not np.array_equal(without[each], expected[each])
            assert is_changed or (name, each) == ("blur", "label")


@pytest.mark.parametrize("count, place, grad_accum_steps, steps", [(1, "device", 2, 2), (8, "shards", 1, 1)])
def test_all_together_make_the_same_batches_on_both_paths(count, place, grad_accum_steps, steps):
    devices, shard = choose_devices(str(count)), BatchShard(count, 0, count, batch_size_per_device=2)
    global_batch_size = 2 * count * grad_accum_steps
    samples = random_samples(2 * global_batch_size + 1, 9, 14)
    sampler = Sampler(len(samples), global_batch_size, seed=2, flip=True, shift=3, **ALL)
    shape = assert_batches_are_equal(samples, sampler, shard, devices, place, grad_accum_steps, steps)
    assert shape == (5, 7, 3)


def test_pictures_do_not_depend_on_devices_and_processes():
    samples, sampler, sums = (
        marked_records(),
        Sampler(37, 8, seed=3, flip=True, shift=2, **ALL | {"crop": (3, 4)}),
        set(),
    )
    for num_devices, num_processes in ((1, 1), (8, 1), (8, 2)):
        digest = hashlib.sha256()
        for step in range(8):
            parts = [
                tf_data.training_batch(samples, sampler, shard, 1, step) for shard in shares(num_devices, num_processes)
            ]
            for name, size in (("image", (3, 4, 3)), ("label", (3, 4))):
                digest.update(np.concatenate([part[name] for part in parts]).reshape(8, *size).tobytes())
        sums.add(digest.hexdigest())
    assert len(sums) == 1


def test_the_program_of_all_has_no_scatter():
    samples, sampler = random_samples(4, 8, 9), Sampler(4, 2, seed=0, flip=True, shift=1, **ALL)
    store = jax.tree.map(jnp.asarray, device_resident.whole(samples))
    draws = next(device_resident.training_draws(sampler, BatchShard(1, 0, 1, 2), 1, [range(1)]))
    draws = {name: jnp.asarray(array[0, 0]) for name, array in draws.items()}
    make = jax.jit(lambda draws: device_resident.training_batch(draws, store, most=1, crop=sampler.crop))
    assert "scatter" not in make.lower(draws).as_text()
