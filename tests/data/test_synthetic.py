"""Test the rendered scenes: equal on every machine, with all classes, not solvable by color or position alone."""

import hashlib
import pathlib

import numpy as np
import pytest
from PIL import Image

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.data.layouts.camvid import tutorial
from segnet_jax.data.synthetic.canvas import Canvas, Rng
from segnet_jax.data.synthetic.ground import Street
from segnet_jax.data.synthetic.street_objects import pedestrian, sign
from segnet_jax.data.synthetic.street_scenes import plan_traffic, render, street_scenes, write_tutorial_layout
from segnet_jax.data.synthetic.upright_objects import Camera, Stand
from segnet_jax.system.errors import UserError

CLASSES = len(CAMVID)
SAMPLE = pathlib.Path(__file__).parents[2] / "data" / "sample"
SKY, BUILDING, POLE, ROAD, CAR = map(CAMVID.names.index, ("Sky", "Building", "Pole", "Road", "Car"))


@pytest.fixture(scope="module")
def scenes():
    """Return images uint8 [N,72,96,3] and labels uint8 [N,72,96] of each split, with 150 and 40 scenes."""
    splits = street_scenes(150, 40, 72, 96, seed=1).splits
    samples = {name: [split.read(index) for index in range(len(split))] for name, split in splits.items()}
    return {name: tuple(np.stack(part) for part in zip(*pairs, strict=True)) for name, pairs in samples.items()}


def mean_iou(prediction, label):
    """Compute the mean IoU of the eleven classes, class by class."""
    valid = label != VOID
    scores = []
    for class_id in range(CLASSES):
        predicted, labeled = (prediction == class_id) & valid, label == class_id
        scores.append((predicted & labeled).sum() / (predicted | labeled).sum())
    return np.mean(scores)


def philox(counter, key):
    """Return four 64-bit numbers of Philox4x64-10 (Salmon et al. 2011), in plain Python."""
    word, (c0, c1, c2, c3), (k0, k1) = 2**64 - 1, (counter, 0, 0, 0), (key & (2**64 - 1), key >> 64)
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (second >> 64) ^ c1 ^ k0, second & word, (first >> 64) ^ c3 ^ k1, first & word
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & word, (k1 + 0xBB67AE8584CAA73B) & word
    return c0, c1, c2, c3


def test_draws_are_philox_keyed_by_the_sha256_of_the_identity():
    key = int.from_bytes(hashlib.sha256(b"('x', 1)").digest()[:16], "little")
    raw = [number for counter in range(1, 129) for number in philox(counter, key)]
    rng = Rng("x", 1)  # takes 512 numbers at a time, from the end
    assert [rng.uniform() for _ in range(512)] == [(number >> 11) / 2**53 for number in reversed(raw)]
    raw = np.array(philox(129, key), "<u8").view(np.uint8).astype(int)
    np.testing.assert_allclose(rng.noise(2, 8), ((raw[:16] + raw[16:]) / 255 - 1).reshape(2, 8), atol=1e-6)


def test_draws_keep_their_bounds_and_means():
    rng = Rng("bounds")
    draws = np.array([rng.uniform(2, 5) for _ in range(4000)])
    assert 2 <= draws.min() < 2.01 and 4.99 < draws.max() < 5 and abs(draws.mean() - 3.5) < 0.06
    assert {rng.integer(3, 5) for _ in range(200)} == {3, 4, 5}
    assert {rng.pick("abc") for _ in range(200)} == set("abc")
    assert 0.25 < np.mean([rng.chance(0.3) for _ in range(2000)]) < 0.35
    noise = rng.noise(50, 60)
    assert noise.shape == (50, 60) and noise.dtype == np.float32
    assert np.abs(noise).max() <= 1 and abs(noise.mean()) < 0.03 and 0.35 < noise.std() < 0.47  # 1/sqrt(6)


def test_a_scene_depends_on_seed_split_and_index_alone():
    one, other = street_scenes(5, 3, 48, 64, seed=7), street_scenes(9, 3, 48, 64, seed=7)
    backwards = {index: one.splits["train"].read(index) for index in (4, 2, 0)}
    for index in (0, 2, 4):
        for a, b in zip(backwards[index], other.splits["train"].read(index), strict=True):
            np.testing.assert_array_equal(a, b)
    images = [one.splits["train"].read(0)[0], one.splits["train"].read(1)[0], one.splits["val"].read(0)[0]]
    images.append(street_scenes(5, 3, 48, 64, seed=8).splits["train"].read(0)[0])
    assert len({image.tobytes() for image in images}) == 4


