"""Compare the named protocols with a table of the published recipes, transcribed by hand."""

import dataclasses
import pathlib
import re
import tomllib
from types import SimpleNamespace

import pytest

from segnet_jax.config.fields import Config
from segnet_jax.config.files import BATCH_OF_A_DEVICE, protocol_names, read_protocol
from segnet_jax.config.flags import parse_config
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.runs.config_checks import batch_warning
from segnet_jax.runs.result import recipe

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "segnet_jax" / "config" / "protocols"

ALL = {"image_size": (360, 480), "width": 1.0, "schedule": "constant", "momentum": 0.9, "weight_decay": 5e-4}
CAFFE = {  # what the released prototxts have in common
    "split_rule": "tutorial",
    "batch_size_per_device": 4,
    "flip": False,
    "shift": 0,
    "pooling": "ceil",
    "upsampling": "indices",
    "conv_bias": True,
    "final_batch_norm": False,
    "batch_norm_epsilon": 1e-9,
    "batch_norm_bias": 1e-3,
    "batch_norm": "recompute",
    "batch_norm_variance": "batches",
    "preprocessing": "raw",
    "bias_lr_mult": 2.0,
    "decay_scale": True,
    "decay_shift": False,
    "class_weights": "caffe",
    "result_checkpoint": "last",
}
PAPER = CAFFE | {"batch_norm_bias": 0.0, "bias_lr_mult": 1.0, "decay_scale": False}
TABLE = {
    "camvid-matlab-2018": {
        "split_rule": "matlab",
        "network": "segnet",
        "init": "vgg16",
        "depth": 5,
        "pooling": "floor",
        "dropout": 0.0,
        "conv_bias": False,
        "final_batch_norm": True,
        "batch_norm": "recompute",
        "batch_norm_variance": "population",
        "batch_norm_epsilon": 1e-5,
        "batch_norm_bias": 0.0,
        "decay_scale": True,
        "decay_shift": True,
        "class_weights": "matlab",
        "learning_rate": 1e-3,
        "batch_size_per_device": 4,
        "flip": True,
        "shift": 10,
        "result_checkpoint": "last",
    },
    "camvid-tutorial": CAFFE | {"network": "segnet", "init": "vgg16", "dropout": 0.0, "learning_rate": 1e-3},
    "segnet-basic": CAFFE
    | {"network": "segnet-basic", "init": "none", "depth": 4, "dropout": 0.0, "learning_rate": 0.1},
    "bayesian-segnet": CAFFE | {"network": "segnet", "init": "vgg16", "dropout": 0.5, "learning_rate": 1e-3},
    "paper-2017": PAPER
    | {
        "network": "segnet",
        "init": "vgg16",
        "dropout": 0.5,
        "learning_rate": 1e-3,
        "batch_size_per_device": 5,
        "class_weights": "none",
    },
    "paper-2017-basic": PAPER
    | {
        "network": "segnet-basic",
        "init": "none",
        "depth": 4,
        "dropout": 0.0,
        "conv_bias": False,
        "learning_rate": 0.1,
        "batch_size_per_device": 12,
        "class_weights": "auto-present",
        "result_checkpoint": "best",
        "best_metric": "global_accuracy",
    },
}
STEPS = {  # images of the training split, published steps of the published batch
    "camvid-matlab-2018": (421, 10_500),
    "camvid-tutorial": (367, 40_000),
    "segnet-basic": (367, 10_000),
    "bayesian-segnet": (367, 60_000),
}


def test_every_published_protocol_is_in_the_table():
    assert set(protocol_names()) - {"demo", "camvid-strong", "finetune", "scratch"} == TABLE.keys()


@pytest.mark.parametrize("name", TABLE)
def test_a_protocol_matches_the_table(name):
    protocol = read_protocol(name, Config())
    assert {field: getattr(protocol, field) for field in ALL | TABLE[name]} == ALL | TABLE[name]


