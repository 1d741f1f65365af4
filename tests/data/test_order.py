"""Check that the order of samples, flips and shifts over 20 epochs is the same on every device layout."""

import hashlib
import itertools
from functools import partial

import numpy as np
import pytest

from segnet_jax.data.input_pipeline import device_resident, tf_data
from segnet_jax.data.input_pipeline.cache import from_arrays
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.data.input_pipeline.tf_data import BatchShard

PLAN = Sampler(num_samples=37, global_batch_size=8, seed=3, flip=True, shift=2)
STEPS = range(20 * PLAN.steps_per_epoch)


def marked_records():
    """Return samples that reveal index, reflection and shift: no two pixels are equal."""
    number, row, column = np.meshgrid(np.arange(37), np.arange(5), np.arange(6), indexing="ij")
    return from_arrays(np.stack([number, row, column], axis=-1).astype(np.uint8), (row * 6 + column).astype(np.uint8))


def shares(num_devices, num_processes):
    local = num_devices // num_processes
    return [BatchShard(num_devices, first, local, 8 // num_devices) for first in range(0, num_devices, local)]


def global_batches(parts):
    """Yield each global batch over all processes, flattened in the order accumulation step, device, image."""
    for batches in zip(*parts, strict=True):
        yield [
            np.concatenate([batch[name] for batch in batches]).swapaxes(0, 1).reshape(8, -1)
            for name in ("image", "label")
        ]


def sum_of(batches):
    digest = hashlib.sha256()
    for images, labels in batches:
        digest.update(images.tobytes() + labels.tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def expected():
    """Return a digest of the samples that the sampler implies: flipped, shifted, uncovered pixels set to 0 and void."""
    samples, digest = marked_records(), hashlib.sha256()
    for step in STEPS:
        draws = PLAN.batch(step)
        moved = [([], []), ([], [])]
        for i in range(8):
            for (arrays, _), source, fill in zip(moved, samples.read(int(draws.index[i])), (0, 255), strict=True):
                array = np.full_like(source, fill)
                for y, x in itertools.product(range(5), range(6)):
                    from_y, from_x = y - draws.shift_y[i], x - draws.shift_x[i]
                    if 0 <= from_y < 5 and 0 <= from_x < 6:
                        array[y, x] = source[from_y, 5 - from_x if draws.flip[i] else from_x]
                arrays.append(array)
        digest.update(b"".join(np.stack(arrays).tobytes() for arrays, _ in moved))
    return digest.hexdigest()


@pytest.mark.parametrize("num_devices, num_processes", [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (8, 2)])
def test_it_does_not_depend_on_devices_and_processes(expected, num_devices, num_processes):
    samples = marked_records()
    makers = [partial(tf_data.training_batch, samples, PLAN, share, 1) for share in shares(num_devices, num_processes)]
    parts = [map(make, STEPS) for make in makers]
    assert sum_of(global_batches(parts)) == expected


@pytest.mark.parametrize("num_threads", [1, 4, 16])
def test_it_does_not_depend_on_the_number_of_reader_threads(expected, monkeypatch, num_threads):
    monkeypatch.setattr(tf_data.loky, "cpu_count", lambda: num_threads)
    (share,) = shares(4, 1)
    assert sum_of(global_batches([tf_data.training_batches(marked_records(), PLAN, share, 1, STEPS)])) == expected


@pytest.mark.parametrize("start", [1, 4, 57])
def test_it_resumes_in_the_middle_as_if_never_interrupted(start):
    (share,), samples = shares(4, 1), marked_records()
    whole, rest = (tf_data.training_batches(samples, PLAN, share, 1, steps) for steps in (STEPS, STEPS[start:]))
    assert sum_of(global_batches([itertools.islice(whole, start, None)])) == sum_of(global_batches([rest]))


@pytest.mark.parametrize("num_devices, num_processes", [(1, 1), (8, 1), (8, 2)])
def test_the_devices_draw_it_too(num_devices, num_processes):
    names, calls = ("index", "flip", "shift_y", "shift_x"), [range(step, step + 1) for step in STEPS]
    parts = [device_resident.training_draws(PLAN, share, 1, calls) for share in shares(num_devices, num_processes)]
    for step, draws in zip(STEPS, zip(*parts, strict=True), strict=True):
        for name in names:
            drawn = np.concatenate([part[name] for part in draws]).reshape(-1)
            np.testing.assert_array_equal(drawn, getattr(PLAN.batch(step), name))
