"""Test the device input path: the step makes the same batches in device memory as the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_tf_data import augment_by_loop, random_split

from segnet_jax.constants import VOID
from segnet_jax.data.input_pipeline import device_resident, tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit, from_arrays, streamed
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.data.input_pipeline.tf_data import BatchShard
from segnet_jax.distributed.data_parallel import AXIS, choose_devices
from segnet_jax.system.errors import UserError
from segnet_jax.training import step_inputs


def random_samples(count, height, width):
    split = random_split(count, height, width)
    images, labels = zip(*map(split.read, range(count)), strict=True)
    return from_arrays(np.stack(images), np.stack(labels))


def mapped(source, devices, num_steps_axis=True):
    """Return a function from the inputs sent to the batches that the step makes, [L,K,...] or [L,...]."""

    def make(sent, store):
        if not num_steps_axis:
            return source.make_batch(sent, store)
        num_steps = len(sent["index"])
        steps = [source.make_batch({name: array[k] for name, array in sent.items()}, store) for k in range(num_steps)]
        return jax.tree.map(lambda *arrays: jnp.stack(arrays), *steps)

    program = jax.pmap(make, axis_name=AXIS, in_axes=(0, source.store_axis), devices=devices.local)
    return lambda sent: jax.device_get(program(sent, source.store))


@pytest.mark.parametrize(
    "count, place, grad_accum_steps, steps_per_dispatch, size, shift",
    [
        (1, "device", 1, 1, (5, 7), 2),
        (1, "device", 2, 3, (5, 7), 2),
        (1, "shards", 2, 1, (4, 6), 0),
        (8, "device", 1, 3, (4, 6), 0),
        (8, "device", 2, 1, (3, 7), 30),  # shifts up to ten times the height
        (8, "shards", 1, 1, (3, 5), 2),
        (8, "shards", 2, 3, (3, 7), 30),
    ],
)
def test_batches_made_on_the_device_are_those_of_the_host_bit_for_bit(
    count, place, grad_accum_steps, steps_per_dispatch, size, shift
):
    devices = choose_devices(str(count))
    shard = BatchShard(count, 0, count, batch_size_per_device=2 if count == 1 else 1)
    global_batch_size = count * shard.batch_size_per_device * grad_accum_steps
    samples = random_samples(4 * global_batch_size + 3, *size)  # four steps an epoch, three samples left over
    sampler = Sampler(len(samples), global_batch_size, seed=2, flip=True, shift=shift)
    calls = step_inputs.split_into_dispatches(
        range(3 * sampler.steps_per_epoch), steps_per_dispatch, sampler.steps_per_epoch
    )
    source = step_inputs.training_input(place, samples, sampler, shard, grad_accum_steps, devices)
    make = mapped(source, devices)
    sent = list(source.inputs(calls))
    assert len(sent) == len(calls) and max(map(len, calls)) == steps_per_dispatch
    for steps, draws in zip(calls, sent, strict=True):
        made = make(draws)
        for k, step in enumerate(steps):
            expected = tf_data.training_batch(samples, sampler, shard, grad_accum_steps, step)
            for name in ("image", "label"):
                assert made[name].dtype == np.uint8 and np.array_equal(made[name][:, k], expected[name])


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("shift", [(0, 0), (2, -3), (-5, 7), (9, 0), (16, -16), (-40, 20)])
def test_augmentation_on_the_device_equals_a_loop_over_pixels(flip, shift):
    samples = random_samples(2, 5, 7)
    numbers = {"index": 1, "flip": flip, "shift_y": shift[0], "shift_x": shift[1]}
    draws = {name: jnp.full((1, 1), number, jnp.int32) for name, number in numbers.items()}
    made = device_resident.training_batch(draws, jax.tree.map(jnp.asarray, device_resident.whole(samples)), most=40)
    image, label = augment_by_loop(*samples.read(1), bool(flip), *shift)
    assert np.array_equal(made["image"][0, 0], image) and np.array_equal(made["label"][0, 0], label)


@pytest.mark.parametrize("count, place", [(1, "device"), (8, "device"), (8, "shards")])
def test_evaluation_batches_are_those_of_the_host_padded_with_black_and_void(count, place):
    devices, shard = choose_devices(str(count)), BatchShard(count, 0, count, batch_size_per_device=2)
    samples = random_samples(19, 5, 3)  # of 20 or 32 places
    source = step_inputs.evaluation_input(place, samples, shard, devices)
    make, seen = mapped(source, devices, num_steps_axis=False), []
    for step, draws in enumerate(source.inputs()):
        made, expected = make(draws), tf_data.evaluation_batch(samples, shard, step)
        for name in ("image", "label"):
            assert made[name].dtype == np.uint8 and np.array_equal(made[name], expected[name])
        for place_of, index in np.ndenumerate(draws["index"]):
            seen.append(int(index))
            if index < 0:
                assert (made["label"][place_of] == VOID).all() and not made["image"][place_of].any()
    num_places = 20 if count == 1 else 32
    assert sorted(seen) == [-1] * (num_places - 19) + list(range(19))


@pytest.mark.parametrize("num_samples", [3, 16, 19])  # fewer than devices, a multiple, neither
def test_shards_contain_each_sample_once_and_each_device_its_part(num_samples):
    samples = from_arrays(
        np.broadcast_to(np.arange(num_samples, dtype=np.uint8)[:, None, None, None], (num_samples, 4, 5, 3)),
        np.broadcast_to(np.arange(num_samples, dtype=np.uint8)[:, None, None], (num_samples, 4, 5)),
    )
    size = -(-num_samples // 8)
    whole = device_resident.shards(samples, BatchShard(8, 0, 8, 1))
    halves = [device_resident.shards(samples, BatchShard(8, first, 4, 1)) for first in (0, 4)]  # of two processes
    for name, shape in (("images", (4, 5, 3)), ("labels", (4, 5))):
        assert whole[name].shape == (8, size, *shape)
        assert np.array_equal(np.concatenate([half[name] for half in halves]), whole[name])
        flat = whole[name].reshape(8 * size, -1)
        assert flat[:, 0].tolist() == list(range(num_samples)) + [num_samples - 1] * (8 * size - num_samples)


def test_shards_take_an_eighth_of_the_memory_that_the_whole_takes_on_each_device():
    devices, shard, samples = choose_devices("8"), BatchShard(8, 0, 8, 1), random_samples(16, 4, 5)
    sampler = Sampler(16, 8, seed=0, flip=True, shift=1)
    for place, part in (("device", 1), ("shards", 8)):
        for source in (
            step_inputs.training_input(place, samples, sampler, shard, 1, devices),
            step_inputs.evaluation_input(place, samples, shard, devices),
        ):
            held = dict.fromkeys(devices.local, 0)
            for array in source.store.values():
                for piece in array.addressable_shards:
                    held[piece.device] += piece.data.nbytes
            assert set(held.values()) == {samples.num_bytes // part}


def with_memory(monkeypatch, num_bytes):
    monkeypatch.setattr(step_inputs, "memory_of", lambda device: num_bytes)


TRAIN, VAL = (from_arrays(np.zeros((n, 5, 5, 3), np.uint8), np.zeros((n, 5, 5), np.uint8)) for n in (6, 2))
BYTES = 8 * 100  # of both, which may take a quarter of each device's memory


@pytest.mark.parametrize(
    "memory, place",
    [
        (4 * BYTES, "device"),
        (4 * BYTES - 4, "shards"),
        (BYTES // 2, "shards"),  # an eighth on each of eight devices
        (BYTES // 2 - 4, "host"),
    ],
)
def test_samples_are_placed_whole_or_sharded_or_on_the_host_by_size(monkeypatch, memory, place):
    with_memory(monkeypatch, memory)
    assert step_inputs.choose_placement("auto", choose_devices("8"), TRAIN, VAL) == place
    assert step_inputs.choose_placement("host", choose_devices("8"), TRAIN, VAL) == "host"
    if place != "host":
        assert step_inputs.choose_placement("device", choose_devices("8"), TRAIN, VAL) == place


def test_streamed_samples_stay_on_the_host(monkeypatch):
    with_memory(monkeypatch, 2**40)
    assert (
        step_inputs.choose_placement("auto", choose_devices("1"), TRAIN, streamed(random_split(2, 5, 5), (5, 5)))
        == "host"
    )


@pytest.mark.parametrize(
    "places, agreed, who",
    [
        (["device", "device"], "device", ""),
        (["device", "host"], "host", "process 1"),
        (["host", "device", "shards", "host"], "host", "processes 0, 3"),
        (["device", "shards"], "shards", "process 1"),
    ],
)
def test_all_processes_take_the_most_modest_placement_that_any_chooses_and_log_it(places, agreed, who, logged):
    for place in places:
        logged.clear()
        assert step_inputs.agree_on_placement(place, lambda mine: places) == agreed
        assert len(logged) == bool(who)
        assert all(each.startswith(f"input    {agreed} in all processes") and each.endswith(who) for each in logged)


def test_a_device_that_cannot_be_the_place_is_refused_with_what_to_do(monkeypatch):
    with_memory(monkeypatch, 64 * 10**6)
    large = CachedSplit(TRAIN.read, 1000, (500, 500), TRAIN.images, TRAIN.labels)  # claims 1 GB
    with pytest.raises(UserError) as refused:
        step_inputs.choose_placement("device", choose_devices("8"), large)
    assert str(refused.value) == (
        "--input device is not possible: the images take 1.00 GB, but the limit on 8 x cpu is 128 MB; use --input host"
    )
    message = r"decoded images do not fit in the cache; set \$SEGNET_JAX_CACHE .*; use --input host$"
    with pytest.raises(UserError, match=message):
        step_inputs.choose_placement("device", choose_devices("8"), streamed(random_split(2, 5, 5), (5, 5)))


@pytest.mark.parametrize(
    "steps, most, steps_per_epoch, expected",
    [
        (range(0, 6), 1, 3, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]),
        (range(0, 10), 3, 5, [(0, 3), (3, 5), (5, 8), (8, 10)]),
        (range(4, 11), 3, 5, [(4, 5), (5, 8), (8, 10), (10, 11)]),  # resumed at an epoch's last step
        (range(0, 7), 100, 3, [(0, 3), (3, 6), (6, 7)]),
        (range(2, 4), 2, 100, [(2, 4)]),
        (range(5, 5), 3, 5, []),
    ],
)
def test_calls_of_hand_worked_cases(steps, most, steps_per_epoch, expected):
    assert step_inputs.split_into_dispatches(steps, most, steps_per_epoch) == [range(*ends) for ends in expected]


def test_calls_together_are_all_the_steps_and_none_crosses_the_end_of_an_epoch():
    for start, length, most, steps_per_epoch in np.ndindex(9, 12, 5, 7):
        steps = range(start, start + length)
        calls = step_inputs.split_into_dispatches(steps, most + 1, steps_per_epoch + 1)
        assert [step for call in calls for step in call] == list(steps)
        for call in calls:
            assert 1 <= len(call) <= most + 1
            assert len({step // (steps_per_epoch + 1) for step in call}) == 1
