"""Compare bootstrap intervals with a plain loop."""

import time

import numpy as np
import pytest

from segnet_jax.metrics.bootstrap import intervals
from segnet_jax.metrics.confusion import scores


def some_confusions(num_images=12, size=4, seed=0, empty=()):
    generator = np.random.default_rng(seed)
    confusions = generator.integers(0, 50, (num_images, size, size)) + 100 * np.eye(size, dtype=int)
    for class_id in empty:  # only in the first image, so many draws lack it
        confusions[1:, class_id] = 0
    return confusions


def by_loop(networks, resamples, seed, level):
    """Compute the intervals draw by draw, adding the matrices of the drawn images one by one."""
    generator, num_images = np.random.default_rng(seed), len(networks[0])
    drawn_scores = {name: [] for name in ("miou", "mean_accuracy", "global_accuracy")}
    for counts in generator.multinomial(num_images, [1 / num_images] * num_images, resamples):
        drawn = [image for image, count in enumerate(counts) for _ in range(count)]
        assert len(drawn) == num_images
        scored = [scores(sum(network[image] for image in drawn)) for network in networks]
        for name, values in drawn_scores.items():
            values.append(sum(getattr(each, name) for each in scored) / len(scored))
    ends = []
    for values in drawn_scores.values():
        ordered = sorted(values)

        def at(fraction, ordered=ordered):  # linear interpolation
            place = fraction * (len(ordered) - 1)
            below = int(place)
            above = min(below + 1, len(ordered) - 1)
            return ordered[below] + (place - below) * (ordered[above] - ordered[below])

        ends.append((at((1 - level) / 2), at((1 + level) / 2)))
    return dict(zip(drawn_scores, ends, strict=True))


@pytest.mark.parametrize("empty", [(), (2,)])
@pytest.mark.parametrize("num_networks", [1, 3])
def test_intervals_are_those_of_a_loop_over_draws(num_networks, empty):
    networks = [some_confusions(seed=number, empty=empty) for number in range(num_networks)]
    ours = intervals(networks, resamples=60, seed=3, level=0.9)
    expected = by_loop(networks, 60, 3, 0.9)
    assert ours.keys() == expected.keys()
    for name, ends in expected.items():
        assert ours[name] == pytest.approx(ends, abs=1e-12)


def test_identical_images_give_an_interval_of_width_zero():
    confusions = np.repeat(some_confusions(1), 9, axis=0)
    found, score = intervals([confusions]), scores(confusions.sum(axis=0))
    assert found["miou"] == pytest.approx((score.miou, score.miou))


def test_the_interval_of_a_fraction_is_near_that_of_the_binomial():
    """Compare with a binomial's standard error, sqrt(0.75 * 0.25 / 400) = 0.02165, for 300 of 400 one-pixel images."""
    confusions = np.zeros((400, 2, 2), int)
    confusions[:300, 0, 0], confusions[300:, 0, 1] = 1, 1
    low, high = intervals([confusions])["global_accuracy"]
    assert (low, high) == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.004)


def test_fewer_than_two_images_or_no_labeled_pixel_give_no_interval():
    assert intervals([some_confusions(1)]) == {} == intervals([np.zeros((5, 3, 3), int)])
    one_labeled = np.zeros((4, 2, 2), int)
    one_labeled[0] = 1  # draws without a labeled pixel are left out
    assert intervals([one_labeled])["miou"] == pytest.approx((1 / 3, 1 / 3))


def test_networks_with_different_numbers_of_images_are_refused():
    with pytest.raises(ValueError):
        intervals([some_confusions(5), some_confusions(6)])


def test_it_is_fast_for_camvids_test_split_and_for_many_classes():
    start = time.monotonic()
    intervals([some_confusions(233, 11)])
    intervals([some_confusions(50, 60)], resamples=200)
    assert time.monotonic() - start < 5
