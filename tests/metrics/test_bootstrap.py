"""Bootstrap intervals: against a slow loop, and what they must not depend on."""

import time

import numpy as np
import pytest

from segnet_jax.metrics.bootstrap import intervals
from segnet_jax.metrics.confusion import scores


def some_confusions(num_images=12, size=4, seed=0, empty=()):
    generator = np.random.default_rng(seed)
    confusions = generator.integers(0, 50, (num_images, size, size)) + 100 * np.eye(size, dtype=int)
    for class_id in empty:  # known in the first image alone: most draws of few images are without it
        confusions[1:, class_id] = 0
    return confusions


def by_loop(networks, resamples, seed, level):
    """The definition: a list of images for each draw, their matrices added one by one, each network scored."""
    generator, num_images = np.random.default_rng(seed), len(networks[0])
    told = {name: [] for name in ("miou", "mean_accuracy", "global_accuracy")}
    for counts in generator.multinomial(num_images, [1 / num_images] * num_images, resamples):
        drawn = [image for image, count in enumerate(counts) for _ in range(count)]
        assert len(drawn) == num_images
        found = [scores(sum(network[image] for image in drawn)) for network in networks]
        for name, values in told.items():
            values.append(sum(getattr(each, name) for each in found) / len(found))
    ends = []
    for values in told.values():
        ordered = sorted(values)

        def at(share, ordered=ordered):  # between neighbours in a straight line
            place = share * (len(ordered) - 1)
            below = int(place)
            above = min(below + 1, len(ordered) - 1)
            return ordered[below] + (place - below) * (ordered[above] - ordered[below])

        ends.append((at((1 - level) / 2), at((1 + level) / 2)))
    return dict(zip(told, ends, strict=True))


@pytest.mark.parametrize("empty", [(), (2,)])
@pytest.mark.parametrize("num_networks", [1, 3])
def test_intervals_are_those_of_a_loop_over_draws(num_networks, empty):
    networks = [some_confusions(seed=number, empty=empty) for number in range(num_networks)]
    ours = intervals(networks, resamples=60, seed=3, level=0.9)
    expected = by_loop(networks, 60, 3, 0.9)
    assert ours.keys() == expected.keys()
    for name, ends in expected.items():
        assert ours[name] == pytest.approx(ends, abs=1e-12)


def test_images_that_are_all_alike_leave_no_spread():
    confusions = np.repeat(some_confusions(1), 9, axis=0)
    found, score = intervals([confusions]), scores(confusions.sum(axis=0))
    assert found["miou"] == pytest.approx((score.miou, score.miou))


def test_the_interval_of_a_share_is_near_that_of_the_binomial():
    """Of 400 images of one pixel each, 300 right: the standard error is sqrt(0.75 * 0.25 / 400) = 0.02165."""
    confusions = np.zeros((400, 2, 2), int)
    confusions[:300, 0, 0], confusions[300:, 0, 1] = 1, 1
    low, high = intervals([confusions])["global_accuracy"]
    assert (low, high) == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.004)


def test_one_image_or_none_that_is_labelled_has_no_interval():
    assert intervals([some_confusions(1)]) == {} == intervals([np.zeros((5, 3, 3), int)])
    one_labelled = np.zeros((4, 2, 2), int)
    one_labelled[0] = 1  # some draws hold no labelled pixel: they are left out
    assert intervals([one_labelled])["miou"] == pytest.approx((1 / 3, 1 / 3))


def test_networks_that_saw_other_images_are_not_put_together():
    with pytest.raises(ValueError):
        intervals([some_confusions(5), some_confusions(6)])


def test_it_is_quick_for_a_test_split_of_camvids_size_and_for_many_classes():
    start = time.monotonic()
    intervals([some_confusions(233, 11)])
    intervals([some_confusions(50, 60)], resamples=200)
    assert time.monotonic() - start < 5