@pytest.mark.parametrize("name", STEPS)
def test_a_protocol_is_as_long_as_published_except_for_incomplete_batches(name):
    images, steps = STEPS[name]
    protocol = read_protocol(name, Config())
    batch = protocol.batch_size_per_device
    assert protocol.epochs == round(steps * batch / images) or protocol.epochs * (images // batch) == steps


@pytest.mark.parametrize("name", TABLE)
def test_every_value_has_its_source_in_a_comment(name):
    lines = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    values = tomllib.loads("\n".join(lines))
    assert not [line for line in lines if "=" in line.split("#")[0] and not line.partition("#")[2].strip()]
    assert len(values) > 12


# --- a total batch other than the protocol's ---


def batch_note(name, num_devices, num_images=367, **changes):
    """Return the note on the total batch size for a number of devices, and the difference that the result reports."""
    config = dataclasses.replace(read_protocol(name, Config()), **changes)
    batch = num_devices * config.batch_size_per_device * config.grad_accum_steps
    sampler = Sampler(num_images, batch, seed=0, flip=False, shift=0)
    in_result = recipe(config, "camvid-tutorial", batch)["differences"].get("global_batch_size")
    return batch_warning(config, SimpleNamespace(total=num_devices), sampler), in_result


def test_a_batch_size_other_than_the_protocols_is_reported_for_both_runs():
    note, in_result = batch_note("camvid-tutorial", 8)
    assert note == (  # 436 epochs of 91 steps; of 11
        "camvid-tutorial takes 39,676 steps of 4 images; this run takes 4,796 of 32 at the same learning rate; "
        "use --devices 4 --batch-size-per-device 1 for the same batch"
    )
    assert in_result == [4, 32]
    note, in_result = batch_note("camvid-strong", 8)
    assert note.startswith("camvid-strong takes 13,500 steps of 8 images; this run takes 1,500 of 64 ")
    assert note.endswith("; use --devices 8 --batch-size-per-device 1 for the same batch") and in_result == [8, 64]
    note, in_result = batch_note("camvid-tutorial", 1, grad_accum_steps=8, learning_rate=8e-3)
    assert "; this run takes 4,796 of 32 at a learning rate of 0.008, not 0.001; use --devices 1 --batch" in note
    assert note.endswith(" --batch-size-per-device 4 --grad-accum-steps 1 for the same batch") and in_result == [4, 32]


@pytest.mark.parametrize("name", protocol_names())
def test_a_protocols_own_batch_size_is_not_a_difference(name):
    assert batch_note(name, 1) == ("", None)
    batch = read_protocol(name, Config()).batch_size_per_device
    assert batch_note(name, batch, batch_size_per_device=1) == ("", None) or name in BATCH_OF_A_DEVICE


def test_matlabs_batch_is_four_images_on_each_gpu():
    assert batch_note("camvid-matlab-2018", 8, 421) == ("", None)
    note, in_result = batch_note("camvid-matlab-2018", 8, 421, batch_size_per_device=2)
    assert note.startswith("camvid-matlab-2018 takes 1,300 steps of 32 images; this run takes 2,600 of 16 ")
    assert in_result == [32, 16]


def test_no_note_without_a_protocol_or_with_too_few_images_for_its_batch():
    sampler = Sampler(367, 32, seed=0, flip=False, shift=0)
    assert batch_warning(Config(), SimpleNamespace(total=8), sampler) == ""
    assert batch_note("camvid-strong", 1, num_images=6, batch_size_per_device=2)[0] == ""


@pytest.mark.parametrize("page", ["README.md", "Dockerfile", "experiments/camvid_strong/README.md"])
def test_the_commands_of_a_page_use_the_batch_of_their_protocol(page):
    text = re.sub(r"\\\n#?", "", (ROOT / page).read_text(encoding="utf-8"))
    commands = re.findall(r"python -m segnet_jax\.train ([^#`\n]*--protocol[^#`\n]*)", text)
    assert commands
    for command in commands:
        config = parse_config(command.split("<")[0].split(), prog="segnet_jax.train", description="")
        num_devices = 1 if config.devices == "all" else int(config.devices)
        images = 421 if config.split_rule == "matlab" else 367
        sampler = Sampler(images, num_devices * config.batch_size_per_device * config.grad_accum_steps, 0, False, 0)
        assert batch_warning(config, SimpleNamespace(total=num_devices), sampler) == "", command
