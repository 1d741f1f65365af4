"""Check the operations and outputs of steps lowered for every platform, and the comparison of machines."""

import json
import pathlib
import re
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_runs import make_run
from random_variables import random_variables

import segnet_jax
from segnet_jax import portability
from segnet_jax.benchmarks.portability.layer_differences import (
    Difference,
    count_other_maxima,
    differences,
    intermediates,
)
from segnet_jax.benchmarks.portability.lowering import PLATFORMS
from segnet_jax.benchmarks.portability.measure import new_peak_mb
from segnet_jax.benchmarks.portability.operation_counts import count_operations
from segnet_jax.benchmarks.portability.side_by_side import as_markdown, compare_machines
from segnet_jax.benchmarks.portability.steps import STEPS, StepConstants, lower_steps
from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_run
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.distributed.data_parallel import choose_devices, parallel_train_step, replicate
from segnet_jax.nn import SegNet, fold_batch_norm
from segnet_jax.nn.preprocessing import TORCH, normalize
from segnet_jax.system.command import run_command
from segnet_jax.training.optimizer import OptimizerSettings, build_optimizer
from segnet_jax.training.restore_network import restore
from segnet_jax.training.state import create_state, named_leaves
from segnet_jax.training.step_inputs import as_sent
from segnet_jax.training.step_settings import StepSettings
from segnet_jax.training.steps import train_steps

CLASSES = 11
TINY = Config(init="none", depth=2, width=1 / 32, image_size=(16, 24), batch_size_per_device=2, shift=2)
ALLOWED = json.loads((pathlib.Path(__file__).parent / "lowered_operations.json").read_text())


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["portability", *map(str, flags)])
    with pytest.raises(SystemExit) as left:
        run_command(portability.main)
    return left.value.code


def lowered(config=TINY, **settings):
    settings = {
        "precisions": ["float16"],
        "platforms": ["cpu"],
        "steps": STEPS,
    } | settings  # float16 has all operations of the others
    return list(lower_steps(config, StepConstants(CLASSES), **settings))


# --- what the steps consist of ---


def assert_allowed(one):
    kinds = set(one.operations)
    new = kinds - {*ALLOWED[one.step]["everywhere"], *ALLOWED[one.step].get(one.platform, ())}
    assert not new, f"{one.file}: {sorted(new)} is new; where every platform has it, add it to lowered_operations.json"
    # A scatter is serial on some platforms and in no fixed order on others. A CPU counts a confusion matrix by one.
    assert not {kind for kind in kinds if "scatter" in kind} or (one.step, one.platform) == ("evaluate", "cpu")


def slow_but(*quick, of):
    return [each if each in quick else pytest.param(each, marks=pytest.mark.slow) for each in of]


@pytest.mark.parametrize("platform", slow_but("cpu", "cuda", of=PLATFORMS))  # the variants below: "tpu"
def test_the_steps_consist_of_allowed_operations_alone_and_of_no_scatter(platform):
    for one in lowered(platforms=[platform]):
        assert_allowed(one)


@pytest.mark.parametrize("platform", slow_but("cpu", of=["cuda", "cpu"]))
def test_so_do_they_where_the_host_makes_the_batches(platform):
    config = Config(**vars(TINY) | {"input": "host"})
    for one in lowered(config, platforms=[platform], precisions=["float32"], steps=["train", "evaluate"]):
        assert_allowed(one)


VARIANTS = {
    "scaled, recolored and averaged, with dropout and learnt upsampling": {
        **{"scale": (0.75, 1.5), "color": 0.3, "ema_decay": 0.99},
        **{"dropout": 0.5, "depth": 3, "upsampling": "learnt"},
    },
    "other stages, kernels of 5x5": {"stage_convolutions": (1, 2), "stage_channels": (32, 64), "kernel_size": 5},
    "SegNet-Basic with the encoder's maps": {"network": "segnet-basic", "encoder_addition": True},
    "SegNet-Basic with one map a kernel": {"network": "segnet-basic", "decoder": "single-channel"},
}


QUICK_VARIANTS = [name for name in VARIANTS if name.startswith("scaled") or name.endswith("a kernel")]


