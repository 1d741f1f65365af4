"""Test values of `--class-weights`: rules, numbers in class order, and numbers by name."""

import pytest

from segnet_jax.config.class_weights_flag import given_weights, weights_of_classes
from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_config
from segnet_jax.config.flag_specs import flag_words
from segnet_jax.config.flags import parse_config
from segnet_jax.system.errors import UserError

CLASSES = ("road", "traffic light", "car")


@pytest.mark.parametrize(
    "text, weights",
    [
        ("none", None),
        ("auto-present", None),
        ("1.0 0.3 2", [1.0, 0.3, 2.0]),
        ("car=2", [1.0, 1.0, 2.0]),
        ("CAR=2", [1.0, 1.0, 2.0]),
        ("car=2 road=0.5", [0.5, 1.0, 2.0]),
        ("traffic light=3  car=0", [1.0, 3.0, 0.0]),
        ("1e-1 0 0", [0.1, 0.0, 0.0]),
    ],
)
def test_each_class_gets_its_weight(text, weights):
    assert weights_of_classes(text, CLASSES, "photos") == weights


@pytest.mark.parametrize(
    "text, parts",
    [
        ("nonee", ["got 'nonee'", "nearest: none"]),
        ("xyz", ["must be one of none, matlab", "NAME=WEIGHT"]),
        ("1 2", ["2 weights", "photos has 3 classes", "road, traffic light, car"]),
        ("1 -2 3", ["from 0 to 1000000", "'-2'"]),
        ("1 nan 3", ["'nan'"]),
        ("1 x 3", ["'x'"]),
        ("0 0 0", ["at least one weight above 0"]),
        ("", ["at least one weight above 0"]),
        ("car=0 road=0 traffic light=0", ["sets all classes of photos to weight 0"]),
        ("cat=2", ["'cat', which is not a class of photos", "nearest: car"]),
        ("car=2 car=3", ["car twice"]),
        ("car=2 Car=3", ["a class twice"]),
        ("bicycle=2", ["which has road, traffic light, car"]),
        ("car=2 road", ["'road' in 'car=2 road'"]),
        ("car=two", ["'two'"]),
        ("=2", ["must be NAME=WEIGHT"]),
    ],
)
def test_wrong_weights_are_refused(text, parts):
    with pytest.raises(UserError) as error:
        weights_of_classes(text, CLASSES, "photos")
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    "words, value",
    [(["none"], "none"), (["1.0", "0.3"], "1.0 0.3"), (["car=2", "traffic light=3"], "car=2 traffic light=3")],
)
def test_flags_files_and_python_give_the_same_value(words, value, tmp_path):
    def parsed(args):
        return parse_config(args, prog="x", description="").class_weights

    assert parsed(["--class-weights", *words, "--epochs", "3"]) == value
    assert parsed(flag_words(Config, {"class_weights": words})) == value
    config = Config(class_weights=value)
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert read_config(tmp_path / "config.toml", Config()) == config
    if "=" in value:
        assert parsed(flag_words(Config, {"class_weights": dict(word.split("=") for word in words)})) == value


def test_a_file_may_list_the_numbers(tmp_path):
    (tmp_path / "mine.toml").write_text("class_weights = [1, 0.5, 2.0]\n")
    assert given_weights(read_config(tmp_path / "mine.toml", Config()).class_weights) == [1.0, 0.5, 2.0]
    assert Config(class_weights=(1.0, 0.5)).class_weights == "1.0 0.5"
