"""Test SegNets with custom stages and kernels against hand counts of `segnetLayers` and PyTorch; export them."""

import re
import sys
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_networks import assert_is_network
from flax import linen as nn
from made_runs import make_run
from random_variables import random_variables

import segnet_jax
from segnet_jax.benchmarks import roofline
from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_protocol
from segnet_jax.config.flags import parse_config
from segnet_jax.exporting import onnx
from segnet_jax.exporting.exported_network import ExportedNetwork
from segnet_jax.inference.predictor import Sizing
from segnet_jax.nn import SegNet, fold_batch_norm, segnet
from segnet_jax.nn.batch_norm import BatchNormReLU
from segnet_jax.nn.convolution import Convolution
from segnet_jax.runs.config_checks import check_network
from segnet_jax.system.command import run_command
from segnet_jax.train import main as train

MATLAB = {"stage_convolutions": (2, 2, 2, 2), "stage_channels": (64, 64, 64, 64), "final_batch_norm": True}
UNEVEN = {"stage_convolutions": (2, 1), "stage_channels": (4, 6), "kernel_size": 5}
STAGES = ((4, 2), (6, 1))


def layers_of(model, monkeypatch):
    """Return the kinds of the network's layers in the order of the forward pass."""
    passed = []

    def note(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, Convolution):
            passed.append("convolution")
        if context.method_name == "__call__" and isinstance(context.module, BatchNormReLU):
            passed.extend(["batch norm", "relu"] if context.module.relu else ["batch norm"])
        return call(*args, **kwargs)

    for name in ("max_pool_with_code", "unpool"):
        function = getattr(segnet, name)
        monkeypatch.setattr(segnet, name, lambda *args, f=function, name=name: (passed.append(name), f(*args))[1])
    with nn.intercept_methods(note):
        jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    return passed


def test_the_depth_four_network_is_segnet_layers_by_layers_and_connections(monkeypatch):
    """Compare with MathWorks' count of segnetLayers(size, classes, 4): 59 layers, 66 connections.

    59 = the image input, 16 x (convolution, batch normalization, ReLU), 4 max-poolings, 4 max-unpoolings, softmax and
    the pixel classification. 66 = 58 from each layer to the next, and from each pooling its indices and its input's
    size to an unpooling.
    """
    layers = layers_of(SegNet(11, **MATLAB), monkeypatch)
    unit = ["convolution", "batch norm", "relu"]
    assert layers == 4 * (2 * unit + ["max_pool_with_code"]) + 4 * (["unpool"] + 2 * unit)
    with_ends = ["image input", *layers, "softmax", "pixel classification"]
    assert len(with_ends) == 59
    assert len(with_ends) - 1 + 2 * layers.count("unpool") == 66


def test_the_vgg16_network_with_a_last_batch_norm_has_matlabs_91_layers(monkeypatch):
    layers = layers_of(SegNet(11, final_batch_norm=True), monkeypatch)
    assert len(layers) + 3 == 91 and layers.count("convolution") == layers.count("relu") == 26