@pytest.mark.slow  # the published network is tested above
@pytest.mark.parametrize("variant", slow_but(*QUICK_VARIANTS, of=VARIANTS))
def test_so_do_those_of_other_networks_and_recipes(variant):
    config = Config(**vars(TINY) | VARIANTS[variant])
    for one in lowered(config, platforms=["cuda", "tpu"], precisions=["bfloat16"], steps=["train"]):
        assert_allowed(one)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_so_do_the_steps_of_the_published_network(precision):
    for one in lowered(Config(init="none"), platforms=PLATFORMS, precisions=[precision]):
        assert_allowed(one)


def test_what_is_allowed_on_one_platform_alone_is_reported_by_name():
    for step, by_platform in ALLOWED.items():
        assert step in STEPS and set(by_platform) <= {"everywhere", *PLATFORMS}
        for platform in set(by_platform) - {"everywhere"}:
            assert not set(by_platform[platform]) & set(by_platform["everywhere"])
    assert not [kind for by in ALLOWED.values() for kinds in by.values() for kind in kinds if "custom_call" in kind]


def test_operations_are_those_that_the_mlir_parser_counts():
    ir = pytest.importorskip("jaxlib.mlir.ir")
    mlir = pytest.importorskip("jax._src.interpreters.mlir")  # parses JAX's dialects, for comparison with ours

    def f(x, index):
        x = jax.lax.fori_loop(0, 3, lambda _, y: jnp.sort(y) * 2, x)
        return x.at[index].add(1.0), jnp.max(x), jnp.argmax(x), jnp.linalg.qr(x[:, None] * x[None])[0]

    arguments = jnp.arange(6.0), jnp.array([2, 2])
    exported = jax.export.export(jax.jit(f), platforms=["cpu"])(*arguments)
    found = {}

    def walk(op):
        for region in op.regions:
            for block in region:
                for inner in block.operations:
                    kind, inner = inner.operation.name, inner.operation
                    if kind == "stablehlo.custom_call":
                        kind += f" {ir.StringAttr(inner.attributes['call_target_name']).value}"
                    found[kind.removeprefix("stablehlo.")] = found.get(kind.removeprefix("stablehlo."), 0) + 1
                    walk(inner)

    with mlir.make_ir_context():
        walk(ir.Module.parse(exported.mlir_module()).operation)
    expected = {kind: count for kind, count in found.items() if not kind.startswith(("func.", "return"))}
    ours = count_operations(exported.mlir_module())
    assert ours == expected
    assert ours["scatter"] == 1 and any(kind.startswith("custom_call ") for kind in ours)


def test_sums_over_devices_stay_in_the_program_that_was_lowered_for_more_than_are_here():
    for num_devices in (1, 16):
        (one,) = lowered(steps=["evaluate"], num_devices=num_devices)
        assert one.exported.nr_devices == num_devices
        assert (one.operations["all_reduce"], one.operations["all_gather"]) == (1, 2)  # loss; confusions, boundaries


# --- what the files compute ---


