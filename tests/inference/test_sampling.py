"""Test dropout samples: how they are drawn, scored, written as maps and reported."""

import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_runs import make_run
from PIL import Image

import segnet_jax
from segnet_jax import evaluate, predict, report
from segnet_jax.config.flags import parse_flags
from segnet_jax.constants import VOID
from segnet_jax.data.synthetic.street_scenes import street_scenes
from segnet_jax.inference.sampling import image_keys, sample
from segnet_jax.system.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Make an untrained run with dropout in its third stage."""
    return make_run(tmp_path_factory.mktemp("runs") / "bayesian", depth=3, dropout=0.5)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "plain", depth=1)


def command(module, function, *flags):
    options = getattr(module, f"{function.__name__.title()}Options")
    return function(parse_flags(options, list(map(str, flags)), prog="p", description=""))


def test_samples_of_one_call_are_those_of_a_call_for_each():
    kernel = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    images = np.random.default_rng(1).normal(size=(2, 5, 6, 3)).astype(np.float32)
    keys = image_keys(7, jnp.arange(2), 4)

    def apply(images, keys):
        dropped = jax.vmap(lambda image, key: jnp.where(jax.random.bernoulli(key, 0.5, image.shape), image, 0))(
            images, keys
        )
        return dropped @ kernel

    together = sample(apply, jnp.asarray(images), keys)
    assert together.shape == (4, 2, 5, 6, 4)
    for t, i in np.ndindex(4, 2):
        odds = np.exp(np.asarray(apply(jnp.asarray(images[i : i + 1]), keys[t, i : i + 1]), np.float64))[0]
        np.testing.assert_allclose(together[t, i], odds / odds.sum(axis=-1, keepdims=True), rtol=1e-5)


def test_an_images_keys_depend_on_nothing_else():
    words = np.asarray(jax.random.key_data(image_keys(0, jnp.array([3, 8, -1]), 4)))
    assert len({tuple(each) for each in words.reshape(12, -1)}) == 12
    other = np.asarray(jax.random.key_data(image_keys(0, jnp.array([8]), 6)))  # alone, and among more samples
    np.testing.assert_array_equal(other[:4, 0], words[:, 1])
    assert not np.array_equal(other, np.asarray(jax.random.key_data(image_keys(1, jnp.array([8]), 6))))


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """Return the result of an evaluation with five samples."""
    path = tmp_path_factory.mktemp("sampled") / "scores.json"
    flags = ("--samples", 5, "--devices", 2, "--batch-size-per-device", 2, "--json", path)
    assert command(evaluate, evaluate.evaluate, run, *flags) == 0
    return json.loads(path.read_text())


@pytest.mark.slow
def test_the_evaluation_scores_the_mean_of_the_samples_that_are_drawn_one_by_one(run, evaluated):
    network = segnet_jax.load(run)
    split = street_scenes(num_train=8, num_val=9, height=24, width=32, seed=0).splits["val"]
    forward = jax.jit(network.forward)
    confusion, plain = np.zeros((11, 11), int), np.zeros((11, 11), int)
    gaps, shares, rights = np.zeros(15), [], []
    for i in range(9):
        image, label = split.read(i)
        keys = image_keys(0, jnp.array([i]), 5)
        logits = [np.asarray(forward(network.variables, image[None], key), np.float64)[0] for key in keys]
        odds = [np.exp(each - each.max(axis=-1, keepdims=True)) for each in logits]
        mean = np.mean([each / each.sum(axis=-1, keepdims=True) for each in odds], axis=0)
        known = label != VOID
        np.add.at(confusion, (label[known], mean.argmax(axis=-1)[known]), 1)
        np.add.at(plain, (label[known], network.predict(image)[known]), 1)
        sure, right = mean.max(axis=-1)[known], (mean.argmax(axis=-1) == label)[known]
        np.add.at(gaps, np.minimum((sure * 15).astype(int), 14), right - sure)
        shares.append(-(mean * np.log(np.maximum(mean, 1e-30))).sum(axis=-1)[known])
        rights.append(right)
    found = evaluated["samples"]
    assert np.abs(np.array(found["mean"]["confusion"]) - confusion).sum() <= 4  # rounding may turn a tie
    assert np.abs(np.array(found["plain"]["confusion"]) - plain).sum() <= 4
    assert found["mean"]["calibration_error"] == pytest.approx(np.abs(gaps).sum() / confusion.sum(), abs=1e-3)
    assert (confusion != plain).any() and found["num_samples"] == 5
    order = np.argsort(np.concatenate(shares), kind="stable")
    right = np.concatenate(rights)[order]
    coverage = found["mean"]["accuracy_over_coverage"]["entropy"]
    assert coverage["0.5"] == pytest.approx(right[: len(right) // 2].mean(), abs=3e-3)
    assert coverage["1"] == pytest.approx(found["mean"]["global_accuracy"])


@pytest.mark.slow
def test_the_scores_of_samples_do_not_depend_on_batch_and_devices(run, evaluated, tmp_path):
    path = tmp_path / "scores.json"
    flags = ("--samples", 5, "--devices", 1, "--batch-size-per-device", 3, "--json", path)
    assert command(evaluate, evaluate.evaluate, run, *flags) == 0
    ours, theirs = (
        np.array(each["samples"]["mean"]["confusion"]) for each in (json.loads(path.read_text()), evaluated)
    )
    assert np.abs(ours - theirs).sum() <= 4


@pytest.mark.parametrize(("samples", "message"), [(3, "has no dropout"), (-1, "must be between 1 and")])
@pytest.mark.parametrize("module", ["evaluate", "predict"])
def test_useless_samples_are_refused(module, samples, message, plain_run, tmp_path):
    with pytest.raises(UserError, match=message):
        if module == "evaluate":
            command(evaluate, evaluate.evaluate, plain_run, "--samples", samples)
        else:
            Image.new("RGB", (32, 24)).save(tmp_path / "a.png")
            command(predict, predict.predict, plain_run, tmp_path / "a.png", "--samples", samples)


@pytest.mark.slow
def test_the_report_shows_the_maps_that_an_evaluation_of_samples_has_kept(run, evaluated, capsys):
    assert command(report, report.report, run) == 0
    page = (run / "report.html").read_text()
    assert "Uncertainty" in page and page.count(': entropy"') == 6
    assert "5 samples" in page
    (run / "evaluations/uncertainty.json").write_text('{"pictures": [{"image": 3}], "mean": []}')  # damaged
    assert command(report, report.report, run) == 0


def photo(folder, *size):
    random = np.random.default_rng(2)
    pixels = np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((size[0] // 4, size[1] // 4, 1))).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return folder / "a.png"


TILES = ("--tile", 16, 16, "--overlap", 4)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [(), TILES], ids=["whole", "tiles"])
def test_uncertainty_pictures_are_of_the_samples_of_the_image(tile, run, tmp_path):
    path, out = photo(tmp_path, 24, 32), tmp_path / "out"
    flags = ("--samples", 4, "--uncertainty", "--devices", 1, "--out", out, *tile)
    assert command(predict, predict.predict, run, path, *flags) == 0
    maps = {name: np.asarray(Image.open(out / f"a_{name}.png")) for name in ("entropy", "information", "variance")}
    assert all(each.shape == (24, 32) and each.dtype == np.uint8 for each in maps.values())
    assert (maps["information"].astype(int) <= maps["entropy"].astype(int) + 1).all() and maps["entropy"].any()
    if tile:
        return
    network = segnet_jax.load(run)
    image = np.asarray(Image.open(path))
    keys = image_keys(0, jnp.array([0]), 4)
    probabilities = np.asarray(sample(partial(network.forward, network.variables), jnp.asarray(image[None]), keys))[
        :, 0
    ]
    mean = probabilities.mean(axis=0)
    entropy = -(mean * np.log(mean)).sum(axis=-1) / np.log(11)
    assert np.abs(maps["entropy"] - 255 * entropy).max() < 1.5
    assert (np.asarray(Image.open(out / "a.png")) == mean.argmax(axis=-1)).mean() > 0.99


def test_uncertainty_requires_samples(run, tmp_path):
    with pytest.raises(UserError, match="--uncertainty needs dropout samples: add --samples"):
        command(predict, predict.predict, run, photo(tmp_path, 24, 32), "--uncertainty")


def test_on_real_frames_the_mean_settles_as_one_by_the_samples_and_uncertain_pixels_are_wrong():
    folder = pathlib.Path(__file__).parents[2] / "experiments" / "bayesian"
    found, page = json.loads((folder / "samples.json").read_text()), (folder / "README.md").read_text(encoding="utf-8")
    for size, row in found["variance_of_the_mean"].items():
        assert 0.9 < row["times_samples_by_that_of_one"] < 1.1
        assert f"| {size} | {row['variance']:.2e} | {row['times_samples_by_that_of_one']:.3f} |" in page
    for which, name in (("mean", "mean of the samples"), ("plain", "without dropout")):
        scored = [100 * found[which][score] for score in ("miou", "global_accuracy", "calibration_error")]
        assert f"| {name} | {' | '.join(f'{score:.1f}' for score in scored)} |" in page
    for name, row in found["mean"]["error_over_coverage"].items():
        assert row["falls_at_every_step"]
        assert f"| {name} | {' | '.join(f'{100 * error:.1f}' for error in row['errors'].values())} |" in page
    assert found["frames"] in page and f"step {found['step']}" in page
