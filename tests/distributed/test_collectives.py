"""Count the collectives of a training step in its program for eight devices, without running it."""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segnet_jax.distributed.data_parallel import AXIS, choose_devices, parallel_train_step
from segnet_jax.nn import SegNet
from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.training.optimizer import OptimizerSettings, build_optimizer
from segnet_jax.training.state import create_state, variable_shapes
from segnet_jax.training.step_inputs import as_sent
from segnet_jax.training.step_settings import StepSettings
from segnet_jax.training.steps import train_steps

DEVICES = 8
PARAMETERS = 29_441_419  # of the published network without biases before BatchNorm
CHANNELS = 7_936  # that are normalized, each with a mean and a variance
METRICS = 3  # loss, correct pixels, labeled pixels

COLLECTIVES = {"all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast"}
TRANSFERS = {"infeed", "outfeed", "send", "recv"}


def lowered(*, synchronized, width=1.0, depth=5, steps=1, precision="float32", half_gradients=False):
    """Lower the step of eight devices with one 32x32 image each; nothing is allocated."""
    model = SegNet(11, width=width, depth=depth, sync_axis=AXIS if synchronized else None)
    optimizer, schedule = build_optimizer(OptimizerSettings(learning_rate=0.1), model, 10)
    settings = StepSettings(model, jnp.ones(11), TORCH, optimizer, schedule, half_gradients=half_gradients)
    step = partial(train_steps, make_batch=as_sent, settings=settings)
    state = jax.eval_shape(partial(create_state, optimizer=optimizer, precision=precision), variable_shapes(model))
    inputs = {
        name: jax.ShapeDtypeStruct((DEVICES, steps, 1, 1, 32, 32, *channels), jnp.uint8)
        for name, channels in {"image": (3,), "label": ()}.items()
    }
    return parallel_train_step(step, choose_devices(str(DEVICES))).lower(state, inputs, ())


def operations(program):
    """Count the operations of a compiled program; a start/done pair counts once."""
    names = re.findall(r"^\s*(?:ROOT )?%?\S+ = (?:\([^()]*\)|\S+) ([a-z-]+)\(", program.as_text(), re.MULTILINE)
    return Counter(name.removesuffix("-start") for name in names)


def bytes_sent(program):
    """Return the bytes that a lowered program all-reduces, by dtype."""
    text = program.as_text()
    others = r"stablehlo\.(all_gather|all_to_all|reduce_scatter|collective_\w+|infeed|outfeed|send|recv)\b"
    assert not re.search(others, text)
    sent = Counter()
    for operands in re.findall(r'"stablehlo\.all_reduce".*?\}\) : \((.*?)\) ->', text, re.DOTALL):
        for sizes, kind, bits in re.findall(r"tensor<((?:\d+x)*)([a-z]+)(\d+)>", operands):
            sent[kind + bits] += int(bits) // 8 * int(np.prod([int(size) for size in sizes.split("x") if size]))
    return sent


def assert_sums_alone(program, count):
    """Check that a compiled program has this many all-reduces, no other collective and no host transfer."""
    found = operations(program)
    assert found["fusion"] + found["convolution"] > 10  # the text has been read
    assert {name: found[name] for name in COLLECTIVES | TRANSFERS if found[name]} == {"all-reduce": count}
    assert not re.search(r'custom_call_target="[^"]*callback', program.as_text())


# Synchronized, each of the 25 BatchNorms waits for one sum forward and for one backward.
EXPECTED = pytest.mark.parametrize("synchronized, count", [pytest.param(False, 1, marks=pytest.mark.slow), (True, 51)])


@pytest.mark.slow  # below, three steps in one call are held to the same count at depth 1
@EXPECTED
def test_a_step_sums_once_and_twice_more_for_each_synchronized_batch_norm(synchronized, count):
    assert_sums_alone(lowered(synchronized=synchronized, width=1 / 32).compile(), count)


@pytest.mark.slow
@EXPECTED
def test_the_published_network_sums_no_more_often(synchronized, count):
    assert_sums_alone(lowered(synchronized=synchronized).compile(), count)


@pytest.mark.slow  # one step is tested above
@pytest.mark.parametrize("synchronized, count", [pytest.param(False, 1, marks=pytest.mark.slow), (True, 1 + 2 * 3)])
def test_three_steps_in_one_call_send_what_one_does_three_times(synchronized, count, monkeypatch):
    settings = {"synchronized": synchronized, "width": 1 / 32, "depth": 1}
    once = bytes_sent(lowered(**settings))
    assert bytes_sent(lowered(**settings, steps=3)) == {kind: 3 * size for kind, size in once.items()}

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # steps as a loop, as on all but the CPU
    program = lowered(**settings, steps=3)
    assert bytes_sent(program) == once
    program = program.compile()
    assert operations(program)["while"] == 1
    assert_sums_alone(program, count)


@pytest.mark.parametrize("synchronized", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_is_summed_is_the_gradient_the_measures_and_the_statistics(synchronized):
    statistics = 2 * CHANNELS * (2 if synchronized else 1)  # two sums forward, two backward; else two at the end
    sent = bytes_sent(lowered(synchronized=synchronized))
    assert sent == {"f32": 4 * (PARAMETERS + METRICS + statistics)}
    assert 117.8e6 <= sent["f32"] < 117.9e6


@pytest.mark.parametrize(
    "precision, kind",
    [pytest.param("float32", "bf16", marks=pytest.mark.slow), pytest.param("float16", "f16", marks=pytest.mark.slow)],
)
def test_half_gradients_are_half_the_bytes(precision, kind):
    sent = bytes_sent(lowered(synchronized=False, precision=precision, half_gradients=True))
    assert sent == {kind: 2 * PARAMETERS, "f32": 4 * (METRICS + 2 * CHANNELS)}
    assert 58.8e6 < sent[kind] < 58.9e6