@pytest.mark.slow
def test_the_file_of_the_training_step_takes_the_step_that_training_takes():
    config = Config(**vars(TINY) | {"input": "host"})
    (one,) = lowered(config, steps=["train"], precisions=["float32"])
    model = SegNet(CLASSES, depth=2, width=1 / 32, sync_axis="data")
    optimizer, schedule = build_optimizer(OptimizerSettings(learning_rate=config.learning_rate), model, 1)
    rng, devices = np.random.default_rng(0), choose_devices("1")
    inputs = {
        "image": rng.integers(0, 256, (1, 1, 1, 2, 16, 24, 3), np.uint8),
        "label": rng.integers(0, CLASSES, (1, 1, 1, 2, 16, 24), np.uint8),
    }
    state = jax.device_get(create_state(random_variables(model), optimizer, "float32"))
    settings = StepSettings(model, jnp.ones(CLASSES), TORCH, optimizer, schedule)
    step = partial(train_steps, make_batch=as_sent, settings=settings)
    expected, expected_metrics = parallel_train_step(step, devices)(replicate(state, devices), inputs, ())
    names = {
        "/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    program = jax.export.deserialize(bytearray(one.exported.serialize()))
    new, metrics = program.call(names, inputs, ())
    assert metrics["loss"] == pytest.approx(np.asarray(expected_metrics["loss"]), rel=1e-6)
    for name in ("conv1_1", "conv2_2", "conv1_1_D"):
        kernel = np.asarray(new[f"params/{name}/kernel"])
        np.testing.assert_allclose(kernel, expected.params[name]["kernel"], rtol=1e-5, atol=1e-7)
        assert (kernel != state.params[name]["kernel"]).any()


def test_the_file_of_inference_labels_as_the_network_does():
    (one,) = lowered(steps=["infer"], precisions=["float32"])
    model = SegNet(CLASSES, depth=2, width=1 / 32)
    variables = random_variables(model)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    logits = model.apply(variables, normalize(images, TORCH), train=False)
    program = jax.export.deserialize(bytearray(one.exported.serialize()))
    prediction = program.call(fold_batch_norm(variables, model), images)
    assert (np.asarray(prediction) == np.argmax(np.asarray(logits), axis=-1)).mean() > 0.999


@pytest.mark.slow  # the step of a config is tested below
def test_with_a_run_the_files_are_the_programs_of_that_run(monkeypatch, tmp_path):
    classes = ClassTable(("road", "sky", "tree"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
    weights = np.array([0.5, 1, 4])
    meta = {"preprocessing": {"mean": [103.0, 116.0, 123.0], "std": [2.0, 2.0, 2.0]}, "class_weights": weights.tolist()}
    settings = {"schedule": "step", "step_epochs": 2, "learning_rate": 0.1, "batch_size_per_device": 2}
    made = make_run(tmp_path / "run", classes, meta, **settings)
    (made / "evaluations").mkdir()
    (made / "evaluations" / "dataset.json").write_text('{"num_images": {"train": 9}}')  # 4 steps of 2 images an epoch
    flags = ["--platforms", "cpu", "--precision", "float32", "--input", "host"]
    assert run(monkeypatch, "lower", "--run", made, *flags, "--out", tmp_path / "out") == 0
    programs = {
        step: jax.export.deserialize(bytearray((tmp_path / "out" / f"{step}-cpu-float32.stablehlo").read_bytes()))
        for step in STEPS
    }
    restored = restore(str(made), read_run(made), "newest", choose_devices("1"), "float32")
    variables, rng = jax.device_get(restored.variables), np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (2, 24, 32, 3), np.uint8), rng.integers(0, 3, (2, 24, 32), np.uint8)

    prediction = programs["infer"].call(fold_batch_norm(variables, restored.model), images)
    assert (np.asarray(prediction) == segnet_jax.load(made, "newest").predict(images)).mean() > 0.999

    found, _ = programs["evaluate"].call(variables, {"image": images[None], "label": labels[None]}, ())
    normal = ((images - np.array([103, 116, 123])) / 2).astype(np.float32)
    logits = np.float64(restored.model.apply(variables, normal, train=False))
    surprise = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    assert float(np.ravel(found["loss"])[0]) == pytest.approx((weights[labels] * surprise).sum(), rel=1e-4)

    optimizer, _ = build_optimizer(OptimizerSettings(), restored.model, 1)  # for the names of its state alone
    state = jax.device_get(create_state(variables, optimizer, "float32"))
    batch = {"image": images[None, None, None], "label": labels[None, None, None]}
    for step, rate in ((7, 0.1), (8, 0.01)):  # two epochs of four steps, then a tenth
        _, metrics = programs["train"].call(named_leaves(state.replace(step=np.int32(step))), batch, ())
        assert float(np.ravel(metrics["learning_rate"])[0]) == pytest.approx(rate)


def test_lower_writes_a_file_for_each_step_without_a_path_of_this_machine(monkeypatch, tmp_path):
    flags = ["--width", "0.03", "--depth", "1", "--image-size", "8", "8", "--precision", "float32"]
    assert run(monkeypatch, "lower", *flags, "--platforms", "tpu", "--out", tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "lowered.json").read_text())
    assert [one["step"] for one in report["programs"]] == list(STEPS)
    for one in report["programs"]:
        data = (tmp_path / "out" / one["file"]).read_bytes()
        assert len(data) == one["bytes"] and one["platform"] == "tpu"
        assert str(pathlib.Path(portability.__file__).parent).encode() not in data
        assert jax.export.deserialize(bytearray(data)).platforms == ("tpu",)


# --- machines ---


def test_differences_are_of_the_root_mean_square_and_of_the_largest():
    half = Difference.of(np.float16([3.0, 0.0]), np.array([3.0, 4.0]))
    assert half.relative == {"rms": pytest.approx(4 / 5), "largest": 1.0}
    both = half + Difference.of(np.float32([1.0]), np.array([1.0]))
    assert both.relative["rms"] == pytest.approx(4 / 26**0.5)


def test_a_convolutions_result_is_what_pytorch_gives():
    torch = pytest.importorskip("torch")
    model = SegNet(3, depth=1, width=1 / 16)
    variables = fold_batch_norm(random_variables(model), model)
    image = np.random.default_rng(0).normal(size=(1, 6, 8, 3)).astype(np.float32)
    results = intermediates(model.clone(folded=True), variables, jnp.asarray(image))
    assert list(results) == ["conv1_1", "conv1_2", "conv1_2_D", "conv1_1_D", "logits", "pooling 1"]
    layer = jax.device_get(variables["params"]["conv1_1"])
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(image.transpose(0, 3, 1, 2)),
        torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy()),
        torch.from_numpy(layer["bias"].copy()),
        padding=1,
    )
    np.testing.assert_allclose(results["conv1_1"][0], expected[0].permute(1, 2, 0), rtol=1e-4, atol=1e-5)
    pooled = np.maximum(results["conv1_2"], 0)[0].reshape(3, 2, 4, 2, -1).transpose(0, 2, 4, 1, 3).reshape(3, 4, -1, 4)
    np.testing.assert_array_equal(results["pooling 1"][0], pooled.argmax(-1))


