"""Test custom augmentations: named only by the command, checked before compilation, the same on both input paths."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_device_resident import mapped, random_samples

from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.data.input_pipeline.tf_data import BatchShard
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.system.custom_code import import_function
from segnet_jax.system.errors import UserError
from segnet_jax.training import step_inputs
from segnet_jax.training.custom_augmentation import CustomAugmentation, check_custom_augmentation


def speckle(image, label, keys):
    """Add noise of a random strength per image, and make one corner void."""
    strength = jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1), maxval=30.0))(keys)
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), image.shape[1:]))(keys)
    image = jnp.clip(image.astype(jnp.float32) + strength * noise, 0, 255).astype(jnp.uint8)
    return image, label.at[:, :2, :2].set(255)


OWN = CustomAugmentation("tests:speckle", speckle)


def test_it_is_applied_to_each_image_with_its_own_key():
    image = np.full((2, 3, 8, 9, 3), 100, np.uint8)
    label, key = np.zeros((2, 3, 8, 9), np.uint8), np.arange(12, dtype=np.int32).reshape(2, 3, 2) - 5
    found = OWN(image, label, key)
    assert found["image"].shape == image.shape and found["label"].shape == label.shape
    assert (found["label"][..., :2, :2] == 255).all() and (found["label"][..., 2:, :] == 0).all()
    for place in np.ndindex(2, 3):
        one = jax.random.wrap_key_data(jnp.asarray(key[place].view(np.uint32)), impl="threefry2x32")
        expected, _ = speckle(image[place][None], jnp.asarray(label[place][None]), one[None])
        np.testing.assert_allclose(found["image"][place].astype(int), expected[0].astype(int), atol=1)
    assert len({found["image"][place].tobytes() for place in np.ndindex(2, 3)}) == 6


@pytest.mark.slow
def test_batches_are_the_same_on_both_paths_and_on_one_and_eight_devices():
    samples, pictures = random_samples(17, 8, 9), {}
    sampler = Sampler(17, 16, seed=2, flip=True, shift=2, rotate=20.0, class_mix=0.5, augment=OWN.name)
    for count, place in ((1, "host"), (1, "device"), (8, "host"), (8, "shards")):
        devices, shard = choose_devices(str(count)), BatchShard(count, 0, count, 16 // count)
        source = step_inputs.training_input(place, samples, sampler, shard, 1, devices, OWN)
        (sent,) = source.inputs([range(1, 2)])
        if place == "host":
            program = jax.pmap(lambda sent, source=source: source.make_batch(sent, ()), devices=devices.local)
            made = jax.device_get(program({name: array[:, 0] for name, array in sent.items()}))
        else:
            made = {name: array[:, 0] for name, array in mapped(source, devices)(sent).items()}
        pictures[count, place] = [made[name].reshape(16, *made[name].shape[3:]) for name in ("image", "label")]
    first = pictures.pop((1, "host"))
    assert all(np.array_equal(one, other) for each in pictures.values() for one, other in zip(first, each, strict=True))
    before = tf_data.training_batch(samples, sampler, BatchShard(1, 0, 1, 16), 1, 1)["image"]
    assert not np.array_equal(first[0], before[0, 0])


@pytest.mark.parametrize(
    "function, message",
    [
        (
            lambda image, label, keys: (image[:, :4], label[:, :4]),
            r"must return image and label as uint8 \[4,8,9,3\] and uint8 \[4,8,9\], got uint8 \[4,4,9,3\] and uint8 "
            r"\[4,4,9\]$",
        ),
        (lambda image, label, keys: (image / 255, label), r"got float32 \[4,8,9,3\] and uint8 \[4,8,9\]$"),
        (lambda image, label, keys: image, r"got uint8 \[4,8,9,3\]$"),
        (lambda image, label, keys: None, "got NoneType$"),
        (lambda image, label, keys: (), "got nothing$"),
        (lambda image, label, keys: (image, label, keys), r"and key<fry> \[4\]$"),
        (
            lambda image, label: (image, label),
            "failed on .*: TypeError: .*takes 2 positional arguments but 3 were given",
        ),
        (lambda image, label, keys: (np.asarray(image), label), "failed on .*: TracerArrayConversionError: "),
    ],
)
def test_a_function_that_does_not_fit_is_one_clear_error_before_compilation(function, message):
    config = Config(image_size=(10, 12), crop=(8, 9), batch_size_per_device=2, grad_accum_steps=2, augment="mine:own")
    with jax.numpy_dtype_promotion("standard"), pytest.raises(UserError) as fault:
        check_custom_augmentation(config, CustomAugmentation("mine:own", function))
    assert re.search(message, str(fault.value)) and "\n" not in str(fault.value)
    assert str(fault.value).startswith("--augment mine:own ")


def test_a_stored_name_is_not_imported(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted.py").write_text("open('imported', 'w').close()\ndef own(*batch): return batch[:2]\n")
    assert CustomAugmentation.named("planted:own", ["--data", "camvid", "--resume"]) is None
    with pytest.raises(UserError, match="which is only imported if this command names it: add --augment planted:own"):
        check_custom_augmentation(Config(augment="planted:own"), None)
    assert not (tmp_path / "imported").exists()
    for args in (["--augment", "planted:own"], ["--augment=planted:own"]):
        assert CustomAugmentation.named("planted:own", args).function.__name__ == "own"
    assert (tmp_path / "imported").exists()
    check_custom_augmentation(Config(), None)


@pytest.mark.parametrize(
    "name, message",
    [
        ("mine", "--augment must be MODULE:FUNCTION, such as mine:jitter, got 'mine'"),
        ("mine:a.b", "--augment must be MODULE:FUNCTION"),
        (
            "no_such:jitter",
            "--augment no_such:jitter: cannot import no_such: ModuleNotFoundError: No module named 'no_su",
        ),
        ("mine.py:jitter", "cannot import mine.py: .*; give the module's name without .py"),
        ("broken:jitter", "--augment broken:jitter: cannot import broken: ZeroDivisionError: division by zero"),
        ("mine:jiter", "--augment mine:jiter: mine has no function or class jiter; nearest: jitter"),
        ("mine:number", "--augment mine:number: mine has no function or class number"),
    ],
)
def test_a_name_that_cannot_be_imported_is_answered_in_one_line(name, message, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text("number = 3\ndef jitter(image, label, keys): return image, label\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=message):
        import_function(name, "--augment")


def test_the_working_directory_is_searched(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [each for each in __import__("sys").path if each])
    (tmp_path / "beside.py").write_text("def jitter(image, label, keys): return image, label\n")
    assert import_function("beside:jitter", "--augment")(1, 2, 3) == (1, 2)
