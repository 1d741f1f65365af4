"""Test that custom networks are trained, resumed and used only if the command names them."""

import json
import sys

import numpy as np
import pytest
from test_train import SMALL

import segnet_jax
from segnet_jax import evaluate, export
from segnet_jax import train as command
from segnet_jax.config.flags import parse_flags
from segnet_jax.system.errors import UserError
from segnet_jax.training import custom_network

MINE = '''
from segnet_jax.nn import SegNet


class Wide(SegNet):
    """SegNet with twice the channels."""

    @property
    def stages(self):
        return tuple((2 * channels, count) for channels, count in super().stages)


def build(num_classes, depth, width, **others):
    raise AssertionError("has no named parameters for the rest")


def wide(num_classes, depth, width, sync_axis, dtype):
    return Wide(num_classes, depth=depth, width=width, sync_axis=sync_axis, dtype=dtype)


class Unfolded(SegNet):
    @property
    def layers(self):
        return super().layers[:-1]


number = 7
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a module with a different name for each test, so that Python imports it again."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(custom_network, "_imported", {})
    yield name
    sys.modules.pop(name, None)


def train(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["train", *SMALL, *map(str, flags)])
    return command.main()


def forget(monkeypatch):
    """Behave like a new process, which has imported no custom network."""
    monkeypatch.setattr(custom_network, "_imported", {})


@pytest.mark.slow
def test_an_own_network_is_trained_and_used_only_where_it_is_named(mine, tmp_path, monkeypatch):
    run, name = tmp_path / "run", f"{mine}:Wide"
    assert train(monkeypatch, "--run", run, "--network", name, "--epochs", 1, "--devices", 1) == 0
    forget(monkeypatch)
    message = rf"{name} is custom code, which is imported only if this command names it: add --network {name}"
    with pytest.raises(UserError, match=message):
        segnet_jax.load(run)
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(parse_flags(evaluate.EvaluateOptions, [str(run)], prog="x", description=""))
    with pytest.raises(UserError, match=message):
        train(monkeypatch, "--run", run, "--resume", "--epochs", 2, "--override")
    with pytest.raises(UserError, match=message):
        train(monkeypatch, "--run", tmp_path / "other", "--config", run / "config.toml")
    assert mine in sys.modules  # by the first command; no other looked it up
    network = segnet_jax.load(run, network=name)
    assert type(network.model).__name__ == "Wide"
    assert network.predict(np.zeros((24, 32, 3), np.uint8)).shape == (24, 32)
    options = [str(run), "--network", name, "--json", str(tmp_path / "scores.json"), "--devices", "1"]
    assert evaluate.evaluate(parse_flags(evaluate.EvaluateOptions, options, prog="x", description="")) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["miou"] > 0
    options = [str(run), "--network", name, "--format", "stablehlo", "safetensors", "--out", str(tmp_path / "out")]
    assert export.export(parse_flags(export.ExportOptions, options, prog="x", description="")) == 0
    forget(monkeypatch)
    with pytest.raises(UserError, match=message):
        segnet_jax.load(tmp_path / "out")
    for wrong in ("unet", "no_such_module:Net"):
        message = f"--network {wrong} is not the network of .*run, which is {name}: omit --network, or name that one"
        with pytest.raises(UserError, match=message):  # before any import
            segnet_jax.load(run, network=wrong)
    options = [str(run), "--network", name, "--format", "onnx", "--out", str(tmp_path / "onnx")]
    with pytest.raises(UserError, match="--format onnx supports SegNet and U-Net"):
        export.export(parse_flags(export.ExportOptions, options, prog="x", description=""))


def test_a_function_gets_the_settings_that_it_has_parameters_for(mine):
    from segnet_jax.config.fields import Config
    from segnet_jax.training.build_model import build_model

    custom_network.import_given(["--epochs", "1", f"--network={mine}:wide"])
    model = build_model(Config(network=f"{mine}:wide", depth=2, width=0.125), 5, "float32")
    assert type(model).__name__ == "Wide" and (model.num_classes, model.depth, model.width) == (5, 2, 0.125)


@pytest.mark.parametrize(
    "name, message",
    [
        ("{}:number", r"--network .*:number: .* has no function or class number"),
        ("{}:Wid", r"has no function or class Wid; nearest: Wide"),
        ("no_such_module:Net", r"--network no_such_module:Net: cannot import no_such_module: ModuleNotFoundError"),
        ("{}.py:Wide", r"give the module's name without .py"),
        ("{}:Unfolded", r"--network .*:Unfolded does not implement the interface in .*: `layers` and the parameters"),
        ("{}:build", r"--network .*:build does not implement the interface in .*: has no named parameters"),
        (":Wide", r"--network must be MODULE:CLASS"),
        ("segnett", r"--network must be one of segnet, segnet-basic, unet, or MODULE:CLASS, got segnett; .*segnet"),
    ],
)
def test_what_cannot_be_imported_or_used_is_one_line(name, message, mine, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=message) as caught:
        train(monkeypatch, "--run", tmp_path / "run", "--network", name.format(mine))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_the_vgg_can_start_an_own_network_with_its_layers(mine, monkeypatch):
    from segnet_jax.config.fields import Config
    from segnet_jax.runs.config_checks import check_network

    custom_network.import_given(["--network", f"{mine}:Wide"])
    check_network(Config(network=f"{mine}:Wide", init="vgg16"))