def test_windows_that_chose_another_pixel_are_counted_beside_all_of_them():
    one = {"conv1_1": np.ones((1, 2, 2, 1)), "pooling 1": np.uint8([[[[0], [3]]]]), "pooling 2": np.uint8([[[[1]]]])}
    other = one | {"pooling 1": np.uint8([[[[0], [2]]]])}
    assert {name: counts.tolist() for name, counts in count_other_maxima(one, other).items()} == {
        "pooling 1": [1, 2],
        "pooling 2": [0, 1],
    }
    assert list(differences(one, other)) == ["conv1_1"]


def machine(name, **changes):
    part = {
        "layers": {"conv1_1": {"rms": 1e-7, "largest": 2e-7}},
        "poolings": {"pooling 1": {"other_maxima": 3, "windows": 4800}},
        "pixels_changed": 0.0125,
        "score": {"miou": 0.5, "num_images": 9},
        "operations": {"train": {"add": 3, "scatter": 1}},
    }
    found = {"portability": 1, "name": name, "device": name, "platform": "cpu", "subject": {"weights": "a"}}
    return found | {"environment": {"versions": {"jax": "1"}}, "precisions": {"float32": part}} | changes


def test_machines_are_compared_with_the_differences_of_their_operations():
    other = machine("other")
    other["precisions"] = {"float32": other["precisions"]["float32"] | {"operations": {"train": {"add": 3}}}}
    other["precisions"]["bfloat16"] = {"fails": "no such unit"}
    comparison = compare_machines([machine("one"), other])
    assert (
        comparison.columns == [("one", "float32"), ("other", "float32"), ("other", "bfloat16")]
        and not comparison.warnings
    )
    rows = dict(dict(comparison.sections)["Operations of the train step"])
    assert rows == {"total": [4, 3, None], "scatter": [1, 0, None]}
    page = as_markdown(comparison)
    assert "| pixels with another class | 1.250 % | 1.250 % | - |" in page and "no such unit" in page
    assert "| pooling 1 | 3 of 4,800 | 3 of 4,800 | - |" in page


def test_out_of_memory_in_float32_is_reported_in_a_line_and_leaves_what_was_measured(monkeypatch, tmp_path, capsys):
    def measure(precision):
        if precision == "float32":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")
        return {"fails": "no such unit"}

    full = SimpleNamespace(
        config=TINY, devices=choose_devices("1"), platform="cpu", describe_network=dict, measure=measure
    )
    monkeypatch.setattr("segnet_jax.benchmarks.portability.measure.Machine.open", lambda *_: full)
    file = tmp_path / "here.json"
    assert run(monkeypatch, "measure", "--run", "r", "--json", file, "--precision", "bfloat16", "float32") == 7
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: out of memory on 1 x cpu")
    assert "--grad-accum-steps" not in error and "--image-size" not in error
    assert json.loads(file.read_text())["precisions"] == {"bfloat16": {"fails": "no such unit"}}


