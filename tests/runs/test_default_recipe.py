"""Test the default recipe for training on the user's own images."""

import dataclasses
import logging
import math

import pytest
from made_runs import make_run
from planted_faults import make_valid_folder

from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_protocol
from segnet_jax.config.flags import parse_config
from segnet_jax.runs import config_checks, default_recipe
from segnet_jax.runs.default_recipe import default_config, is_own_folder, suggested_steps


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(tmp_path / "cache"))
    make_valid_folder(tmp_path / "photos")
    return str(tmp_path / "photos")


def parsed(*flags):
    return parse_config([*map(str, flags)], prog="p", description="d", defaults=default_config)


def test_without_weights_own_images_are_trained_from_scratch_and_the_log_says_why(photos, logged):
    assert parsed("--data", photos) == dataclasses.replace(read_protocol("scratch", Config()), data=photos)
    assert len(logged) == 1 and logged[0].startswith("recipe   scratch: no pretrained weights are available")


def test_with_weights_in_the_cache_and_a_gpu_they_are_fine_tuned(photos, tmp_path, monkeypatch, logged):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5").touch()
    monkeypatch.setattr(default_recipe, "has_accelerator", lambda: True)
    config = parsed("--data", photos)
    assert config.protocol == "finetune" and config.init == "vgg16"
    monkeypatch.setattr(default_recipe, "has_accelerator", lambda: False)
    assert parsed("--data", photos).protocol == "scratch"
    assert "without a GPU it trains in minutes; --protocol finetune --init vgg16" in logged[-1]


def test_the_length_follows_the_number_of_images_and_the_machine(monkeypatch):
    monkeypatch.setattr(default_recipe, "has_accelerator", lambda: True)
    assert [suggested_steps(number, 4) for number in (24, 400, 4000)] == [1000, 1000, 10_000]
    monkeypatch.setattr(default_recipe, "has_accelerator", lambda: False)
    assert suggested_steps(24, 4) == suggested_steps(4000, 4) == 600


def test_init_decides_where_it_is_given(photos):
    assert parsed("--data", photos, "--init", "none").protocol == "scratch"
    assert parsed("--data", photos, "--init=weights.npz").protocol == "finetune"


def test_the_network_of_a_run_to_start_from_is_kept(photos, tmp_path):
    run = make_run(tmp_path / "run")
    source, config = parsed("--config", run / "config.toml"), parsed("--data", photos, "--init", run)
    assert config.protocol == "finetune" and config.init == str(run)
    assert (config.width, config.depth, config.network) == (source.width, source.depth, source.network)


@pytest.mark.parametrize("data", ["camvid", "synthetic", "missing"])
def test_other_data_keep_the_defaults(photos, data):
    assert parsed("--data", data) == Config(data=data)


def test_real_camvid_is_not_taken_for_own_images(camvid_folder):
    assert not is_own_folder(str(camvid_folder))


def test_a_protocol_or_config_file_is_not_replaced(photos, tmp_path, logged):
    (tmp_path / "mine.toml").write_text("depth = 3\n")
    assert parsed("--data", photos, "--protocol", "demo").protocol == "demo"
    assert parsed("--data", photos, "--config", tmp_path / "mine.toml") == Config(data=photos, depth=3)
    assert not logged


def test_flags_override_the_recipe(photos):
    assert parsed("--data", photos, "--width", 0.5).width == 0.5
    assert (parsed("--data", photos, "--epochs", 3).steps, parsed("--data", photos, "--epochs", 3).epochs) == (0, 3)
    assert parsed("--data", photos, "--steps", 50).total_steps(7) == 50
    assert Config(epochs=3).total_steps(7) == 21


def test_epochs_in_a_file_replace_the_protocols_steps(tmp_path):
    (tmp_path / "mine.toml").write_text('protocol = "scratch"\nepochs = 2\n')
    assert parsed("--config", tmp_path / "mine.toml").total_steps(5) == 10


def test_evaluations_are_about_twenty():
    config = read_protocol("scratch", Config())
    for steps_per_epoch in (1, 7, 50, 400):
        every = config_checks.epochs_between_evaluations(config, steps_per_epoch) * steps_per_epoch
        assert 1 <= math.ceil(config.steps / every) <= 40
    assert config_checks.epochs_between_evaluations(config, 1) == 50


def test_messages_of_the_choice_follow_quiet(photos, capsys):
    parsed("--data", photos, "-q")
    assert capsys.readouterr().err == ""
    from segnet_jax.system import logs

    logs.configure(logging.INFO)
