"""Test the config: TOML round trip, protocols, and errors that name the key."""

import dataclasses

import pytest

from segnet_jax.config.differences import differences
from segnet_jax.config.fields import Config
from segnet_jax.config.files import protocol_names, read_config, read_protocol, read_run, read_whole_config
from segnet_jax.config.flags import parse_config
from segnet_jax.system.errors import UserError


def test_a_config_survives_its_toml_form(tmp_path):
    config = dataclasses.replace(Config(), data='a "quoted" \\ folder ü', scenes=(3, 2), learning_rate=1e-5, flip=False)
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert read_config(tmp_path / "config.toml", Config()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1.0", "unknown key 'learning_rat' in .*; nearest: learning_rate"),
        ("epochs = 3\nepochs = 4\n", "not valid TOML: .*line 2"),
        ("epochs = ", "not valid TOML"),
        ('epochs = "three"', "epochs in .* must be int, got 'three'"),
        ("epochs = true", "epochs in .* must be int, got True"),
        ("image_size = [360]", "image_size in .* must be"),
        (
            'schedule = "linear"',
            "schedule in .* must be one of constant, step, poly, cosine, one-cycle, plateau, got 'linear'",
        ),
        ("learning_rate = -1", "--learning-rate must be between .*, got -1"),
        ("seed = nan", "seed in .* must be int"),
        ('logger = ["wandb"]', "sets logger, which may only be given on the command line: .* and add --logger"),
        (
            'coordinator = "192.0.2.1:80"\nmax_steps = 3',
            "sets coordinator, max_steps, .* add --coordinator, --max-steps",
        ),
    ],
)
def test_a_faulty_file_is_refused_by_key(tmp_path, text, message):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "config.toml", Config())


def test_a_file_that_is_not_text_or_too_large_is_refused(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read the config"):
        read_config(tmp_path / "binary.toml", Config())
    (tmp_path / "large.toml").write_text("#" * 1_000_001)
    with pytest.raises(UserError, match="1,000,001 bytes"):
        read_config(tmp_path / "large.toml", Config())


def test_every_protocol_loads_and_names_itself():
    assert {"demo", "camvid-tutorial", "camvid-matlab-2018"} <= set(protocol_names())
    for name in protocol_names():
        assert read_protocol(name, Config()).protocol == name


def test_a_file_that_names_a_protocol_overrides_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('epochs = 3\nprotocol = "camvid-matlab-2018"\n')
    mine = read_config(path, Config())
    assert mine == dataclasses.replace(read_protocol("camvid-matlab-2018", Config()), epochs=3)
    assert mine == parse_config(["--config", str(path)], prog="x", description="")
    assert mine == parse_config(["--config", str(path), "--protocol", mine.protocol], prog="x", description="")
    with pytest.raises(UserError, match='--protocol demo contradicts .* protocol "camvid-matlab-2018": use only one'):
        parse_config(["--config", str(path), "--protocol", "demo"], prog="x", description="")
    path.write_text('protocol = "camvid-tutorail"')
    with pytest.raises(UserError, match="unknown protocol 'camvid-tutorail'; known: .*camvid-tutorial"):
        read_config(path, Config())


def test_a_run_of_a_removed_protocol_is_still_read(tmp_path):
    config = dataclasses.replace(Config(), protocol="of-an-earlier-version", epochs=3)
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert read_run(tmp_path) == config


def test_only_fields_of_the_experiment_count_as_differences():
    old = Config()
    new = dataclasses.replace(old, devices="2", run="x", data="elsewhere", max_steps=3, seed=1, depth=4)
    assert differences(old, new) == {"depth": (5, 4), "seed": (0, 1)}


def test_a_later_format_version_is_refused_and_a_missing_one_is_the_first(tmp_path):
    text = Config(epochs=7).to_toml()
    assert text.startswith("format_version = 1\n")
    for variant in (text, text.partition("\n")[2]):
        (tmp_path / "config.toml").write_text(variant)
        assert read_whole_config(tmp_path, "config.toml") == Config(epochs=7)
    for version in ("2", "0", '"1"', "true"):
        (tmp_path / "config.toml").write_text(text.replace("= 1", f"= {version}", 1))
        with pytest.raises(UserError, match="this segnet_jax reads versions up to 1: update"):
            read_whole_config(tmp_path, "config.toml")


def test_the_experiment_contains_only_what_differs_from_the_defaults():
    assert Config().experiment() == {}
    config = Config(epochs=7, devices="2", scale=(0.5, 2.0))  # the number of devices is not part of the experiment
    assert config.experiment() == {"epochs": 7, "scale": [0.5, 2.0]}
    assert config.hash() == Config(epochs=7, scale=(0.5, 2.0)).hash() != Config().hash()


def test_a_missing_run_names_the_one_that_may_be_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo-1", "photos-1"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.toml").touch()
    (tmp_path / "elsewhere").mkdir()
    for given, message in (
        ("demo-1", "no run demo-1: there is no such folder. Did you mean runs/demo-1?"),
        ("demo1", "no run demo1: there is no such folder. Did you mean runs/demo-1?"),
        ("run/photos-1", "no run run/photos-1: there is no such folder. Did you mean runs/photos-1?"),
        ("runs/photos", "no run runs/photos: there is no such folder. Did you mean runs/photos-1?"),
        ("else", "no run else: there is no such folder"),
        ("runs", "no run in runs: it contains no config.toml; it is a folder of runs: runs/demo-1, runs/photos-1"),
        ("elsewhere", "no run in elsewhere: it contains no config.toml"),
    ):
        with pytest.raises(UserError) as error:
            read_run(given)
        assert str(error.value) == message