def test_the_depth_four_network_has_the_parameters_counted_by_hand():
    """Compare with a hand count of 526,102 parameters, or 527,073 with MATLAB's biases.

    Weights: 27 x 64 in the first convolution, 14 times 9 x 64 x 64, and 9 x 64 x 11 in the last. Scales and offsets: 2
    x 64 after each of 15 convolutions, 2 x 11 after the last. MATLAB's biases, fixed at zero: 64 in each of 15, 11 in
    the last.
    """
    for conv_bias, expected in ((False, 526_102), (True, 527_073)):
        model = SegNet(11, conv_bias=conv_bias, **MATLAB)
        image = jnp.zeros((1, 16, 16, 3))
        params = jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))["params"]  # noqa: B023
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    kernels = {name: layer["kernel"].shape for name, layer in params.items() if "kernel" in layer}
    names = [f"conv{stage}_{i}{end}" for stage in range(1, 5) for i in (1, 2) for end in ("", "_D")]
    ends = {"conv1_1": (3, 3, 3, 64), "conv1_1_D": (3, 3, 64, 11)}
    assert kernels == {name: ends.get(name, (3, 3, 64, 64)) for name in names}
    assert 27 * 64 + 14 * 9 * 64 * 64 + 9 * 64 * 11 + 15 * 2 * 64 + 2 * 11 == 526_102


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stage_convolutions": (1, 3)}, ((64, 1), (128, 3))),  # the channels are VGG's
        ({"stage_channels": (8, 9, 10)}, ((8, 2), (9, 2), (10, 3))),  # the convolutions are VGG's
        ({**MATLAB, "depth": 3}, ((64, 2),) * 3),
        ({**MATLAB, "width": 0.25}, ((16, 2),) * 4),
        ({**UNEVEN, "width": 0.5}, ((2, 2), (3, 1))),
    ],
    ids=str,
)
def test_what_is_not_given_is_the_encoders(settings, expected):
    assert SegNet(11, **settings).stages == expected
    assert Config(**settings).num_stages == len(expected)


def by_torch(variables, image, stages, size, epsilon=1e-5):
    """Return the float64 logits computed by PyTorch; `stages` are (channels, convolutions)."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[peers]' runs this test")
    functional = torch.nn.functional
    params, statistics = variables["params"], variables["batch_stats"]

    def tensor(array):
        return torch.tensor(np.asarray(array, np.float64))

    def block(x, name):
        kernel = tensor(params[name]["kernel"]).permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, padding=size // 2)
        norm, running = params[f"{name}_bn"], statistics[f"{name}_bn"]
        args = (running["mean"], running["var"], norm["scale"], norm["bias"])
        return torch.relu(functional.batch_norm(x, *map(tensor, args), eps=epsilon))

    x, pooled = tensor(image).permute(0, 3, 1, 2), []
    for stage, (_, count) in enumerate(stages, start=1):
        for i in range(1, count + 1):
            x = block(x, f"conv{stage}_{i}")
        pooled.append(x.shape[2:])
        x, where = functional.max_pool2d(x, 2, return_indices=True)
        pooled[-1] = (pooled[-1], where)
    for stage, (_, count) in reversed(list(enumerate(stages, start=1))):
        shape, where = pooled.pop()
        x = functional.max_unpool2d(x, where, 2, output_size=shape)
        for i in range(count, 0, -1):
            x = block(x, f"conv{stage}_{i}_D")
    return x.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("is_matlab", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["uneven", "matlab"])
def test_the_network_and_its_folded_form_compute_what_pytorchs_layers_do(is_matlab):
    settings, stages, size = (MATLAB | {"width": 1 / 16}, ((4, 2),) * 4, 3) if is_matlab else (UNEVEN, STAGES, 5)
    model = SegNet(5, **settings | {"final_batch_norm": True})
    variables = random_variables(model)
    image = np.random.default_rng(1).normal(size=(2, 21, 38, 3))
    expected = by_torch(variables, image, stages, size)
    run = jax.jit(lambda model, variables: model.apply(variables, np.float32(image), train=False), static_argnums=0)
    folded = fold_batch_norm(variables, model)
    assert np.ptp(expected) > 0.1
    for logits in (run(model, variables), run(model.clone(folded=True), folded)):
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_work_matches_a_hand_count():
    """Compare FLOPs with a hand count: 5x5 kernels, one convolution of 2 channels at 8x12 and two of 3 at 4x6."""
    model = SegNet(7, stage_convolutions=(1, 2), stage_channels=(2, 3), kernel_size=5)
    first, second = 8 * 12, 4 * 6
    down = first * 3 * 2 + second * (2 * 3 + 3 * 3)
    up = second * (3 * 3 + 3 * 2) + first * 2 * 7
    work = roofline.work_of(model, 8, 12)
    assert work.infer_flop == 2 * 25 * (down + up)
    assert work.train_flop == 3 * work.infer_flop - 2 * 25 * first * 3 * 2


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Load the network from a run with twice the channels and half the width."""
    doubled = UNEVEN | {"stage_channels": (8, 12), "width": 0.5}
    return segnet_jax.load(make_run(tmp_path_factory.mktemp("runs") / "run", depth=5, **doubled))


