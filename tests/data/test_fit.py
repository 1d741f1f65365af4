"""Test resizing to one size against hand-computed numbers."""

import numpy as np
import pytest

from segnet_jax.constants import VOID
from segnet_jax.data.images.fit import fit_sample, scaled_size


@pytest.mark.parametrize(
    "size, target, fit, expected",
    [
        ((720, 960), (360, 480), "letterbox", (360, 480)),
        ((100, 400), (50, 50), "letterbox", (12, 50)),
        ((100, 400), (50, 50), "crop", (50, 200)),
        ((100, 400), (50, 50), "stretch", (50, 50)),
        ((3, 1000), (8, 8), "letterbox", (1, 8)),
        ((7, 3), (9, 9), "crop", (21, 9)),
    ],
)
def test_the_size_on_the_way(size, target, fit, expected):
    assert scaled_size(size, target, fit) == expected


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_any_size_stays_inside_the_target_or_covers_it_and_touches_it(fit):
    rng = np.random.default_rng(0)
    for height, width, *target in rng.integers(1, 300, (500, 4)).tolist():
        scaled = scaled_size((height, width), tuple(target), fit)
        assert any(a == b for a, b in zip(scaled, target, strict=True))
        assert all(a <= b if fit == "letterbox" else a >= b for a, b in zip(scaled, target, strict=True))


def test_a_wide_picture_between_bars_and_cut():
    label = np.repeat(np.arange(4, dtype=np.uint8), 2)[None].repeat(4, axis=0)  # 4x8, two columns of each class
    image = np.stack([label * 10] * 3, axis=-1)
    _, barred = fit_sample(image, label, (8, 8), "letterbox")
    assert (barred[:2] == VOID).all() and (barred[6:] == VOID).all() and (barred[2:6] == label).all()
    picture, cut = fit_sample(image, label, (4, 4), "crop")
    assert (cut == label[:, 2:6]).all() and (picture[..., 0] == cut * 10).all()