@pytest.mark.parametrize(
    "before, after, expected",
    [
        (100_000_000, 900_000_000, 900.0),  # the first precision's training is the highest so far
        (900_000_000, 900_000_000, None),  # the next one needed less: 900 MB were the first one's
        (900_000_000, 950_000_000, 950.0),
        (0, 5_000_000, 5.0),
        (None, None, None),  # a CPU counts nothing
    ],
)
def test_the_memory_in_use_at_most_is_reported_only_of_the_part_that_used_it(before, after, expected):
    assert new_peak_mb(before, after) == expected


def test_machines_that_measured_other_weights_are_warned_of():
    comparison = compare_machines([machine("one"), machine("one", subject={"weights": "b"})])
    assert re.search("weights differ between machines", comparison.warnings[0])
    assert [name for name, _ in comparison.columns] == ["one (1)", "one (2)"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["lowr"], "got 'lowr'; nearest: lower"),
        (["lower"], "add --out DIR"),
        (["lower", "--out", "new", "--platforms", "gpu"], "--platforms must be from cpu, cuda, rocm, tpu, got gpu"),
        (["lower", "--out", "new", "--run", "none"], "no run none"),
        (["lower", "--out", "new", "--run", "begun"], "begun has no checkpoint: it stopped before"),
        (["lower", "--out", "new", "--network", "segnet-basic"], "got --depth 5: use --depth 4"),
        (["lower", "--out", "new", "--image-size", "16", "16"], "too small for 5 poolings, which need 32"),
        (["lower", "--out", "full"], "full already contains a, which is not overwritten"),
        (["lower", "--out", "new", "--witdh", "1"], "nearest: --width"),
        (["measure", "--run", "none", "--json", "x.json"], "no run none"),
        (["measure", "--run", "none", "--json", "no/x.json"], "there is no folder"),
        (["measure", "--run", "none", "--json", "x.json", "--steps", "0"], "--steps must be at least 1, got 0"),
        (["report", "none.json"], "cannot read none.json: No such file"),
        (["report", "other.json"], "other.json was not written by portability measure"),
        (["report", "good.json", "--out", "other.json"], "other.json already exists"),
    ],
)
def test_a_mistake_is_reported_in_one_line(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.toml").write_text(TINY.to_toml())
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "good.json").write_text(json.dumps(machine("one")))
    assert run(monkeypatch, *flags) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("use", ["lower", "measure", "report"])
def test_each_use_has_help_with_an_example(monkeypatch, capsys, use):
    assert run(monkeypatch, use, "--help") == 0
    assert f"python -m segnet_jax.portability {use}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_measured_and_reported(monkeypatch, tmp_path, capsys):
    made, file = make_run(tmp_path / "run", depth=2), tmp_path / "here.json"
    few = ["--steps", "2", "--rounds", "2", "--training-steps", "2", "--compared", "1", "--batch-size-per-device", "2"]
    assert run(monkeypatch, "measure", "--run", made, "--json", file, *few, "--precision", "float32", "bfloat16") == 0
    found = json.loads(file.read_text())["precisions"]
    exact, rounded = found["float32"], found["bfloat16"]
    assert list(exact["layers"]) == [
        *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv2_2_D", "conv2_1_D", "conv1_2_D", "conv1_1_D", "logits"),
    ]
    for name, layer in exact["layers"].items():
        moved = name.endswith("_D") or name == "logits"  # by a window that chose another pixel
        assert 0 < layer["rms"] < 1e-5 and 1e-4 < rounded["layers"][name]["rms"] < (0.5 if moved else 0.05)
    assert list(exact["poolings"]) == ["pooling 1", "pooling 2"]
    for name, of_exact in exact["poolings"].items():
        of_rounded = rounded["poolings"][name]
        assert of_exact["windows"] == of_rounded["windows"] > 300
        assert of_exact["other_maxima"] <= 2 < of_rounded["other_maxima"] < of_rounded["windows"] / 4
    assert exact["pixels_changed"] <= 0.001 and exact["score"]["num_images"] == 9
    assert exact["train"]["losses"] == pytest.approx(exact["train"]["reference_losses"], rel=1e-4)
    assert exact["train"]["update_difference"] < 1e-3 < rounded["train"]["update_difference"]
    assert run(monkeypatch, "report", file, file, "--out", tmp_path / "both.md") == 0
    assert "## Difference from float64" in (tmp_path / "both.md").read_text()