def test_fingerprints_differ_where_samples_do():
    def prints(*arguments):
        return {split.fingerprint for split in street_scenes(*arguments).splits.values()}

    assert prints(5, 3, 48, 64, 7) == prints(5, 3, 48, 64, 7)
    different = [(5, 3, 48, 64, 7), (6, 4, 48, 64, 7), (5, 3, 50, 64, 7), (5, 3, 48, 66, 7), (5, 3, 48, 64, 8)]
    assert len(set().union(*(prints(*arguments) for arguments in different))) == 10


def test_splits_have_the_requested_number_of_uniquely_named_scenes():
    dataset = street_scenes(5, 3, 48, 64, seed=7)
    assert dataset.name == "synthetic" and dataset.classes is CAMVID
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 5, "val": 3}
    assert len({name for split in dataset.splits.values() for name in split.names}) == 8
    with pytest.raises(IndexError):
        dataset.splits["val"].read(3)


@pytest.mark.parametrize("size", [(24, 32), (33, 47), (96, 128), (40, 160), (90, 33), (180, 240)])
def test_any_size_is_rendered(size):
    image, label = render(Rng("size"), *size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert label.shape == size and label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(CLASSES), VOID}
    assert {SKY, BUILDING, ROAD} <= set(np.unique(label))


@pytest.mark.parametrize("arguments", [(5, 3, 23, 64), (5, 3, 48, 31), (0, 3, 48, 64), (5, 0, 48, 64)])
def test_too_small_a_size_or_number_is_refused(arguments):
    with pytest.raises(UserError, match="at least"):
        street_scenes(*arguments, seed=0)


@pytest.mark.slow
def test_every_class_is_in_most_scenes_and_has_its_fraction(scenes):
    _, label = scenes["train"]
    fraction = np.array([(label == class_id).mean() for class_id in range(CLASSES)])
    present = np.array([((label == class_id).sum(axis=(1, 2)) >= 6).mean() for class_id in range(CLASSES)])
    assert (present > 0.7).all(), dict(zip(CAMVID.names, present, strict=True))
    assert (fraction > 0.012).all(), dict(zip(CAMVID.names, fraction, strict=True))
    assert fraction.max() < 0.4


def test_void_is_there_and_moderate(scenes):
    _, label = scenes["train"]
    void = (label == VOID).mean(axis=(1, 2))
    assert 0.01 < void.mean() < 0.08
    assert void.max() < 0.2


def test_color_alone_does_not_determine_the_class(scenes):
    """Score two oracles that see one pixel's color: nearest class mean, and most common class of 512 color bins."""
    (image, label), (val_image, val_label) = scenes["train"], scenes["val"]
    valid = label != VOID
    means = np.stack([image[label == class_id].mean(axis=0) for class_id in range(CLASSES)])
    distance = ((val_image[..., None, :].astype(np.float32) - means.astype(np.float32)) ** 2).sum(axis=-1)
    assert mean_iou(distance.argmin(axis=-1), val_label) < 0.3

    def bins(pixels):
        return (pixels >> 5).astype(np.int64) @ np.array([64, 8, 1])

    counts = np.bincount(bins(image[valid]) * CLASSES + label[valid], minlength=512 * CLASSES).reshape(512, CLASSES)
    assert mean_iou(counts.argmax(axis=1)[bins(val_image)], val_label) < 0.35
    rarity = np.sqrt(counts.sum(axis=0))  # an oracle that is kinder to rare classes scores higher
    assert mean_iou((counts / rarity).argmax(axis=1)[bins(val_image)], val_label) < 0.35


def test_position_alone_does_not_determine_the_class(scenes):
    (_, label), (_, val_label) = scenes["train"], scenes["val"]
    counts = np.stack([(label == class_id).sum(axis=0) for class_id in range(CLASSES)])
    assert mean_iou(np.broadcast_to(counts.argmax(axis=0), val_label.shape), val_label) < 0.35
    rarity = np.sqrt(counts.sum(axis=(1, 2)))[:, None, None]
    assert mean_iou(np.broadcast_to((counts / rarity).argmax(axis=0), val_label.shape), val_label) < 0.35


def two_boxes(loose):
    canvas = Canvas(Rng("boxes"), 24, 32)
    canvas.layer(SKY)
    canvas.fill(canvas.box(0, 0, 32, 24), (200.0, 200.0, 200.0))
    canvas.layer(BUILDING)
    canvas.fill(canvas.box(4, 4, 16, 16), (100.0, 0.0, 0.0))
    canvas.layer(CAR, loose)
    canvas.fill(canvas.box(10, 10, 20.5, 20), (0.0, 0.0, 100.0))
    canvas.fill(canvas.box(4, 4, 8, 8), (0.0, 0.0, 0.0), opacity=0.5, owns=False)  # a shadow
    return canvas