def test_a_run_is_loaded_with_its_stages_and_labels_any_size(network):
    assert network.model.stages == STAGES
    assert network.variables["params"]["conv1_2"]["kernel"].shape == (5, 5, 4, 4)
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 41, 3), np.uint8)
    logits = np.asarray(network.logits(images))
    assert logits.shape == (2, 24, 41, 11) and np.ptp(logits) > 0


def test_onnxruntime_gives_its_logits_from_the_file(network, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[onnx]' runs this test")
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 41, 3), np.uint8)
    subject = ExportedNetwork(network.model, jax.device_get(network.variables), {}, network.preprocessing, {})
    onnx.write(subject, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    prediction, logits = session.run(None, {"images": images})
    assert_is_network(prediction, logits, np.asarray(network.logits(images)))


def test_tiles_are_multiples_of_what_its_poolings_shrink_by():
    assert Config(**UNEVEN).num_stages == 2
    assert Sizing.of(Config(**UNEVEN), "native", (16, 24), 0).multiple == 4
    assert Sizing.of(Config(), "native", (64, 64), 0).multiple == 32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--stage-convolutions 2 2 2 2 --stage-channels 64 64 64 64",
            "--init vgg16 needs the stages of vgg16, got .* 2 2",
        ),
        (
            "--stage-channels 64 128 256 512 513",
            "--init vgg16 needs the stages of vgg16, got .*512 513 channels: use --in",
        ),
        ("--kernel-size 5", "--init vgg16 needs 3x3 kernels, got --kernel-size 5: use --init none"),
        ("--kernel-size 4 --init none", "--kernel-size must be odd, got 4"),
        ("--kernel-size 33 --init none", "--kernel-size must be between 1 and 31, got 33"),
        ("--stage-convolutions 2 2 --stage-channels 64", "--stage-convolutions has 2 stages and --stage-channels 1"),
        ("--stage-convolutions 2 2 2 2 2 2", "at most 5 stages, got 6"),
        ("--stage-convolutions 2 0", "--stage-convolutions must be between 1 and 8, got 2 0"),
        ("--network segnet-basic --depth 4 --init none --kernel-size 5", "--kernel-size are for --network segnet"),
        ("--encoder-addition --init none --stage-convolutions 2 1", "--encoder-addition needs at least 2 .*got .* 2 1"),
        ("--image-size 9 40 --init none --stage-convolutions 1 1 1 1", "9 40 is too small for 4 poolings, which"),
    ],
)
def test_an_impossible_network_is_reported_in_one_line_and_nothing_is_written(
    flags, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "--data", "synthetic", *flags.split()])
    with pytest.raises(SystemExit) as left:
        run_command(train)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and re.search(f"^error: .*{message}", line) and list(tmp_path.iterdir()) == []


def test_vggs_own_stages_written_out_take_its_weights():
    check_network(Config(stage_convolutions=(2, 2, 3), stage_channels=(64, 128, 256)))


def test_the_flags_that_the_matlab_protocol_names_make_matlabs_own_network():
    protocols = resources.files("segnet_jax") / "config" / "protocols"
    text = (protocols / "camvid-matlab-2018.toml").read_text(encoding="utf-8")
    lines = [line.strip("# ") for line in text.splitlines() if line.startswith("#")]
    flags = " ".join(lines).partition("numClasses, 4), use ")[2].rstrip(".").split()
    config = parse_config(["--protocol", "camvid-matlab-2018", *flags], prog="p", description="")
    check_network(config)
    assert config.init == "none" and read_protocol("camvid-matlab-2018", Config()).init == "vgg16"
    settings = {name: getattr(config, name) for name in ("depth", "width", "kernel_size", "conv_bias", *MATLAB)}
    assert settings == MATLAB | {"depth": 5, "width": 1.0, "kernel_size": 3, "conv_bias": False}
