"""Test the measurements against PyTorch: each runs at a small size, and unequal results are not timed."""

import collections
import json
import pathlib
import sys
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[peers]' runs the comparisons")

import compare  # noqa: E402
import machine  # noqa: E402
import peer_layers  # noqa: E402
import peer_pooling  # noqa: E402
import side_by_side  # noqa: E402
import torch_loader  # noqa: E402
import torch_training  # noqa: E402

from segnet_jax.system.command import run_command  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
NETWORK = ["--image-size", "24", "32", "--width", "0.0625", "--batch-size", "1", "--rounds", "2", "--steps", "1"]
INPUT = [*NETWORK[:3], *NETWORK[5:], "--data", str(ROOT / "data" / "sample")]


@pytest.fixture(autouse=True)
def one_torch_thread(monkeypatch):
    """Limit PyTorch to one thread; more would compete with the threads of JAX and of other tests."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(machine, "num_cores", lambda: 1)
    yield
    torch.set_num_threads(threads)


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, flags)])
    with pytest.raises(SystemExit) as left:
        run_command(compare.main)
    return left.value.code


def measured(monkeypatch, tmp_path, *flags):
    path = tmp_path / "found.json"
    assert run(monkeypatch, *flags, "--json", path) == 0
    found = json.loads(path.read_text())
    assert {"command", "machine", "date", "commit", "versions", "image_size", "rounds", "passes"} <= found.keys()
    assert "python experiments/peers/compare.py " in found["command"] and str(tmp_path) not in found["command"]
    assert "/" not in found["machine"] and {"torch", "jax", "pillow"} <= found["versions"].keys()
    assert found["passes"] == {}  # thresholds exist for the full size only
    return found


def assert_complete(comparison, *sides):
    assert list(comparison["sides"]) == ["ours", *sides] and list(comparison["ours_over"]) == list(sides)
    for times in comparison["sides"].values():
        assert 0 < times["ms_per_step_min"] <= times["ms_per_step"] <= times["ms_per_step_max"]
        assert times["images_per_second"] == pytest.approx(1e3 * comparison["images_per_step"] / times["ms_per_step"])
        assert times["cpu_ms_per_step"] >= 0
    ours, *others = (times["ms_per_step"] for times in comparison["sides"].values())
    assert comparison["ours_over_fastest"] == pytest.approx(ours / min(others))
    assert comparison["equal"] and all(each["off"] <= each["tolerance"] for each in comparison["equal"].values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pooling_is_compared_in_both_layouts_bit_for_bit(monkeypatch, tmp_path, capsys, precision):
    found = measured(monkeypatch, tmp_path, "pooling", *NETWORK, "--precision", precision)
    (comparison,) = found["comparisons"]
    assert_complete(comparison, "PyTorch, NCHW", "PyTorch, channels-last")
    assert all(each["off"] == each["tolerance"] == 0 for each in comparison["equal"].values())
    assert found["precision"] == precision and "PyTorch, channels-last" in capsys.readouterr().out


CHECKED = ["logits{}, PyTorch", "logits{}, PyTorch, fused", "losses{}", "change of the parameters by 2 steps{}"]


@pytest.mark.slow
def test_training_and_inference_are_compared_and_in_16_bits_first_in_float32(monkeypatch, tmp_path):
    found = measured(monkeypatch, tmp_path, "network", *NETWORK, "--precision", "bfloat16")
    training, inference = found["comparisons"]
    assert_complete(training, "PyTorch")
    assert_complete(inference, "PyTorch", "PyTorch, fused")
    assert list(training["equal"]) == [name.format(where) for where in (" in float32", "") for name in CHECKED]
    assert (found["precision"], found["compiled"], found["threads"]) == ("bfloat16", "off", 1)


@pytest.mark.slow
def test_each_convolution_and_the_rest_of_the_step_are_reported(monkeypatch, tmp_path):
    two = collections.Counter({peer_layers.Layer(24, 32, 3, 4): 1, peer_layers.Layer(24, 32, 4, 4): 2})
    monkeypatch.setattr(peer_layers, "layers_of", lambda *sizes: two)  # all would take a while to compile
    (account,) = measured(monkeypatch, tmp_path, "layers", *NETWORK)["accounts"]
    assert [(row["name"], row["pass"], row["in_a_step"]) for row in account["layers"]] == [
        ("24x32, 3 to 4", "forward", 1),
        ("24x32, 3 to 4", "gradient by kernel", 1),  # nothing needs the one by the image
        *(("24x32, 4 to 4", name, 2) for name in peer_layers.PASSES),
    ]
    sums = {(row["name"], row["pass"]): row for row in account["sums"]}
    names = "all convolutions", "whole training step", "all but convolutions"
    everything, step, rest = (sums[name, ""] for name in names)
    for side in ("ours_ms", "pytorch_ms"):
        by_hand = sum(row["in_a_step"] * row[side] for row in account["layers"])
        assert everything[side] == pytest.approx(by_hand)
        assert rest[side] == pytest.approx(step[side] - by_hand)
    assert list(account["equal"])[:4] == [name.format("") for name in CHECKED] and len(account["equal"]) == 4 + 6
    assert all(each["off"] <= each["tolerance"] for each in account["equal"].values())


def test_the_layers_of_the_published_network_are_those_of_vgg_16():
    layers = peer_layers.layers_of(360, 480, 1.0)
    assert sum(layers.values()) == 26 and len(layers) == 13
    assert layers[peer_layers.Layer(22, 30, 512, 512)] == 6 and layers[peer_layers.Layer(360, 480, 3, 64)] == 1


@pytest.mark.slow  # the stored comparison is tested in test_experiments.py
def test_input_is_compared_with_pytorchs_workers_by_one_plan(monkeypatch, tmp_path):
    found = measured(monkeypatch, tmp_path, "input", *INPUT, "--workers", "1")
    (comparison,) = found["comparisons"]
    assert_complete(comparison, "PyTorch")
    assert len(comparison["equal"]) == 8 and all(each["off"] == 0 for each in comparison["equal"].values())
    assert found["workers"] == 1 and found["data"] == "the training images of a folder"


def ties_to_the_last(x):
    y = torch.nn.functional.max_pool2d(x.flip(2), 2, return_indices=True)
    return torch.nn.functional.max_unpool2d(*y, 2, output_size=x.shape[2:]).flip(2)


def without_class_weights(problem, machine):
    training = TorchTraining(problem, machine)
    training._class_weights = torch.ones_like(training._class_weights)
    return training


def without_momentum(problem, machine):
    training = TorchTraining(problem, machine)
    for group in training._optimizer.param_groups:
        group["momentum"] = 0.0
    return training


TorchTraining = torch_training.TorchTraining
KERNEL = "gradient by kernel"
slow = partial(pytest.param, marks=pytest.mark.slow)
A_WRONG_PASS = {
    KERNEL: (peer_layers._PASSES[KERNEL][0], lambda *arrays: 1.001 * peer_layers._their_gradient(1)(*arrays))
}


@pytest.mark.parametrize(
    "flags, target, plant, message",
    [
        (["pooling", *NETWORK], (peer_pooling.TorchPooling, "_through"), staticmethod(ties_to_the_last), "gradient"),
        (["network", *NETWORK], (torch_training, "fuse"), lambda network: network.train(), "logits, PyTorch, fused"),
        pytest.param(
            ["network", *NETWORK],
            (torch_training, "MEAN"),
            torch_training.MEAN[::-1],
            "logits, PyTorch",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["network", *NETWORK],
            ("peer_network.TorchTraining",),
            without_class_weights,
            "losses",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["network", *NETWORK],
            ("peer_network.TorchTraining",),
            without_momentum,
            "change of the parameters",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["layers", *NETWORK],
            (peer_layers, "_PASSES"),
            A_WRONG_PASS,
            "24x32, 3 to 4: gradient by kernel",
            marks=pytest.mark.slow,
        ),
        (["input", *INPUT, "--workers", "0"], (torch_loader, "VOID"), 254, "labels of batch 0"),
    ],
)
def test_what_is_not_equal_is_not_timed(monkeypatch, flags, target, plant, message):
    monkeypatch.setattr(*target, plant)
    monkeypatch.setattr(sys, "argv", ["compare.py", *flags])
    with pytest.raises(side_by_side.UnequalError, match=f"^{message}.*; nothing is timed$"):
        compare.main()