def test_what_is_painted_later_covers_what_was_before():
    canvas, expected = two_boxes(loose=False), np.full((24, 32), SKY)
    expected[4:16, 4:16] = BUILDING
    expected[10:20, 10:20] = CAR  # pixel 20 has its center on the edge at 20.5, which is inside
    expected[10:20, 20] = CAR
    np.testing.assert_array_equal(canvas.label(), expected)
    np.testing.assert_array_equal(canvas.image[:, 12, 12], [0, 0, 100])
    np.testing.assert_array_equal(canvas.image[:, 12, 5], [100, 0, 0])
    np.testing.assert_array_equal(canvas.image[:, 12, 20], [100, 100, 150])  # half covered


def test_a_loose_thing_has_a_void_edge_on_what_is_behind_it():
    label, tight = two_boxes(loose=True).label(), two_boxes(loose=False).label()
    car = tight == CAR
    beside = np.zeros_like(car)
    for row, column in np.argwhere(car):
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            beside[row + down, column + right] = True
    np.testing.assert_array_equal(label == VOID, beside & ~car)
    np.testing.assert_array_equal(label[label != VOID], tight[label != VOID])


def test_a_shadow_darkens_but_leaves_the_class():
    canvas = two_boxes(loose=False)
    np.testing.assert_array_equal(canvas.image[:, 5, 5], [50, 0, 0])
    assert canvas.label()[5, 5] == BUILDING


def test_shapes_cover_their_area():
    canvas = Canvas(Rng("area"), 100, 100)
    canvas.layer(SKY)
    for patch, area in (
        (canvas.polygon([(10, 10), (70, 10), (10, 90)]), 60 * 80 / 2),
        (canvas.polygon([(10, 90), (70, 10), (10, 10)]), 60 * 80 / 2),  # the other sense of rotation
        (canvas.ellipse(50, 50, 30, 20), np.pi * 30 * 20),
        (canvas.box(10.2, 20, 30, 40.3), 19.8 * 20.3),
        (canvas.stroke((10, 10), (70, 90), 5), 100 * 5),
    ):
        assert (patch.inside >= 0).sum() == pytest.approx(area, rel=0.04)
    assert canvas.box(101.5, 0, 120, 20) is None and canvas.polygon([(-9, 0), (-5, 0), (-5, 9)]) is None


def test_twice_as_far_is_half_as_large():
    camera = Camera(horizon=50, vanishing=60, focal=80, eye=1.5)
    assert camera.point(2, 0, 4) == (60 + 2 * 20, 50 + 1.5 * 20)
    assert camera.point(2, 0, 8) == (60 + 2 * 10, 50 + 1.5 * 10)
    assert camera.point(2, 1.5, 8)[1] == 50  # what is as high as the eye is on the horizon
    assert Stand(Canvas(Rng("far"), 24, 32), camera, 0, 8).scale == 10


def test_the_nearer_person_hides_the_farther_sign():
    camera, canvas = Camera(horizon=45, vanishing=64, focal=90, eye=1.7), Canvas(Rng("hide"), 96, 128)
    canvas.layer(SKY)
    canvas.fill(canvas.box(0, 0, 128, 96), (200.0, 200.0, 200.0))
    sign(Rng("sign"), canvas, camera, 0.0, 12.0)
    before = canvas.label()
    pedestrian(Rng("person"), canvas, camera, 0.0, 5.0)
    after = canvas.label()
    foot = round(camera.point(0, 0.6, 12)[1])
    assert before[foot, 64] == POLE and after[foot, 64] != POLE


def test_no_object_is_nearer_than_the_camera_can_show():
    street = Street(left=-3, right=3, left_wall=-5.5, right_wall=5.5)
    depths = [depth for index in range(50) for depth, _ in plan_traffic(Rng("plan", index), street)]
    assert min(depths) > 4 and max(depths) < 40


def test_the_sample_is_what_the_renderer_makes_and_the_reader_reads_it(tmp_path):
    write_tutorial_layout(street_scenes(num_train=6, num_val=3, height=120, width=160, seed=0), tmp_path)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(written) == 2 + 2 * 9
    assert [path for path in written if not (SAMPLE / path).is_file()] == []
    for path in written:
        if path.suffix == ".txt":
            assert (SAMPLE / path).read_text() == (tmp_path / path).read_text()
        else:  # pixels, not bytes: PNG's compression may differ
            ours, kept = Image.open(tmp_path / path), Image.open(SAMPLE / path)
            assert ours.mode == kept.mode
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(kept))
    assert sum((SAMPLE / path).stat().st_size for path in written) < 400_000
    rendered, read = street_scenes(6, 3, 120, 160, seed=0), tutorial(SAMPLE)
    for name, split in rendered.splits.items():
        assert read.splits[name].names == split.names
        for a, b in zip(read.splits[name].read(1), split.read(1), strict=True):
            np.testing.assert_array_equal(a, b)
