"""Test runs with every augmentation: resumed bit for bit on both input paths, and refused if invalid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_train import SMALL, digest_of, run

import segnet_jax
from segnet_jax import api
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.data.dataset import Dataset
from segnet_jax.runs import load_dataset as run_dataset
from segnet_jax.runs import trainer
from segnet_jax.runs.config_checks import check_network
from segnet_jax.system.errors import UserError
from segnet_jax.train import train
from segnet_jax.training.custom_augmentation import CustomAugmentation
from segnet_jax.training.custom_objects import CustomObjects

EVERY = (
    "--rotate 30 --shear 15 --vertical-flip --crop 16 20 --class-mix 0.5 --blur 1 --scale 0.7 1.5 --color 0.3".split()
)


def dim(image, label, keys):
    """Multiply each image by a random factor."""
    factor = jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1), minval=0.5))(keys)
    return (image.astype(jnp.float32) * factor).astype(jnp.uint8), label


def run_with(own, *flags):
    args = [*SMALL, *map(str, flags), "--augment", f"tests:{own.__name__}"]
    augment = CustomAugmentation(f"tests:{own.__name__}", own)
    return train(parse_config(args, prog="segnet_jax.train", description=""), CustomObjects(augment=augment))


@pytest.mark.slow  # data/test_augmentations.py and training/test_custom_augmentation.py compare batches
def test_a_run_with_every_augmentation_resumes_bit_for_bit_on_the_other_input_path(tmp_path):
    assert run_with(dim, "--run", tmp_path / "unbroken", *EVERY, "--input", "device") == 0
    assert run_with(dim, "--run", tmp_path / "stopped", *EVERY, "--input", "host", "--max-steps", 4) == 0
    stopped = digest_of(tmp_path / "stopped")
    with pytest.raises(UserError, match="own code is only imported if the command names it: add --augment tests:dim"):
        run("--run", tmp_path / "stopped", *EVERY, "--resume")
    assert digest_of(tmp_path / "stopped") == stopped
    assert run_with(dim, "--run", tmp_path / "stopped", *EVERY, "--input", "device") == 0
    assert digest_of(tmp_path / "stopped") == digest_of(tmp_path / "unbroken") != stopped
    assert Image.open(tmp_path / "unbroken" / "first_batch.png").size[0] > 100
    pictures = [np.asarray(Image.open(tmp_path / name / "first_batch.png")) for name in ("unbroken", "stopped")]
    assert np.array_equal(*pictures)


def test_python_takes_a_function_and_a_name(monkeypatch, tmp_path):
    made = []

    class Recorder:
        def __init__(self, config, own, callbacks):
            made.append((config, own.augment))
            self.folder = tmp_path

        def run(self):
            pass

    monkeypatch.setattr(trainer, "Trainer", Recorder)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_too.py").write_text("def own(image, label, keys): return image, label\n")
    settings = {"data": "synthetic", "protocol": "demo", "rotate": 10, "crop": (24, 32)}
    api.train(**settings, augment=dim)
    api.train(**settings, augment="mine_too:own")
    api.train(**settings)
    (config, own), (named, imported), (_, none) = made
    assert own.function is dim and config.augment == own.name == f"{dim.__module__}:dim" and config.crop == (24, 32)
    assert named.augment == "mine_too:own" and imported.function.__name__ == "own" and none is None
    assert segnet_jax.train  # the package's own name


def test_a_crop_that_does_not_fit_is_one_error():
    with pytest.raises(UserError) as fault:
        Config(image_size=(360, 480), crop=(361, 480))
    assert str(fault.value) == (
        "--crop 361 480 is larger than the images, which are resized to --image-size 360 480: use a smaller --crop or "
        "a larger --image-size"
    )
    with pytest.raises(UserError, match="--crop needs a height and a width above 0, or 0 0 for none, got 0 480"):
        Config(crop=(0, 480))
    with pytest.raises(
        UserError, match=r"--crop 16 480 is too small for 5 poolings, which need 32: .*fix: --crop 32 480"
    ):
        check_network(Config(crop=(16, 480)))
    assert Config(crop=(360, 480)).train_size == Config().train_size == (360, 480)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--rotate 200", "--rotate must be between 0 and 180, got 200"),
        ("--shear 60", "--shear must be between 0 and 45, got 60"),
        ("--blur -1", "--blur must be between 0 and 8, got -1"),
        ("--class-mix 2", "--class-mix must be between 0 and 1, got 2"),
        ("--crop 100", "--crop needs 2 values, HEIGHT WIDTH, got 100"),
        ("--crop 100x200", "for height 100 and width 200 write --crop 100 200"),
        ("--rotation 5", "unknown flag --rotation; did you mean --rotate DEGREES?"),
        ("--vflip", "unknown flag --vflip; did you mean --vertical-flip?"),
        ("--classmix 1", "unknown flag --classmix; did you mean --class-mix X?"),
    ],
)
def test_a_wrong_flag_is_answered(flags, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        parse_config(flags.split(), prog="segnet_jax.train", description="")


def test_a_crop_of_the_whole_image_is_a_warning_with_the_size_of_the_files():
    dataset = Dataset.__new__(Dataset)
    object.__setattr__(dataset, "sizes", {(720, 960): 5})
    warning = run_dataset.crop_warning(Config(crop=(360, 480)), dataset)
    assert (
        warning
        == "--crop 360 480 is the whole image: use a larger --image-size, such as 720 960, the size of the files"
    )
    for config in (Config(), Config(crop=(352, 480)), Config(crop=(360, 480), scale=(1.0, 2.0))):
        assert run_dataset.crop_warning(config, dataset) == ""
