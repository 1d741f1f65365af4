"""Test training runs that start from a whole trained SegNet: initial variables, and rejected sources."""

import fcntl
import json
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import weight_files
from made_runs import make_run
from random_variables import random_variables

from segnet_jax import evaluate, export, train
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.convert import ConvertOptions as Conversion
from segnet_jax.convert import convert
from segnet_jax.data.labels.classes import CAMVID, ClassTable
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.nn.segnet import ENCODERS
from segnet_jax.runs import dry_run
from segnet_jax.runs.initialization import read_initial
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError
from segnet_jax.training import batch_norm_statistics, initial_weights
from segnet_jax.training.initial_weights import FITTING, describe_start

SMALL = {"data": "synthetic", "scenes": (8, 9), "image_size": (24, 32), "depth": 1, "width": 1 / 16, "devices": "1"}
FLAGS = [
    *("--data", "synthetic", "--scenes", "8", "9", "--image-size", "24", "32", "--depth", "1", "--width", "0.0625"),
    *("--class-weights", "none", "--learning-rate", "0.05", "--devices", "1", "--batch-size-per-device", "4"),
]


def prepare(init, **changed):
    """Return the setup and the initial weights of a training run without writing anything."""
    return dry_run.read(Config(**{**SMALL, "class_weights": "none", "init": str(init)} | changed))


def first_state(init, **changed):
    setup, initial = prepare(init, **changed)
    return jax.device_get(setup.initial_state(initial))


def saved(folder, which="best"):
    """Read a checkpoint's state with Orbax directly."""
    paths, orbax = (folder / "checkpoints" / which).glob("[0-9]*/state"), ocp.PyTreeCheckpointer()
    path = max(paths, key=lambda path: int(path.parent.name))
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), orbax.metadata(path).item_metadata.tree)
    return orbax.restore(path, args=ocp.args.PyTreeRestore(restore_args=kinds))


def assert_same_bits(ours, expected):
    ours, expected = (jax.tree_util.tree_leaves_with_path(tree) for tree in (ours, expected))
    assert [path for path, _ in ours] == [path for path, _ in expected]
    for (path, one), (_, other) in zip(ours, expected, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), jax.tree_util.keystr(path)


def train_by(*flags):
    return train.train(parse_config([*FLAGS, *map(str, flags)], prog="segnet_jax.train", description=""))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Make a run with random variables and CamVid's classes, whose result.json scores its best checkpoint."""
    return make_run(tmp_path_factory.mktemp("source") / "run")


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    """Export the source run; return its `network.safetensors`."""
    out = tmp_path_factory.mktemp("exported")
    assert export.export(export.ExportOptions(str(source), format=("safetensors",), out=str(out), images=1)) == 0
    return out / "network.safetensors"


# --- the same classes ---


@pytest.mark.parametrize("rule, which", [("best", "best"), ("last", "newest")])
def test_parameters_and_statistics_are_those_of_the_checkpoint_that_the_result_is_of(rule, which, tmp_path):
    folder = make_run(tmp_path / "run", result_checkpoint=rule)
    state, expected = first_state(folder), saved(folder, which)
    assert_same_bits(state.params, expected["params"])
    assert_same_bits(state.batch_stats, expected["batch_stats"])
    assert int(state.step) == 0 and not any(leaf.any() for leaf in jax.tree.leaves(state.opt_state))


def test_where_the_run_has_averaged_parameters_those_are_taken(tmp_path):
    folder = make_run(tmp_path / "run", ema_decay=0.9)
    state, expected = first_state(folder), saved(folder)["ema"]
    assert state.ema is None
    assert_same_bits({"params": state.params, "batch_stats": state.batch_stats}, expected)
    assert_same_bits(first_state(folder, ema_decay=0.99).ema, expected)  # a new EMA starts from it


def test_recomputed_statistics_are_taken_where_the_run_is_scored_by_them(tmp_path):
    folder = make_run(tmp_path / "run", batch_norm="recompute")
    other = jax.tree.map(lambda leaf: leaf + np.float32(0.25), saved(folder)["batch_stats"])
    (manifest,) = (folder / "checkpoints" / "best").glob("*/manifest.json")
    batch_norm_statistics.save_statistics(folder / "checkpoints", json.loads(manifest.read_text())["state"], other, {})
    state = first_state(folder)
    assert_same_bits(state.batch_stats, other)
    assert_same_bits(state.params, saved(folder)["params"])


def test_before_any_step_it_scores_what_the_run_scores(source, tmp_path, capsys):
    scores_path = tmp_path / "scores.json"
    evaluate.evaluate(evaluate.EvaluateOptions(str(source), json=str(scores_path)))
    setup, initial = prepare(source)
    found = setup.build_steps().evaluate(setup.initial_state(initial).variables)
    scores = json.loads(scores_path.read_text())
    assert found.confusion.sum() == sum(each["pixels"] for each in scores["per_class"].values())
    rights = {name: int(found.confusion[place, place]) for place, name in enumerate(CAMVID.names)}
    for name, each in scores["per_class"].items():
        if each["accuracy"] is not None:
            assert rights[name] / each["pixels"] == each["accuracy"]


@pytest.mark.slow
def test_from_the_export_and_from_the_run_the_first_step_is_the_same_to_the_last_bit(source, exported):
    states = []
    from_run, _ = prepare(source)
    steps = from_run.build_steps()
    for init in (source, exported):
        setup, initial = prepare(init)
        assert setup.preprocessing == from_run.preprocessing
        state, _ = steps.train(setup.initial_state(initial), jax.device_put(_inputs(from_run), from_run.devices.split))
        states.append(jax.device_get(state))
    assert int(states[0].step) == 1
    assert_same_bits(states[1], states[0])


def _inputs(setup):
    return next(iter(setup.build_steps().source.inputs([range(0, 1)])))


# --- other classes ---


def renamed(*names):
    return ClassTable(names, CAMVID.colors[: len(names)])


@pytest.mark.parametrize(
    "settings, head",
    [
        ({}, [("params", "conv1_1_D", "kernel"), ("params", "conv1_1_D", "bias")]),
        (
            {"final_batch_norm": True},
            [
                ("params", "conv1_1_D", "kernel"),
                *(("params", "conv1_1_D_bn", part) for part in ("scale", "bias")),
                *(("batch_stats", "conv1_1_D_bn", part) for part in ("mean", "var")),
            ],
        ),
        ({"network": "segnet-basic", "preprocessing": "raw"}, [("params", "conv_classifier", "kernel")]),
    ],
    ids=["plain", "final BatchNorm", "SegNet-Basic"],
)
def test_classes_of_the_same_name_keep_their_rows_wherever_they_stand(settings, head, tmp_path, monkeypatch):
    """Use CamVid's eleven classes, and a source with ten of them in another order plus one more."""
    if settings:  # flax's takes seconds to compile
        monkeypatch.setattr(initial_weights, "init_variables", random_variables)
    names = [name for name in reversed(CAMVID.names) if name != "Fence"] + ["Kiosk"]
    meta = {"preprocessing": {"mean": [0.0] * 3, "std": [1.0] * 3}} if settings.get("preprocessing") else {}
    folder = make_run(tmp_path / "run", classes=renamed(*names), changed_meta=meta, **settings)
    state, trained, lines = first_state(folder, **settings), saved(folder), []
    ours = {"params": state.params, "batch_stats": state.batch_stats}
    for collection, layer, part in head:
        found, before = ours[collection].get(layer, {}).get(part), trained[collection][layer][part]
        assert found.shape == before.shape
        for place, name in enumerate(CAMVID.names):
            row = found[..., place]
            if name != "Fence":
                np.testing.assert_array_equal(row, before[..., names.index(name)])
            elif part == "kernel":  # drawn: He's deviation, like no row of the source
                assert 0.3 < row.std() / np.sqrt(2 / row.size) < 3
                assert all(np.abs(row - before[..., other]).max() > 1e-3 for other in range(11))
            else:
                assert row not in before
                assert settings or row == 0.0  # the bias as it is initialized
    heads = {layer for _, layer, _ in head}
    for collection, layers in ours.items():
        rest = {layer: parts for layer, parts in layers.items() if layer not in heads}
        assert_same_bits(rest, {layer: trained[collection][layer] for layer in rest})
    config = Config(**SMALL | {"init": str(folder), "class_weights": "none"} | settings)
    lines = describe_start(read_initial(config, choose_devices("1")), CAMVID.names)
    assert "kept Sky, Building, " in lines and "; new Fence; left out Kiosk" in lines and "step 7, the best" in lines


def test_one_line_says_that_all_classes_are_kept(source):
    trained = read_initial(Config(**SMALL, init=str(source)), choose_devices("1"))
    assert describe_start(trained, CAMVID.names) == f"{source}, step 7, the best: all 11 classes kept"
    assert "kept none; new A, B; left out Sky, " in describe_start(trained, ["A", "B"])


# --- training runs ---


@pytest.mark.slow
def test_it_trains_on_eight_devices_in_float16_at_another_size_and_resumes_without_its_source(source, tmp_path, capfd):
    gone = tmp_path / "source"
    shutil.copytree(source, gone)
    flags = (
        "--init",
        gone,
        "--run",
        tmp_path / "run",
        "--freeze",
        "encoder",
        "--precision",
        "float16",
        "--devices",
        "8",
    )
    flags += ("--image-size", "32", "40", "--batch-size-per-device", "1", "--epochs", "2", "--grad-accum-steps", "1")
    assert train_by(*flags, "--max-steps", "1") == 0
    assert f"init     {gone}, step 7, the best: all 11 classes kept" in capfd.readouterr().err
    assert f'init = "{gone}"' in (tmp_path / "run" / "config.toml").read_text()
    shutil.rmtree(gone)
    assert train_by("--run", tmp_path / "run", "--resume", *flags) == 0
    before, after = saved(source), saved(tmp_path / "run", "newest")
    assert int(after["step"]) == 2
    for collection in ("params", "batch_stats"):
        layers = {layer for layer in before[collection] if "_D" not in layer}
        assert_same_bits(*({layer: tree[collection][layer] for layer in layers} for tree in (after, before)))
    assert np.abs(after["params"]["conv1_2_D"]["kernel"] - before["params"]["conv1_2_D"]["kernel"]).max() > 1e-4


CHANNELS = ((4, 2), (5, 2), (6, 3), (7, 3), (5, 3))


@pytest.fixture
def caffe(monkeypatch, tmp_path):
    """Write a small SegNet's `.caffemodel` and convert it to a run; return both paths."""
    monkeypatch.setitem(ENCODERS, "vgg16", CHANNELS)
    path = tmp_path / "net.caffemodel"
    weight_files.write_caffe_segnet(path, weight_files.random_caffe_segnet(CHANNELS))
    assert convert(Conversion(str(path), run=str(tmp_path / "converted"))) == 0
    return path, tmp_path / "converted"


@pytest.mark.slow
def test_what_convert_leaves_is_trained_on_and_so_is_the_file_itself(caffe, capsys):
    path, converted = caffe
    network = {"depth": 5, "width": 1.0, "conv_bias": True, "pooling": "ceil", "batch_norm_epsilon": 1e-9}
    states = []
    for init in (path, converted):
        setup, initial = prepare(init, image_size=(32, 32), **network)
        assert setup.preprocessing.mean == (0, 0, 0) and setup.preprocessing.std == (1, 1, 1)
        states.append(jax.device_get(setup.initial_state(initial)))
    expected = saved(converted)
    for state in states:
        assert_same_bits(state.params, expected["params"])
        assert_same_bits(state.batch_stats, expected["batch_stats"])


@pytest.mark.slow
def test_the_protocol_for_few_images_trains_what_convert_has_left(caffe, tmp_path, capfd):
    """Train with the `finetune` protocol; the first command omits the flags that its error suggests."""
    args = ["--protocol", "finetune", "--init", str(caffe[1]), "--data", "synthetic", "--scenes", "8", "4"]
    args += ["--image-size", "32", "32", "--devices", "1", "--epochs", "1", "--run", str(tmp_path / "run")]
    with pytest.raises(UserError) as caught:
        train.train(parse_config(args, prog="segnet_jax.train", description=""))
    args += caught.value.faults[0].fix.split()
    with jax.numpy_dtype_promotion("standard"):  # optax's cosine takes the minimum of a float and a count
        assert train.train(parse_config(args, prog="segnet_jax.train", description="")) == 0
    assert "trained by" not in capfd.readouterr().err
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["num_steps"] == 2 and found["checkpoint"] == "last"
    before, after = saved(caffe[1]), saved(tmp_path / "run", "newest")
    for layer in ("conv1_1", "conv5_3", "conv5_3_D", "conv1_1_D"):
        assert np.abs(after["params"][layer]["kernel"] - before["params"][layer]["kernel"]).max() > 0


# --- what is refused ---


@pytest.mark.parametrize(
    "changed, message, fix",
    [
        ({"width": 0.125}, "width 0.0625 instead of 0.125", "--width 0.0625"),
        ({"depth": 2}, "depth 1 instead of 2", "--depth 1"),
        ({"encoder": "vgg19"}, "encoder vgg16 instead of vgg19", "--encoder vgg16"),
        ({"pooling": "ceil"}, "pooling floor instead of ceil", "--pooling floor"),
        ({"conv_bias": True}, "conv_bias False instead of True", "--no-conv-bias"),
        ({"network": "segnet-basic"}, "network segnet instead of segnet-basic", "--network segnet"),
        ({"batch_norm_epsilon": 1e-9, "depth": 3}, "", "--depth 1 --batch-norm-epsilon 1e-05"),
        ({"preprocessing": "raw"}, "--preprocessing raw does not match --init", "--preprocessing auto"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("kind", ["source", "exported"])
def test_a_network_that_does_not_fit_is_refused_with_what_differs_and_the_flags_that_fit(
    kind, changed, message, fix, request
):
    with pytest.raises(UserError) as caught:
        prepare(request.getfixturevalue(kind), **changed)
    assert message in str(caught.value) and f"fix: {fix}" in str(caught.value)
    assert caught.value.faults[0].fix == fix and "\n" not in str(caught.value)


def files_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capfd, init, *flags):
    """Return the one-line error of a training command that is rejected."""
    capfd.readouterr()
    args = [*FLAGS, "--init", str(init), *map(str, flags)]
    with pytest.raises(SystemExit) as ending:
        run_command(lambda: train.train(parse_config(args, prog="segnet_jax.train", description="")))
    assert ending.value.code == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1
    return error[0]


@pytest.fixture
def copied(source, tmp_path):
    return shutil.copytree(source, tmp_path / "run")


def test_a_damaged_checkpoint_is_refused_and_left_where_it_is(copied, capfd, tmp_path):
    damaged = max((copied / "checkpoints/best").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    before = files_of(tmp_path)
    assert "the best checkpoint of step 7" in refused(capfd, copied, "--run", tmp_path / "new")
    assert files_of(tmp_path) == before


def test_a_checkpoint_that_was_saved_and_is_gone_is_missed(copied, capfd, tmp_path):
    shutil.rmtree(copied / "checkpoints/best/7")
    before = files_of(tmp_path)
    assert "it is missing" in refused(capfd, copied, "--run", tmp_path / "new")
    assert files_of(tmp_path) == before


def test_a_run_that_is_still_training_is_refused(copied, capfd, tmp_path):
    (copied / "lock").write_text('{"pid": 7, "host": "here", "since": "noon"}')
    before = files_of(tmp_path)
    with open(copied / "lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = refused(capfd, copied, "--run", tmp_path / "new")
    assert "is still being trained by process 7 on here since noon: wait" in message
    assert files_of(tmp_path) == before


def test_the_run_being_trained_is_refused(copied, capfd, tmp_path):
    before = files_of(tmp_path)
    assert "is the run being trained" in refused(capfd, copied, "--run", copied / "." / ".." / "run")
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    "init, message", [("no/such/run", "no/such/run does not exist"), ("empty", "contains no config.toml")]
)
def test_what_is_neither_a_run_nor_a_file_is_refused(init, message, capfd, tmp_path):
    (tmp_path / "empty").mkdir()
    assert message in refused(capfd, tmp_path / init, "--run", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_stage_to_freeze_that_the_network_does_not_have_is_refused(source, capfd, tmp_path):
    message = refused(capfd, source, "--freeze", "2", "--run", tmp_path / "new")
    assert "--freeze 2 exceeds the network's 1 encoder stages" in message
    assert not (tmp_path / "new").exists()


def rewritten(exported, path, change):
    """Rewrite the export with changed tensors or metadata."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(exported, "np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors, metadata: metadata.pop("network"), "has no valid network in its metadata"),
        (lambda tensors, metadata: metadata.update(classes="[1]"), "by unique printable names"),
        (lambda tensors, metadata: metadata.update(classes='["A", "B"]'), "has 11 classes, but it names 2"),
        (
            lambda tensors, metadata: tensors.update({"conv1_1_D.bias": np.zeros(3, np.float32)}),
            "has 3, 11 classes, but",
        ),
        (lambda tensors, metadata: metadata.update(network='{"kernels": 5}'), "unknown key 'kernels'"),
        (lambda tensors, metadata: metadata.update(preprocessing='{"mean": [0, 0, 0], "std": [1, 0, 1]}'), "above 0"),
        (lambda tensors, metadata: tensors.pop("conv1_2_bn.running_var"), "conv1_2_bn/var missing instead of [4]"),
        (
            lambda tensors, metadata: tensors.update({"conv1_2.weight": np.zeros((4, 4, 5, 5), np.float32)}),
            "[5, 5, 4, 4]",
        ),
        (lambda tensors, metadata: tensors["conv1_2_bn.running_var"].fill(-1), "is a variance"),
        (lambda tensors, metadata: tensors["conv1_2.weight"].fill(np.nan), "not finite"),
        (lambda tensors, metadata: tensors.update(extra=np.zeros(3, np.float32)), "which no SegNet has"),
    ],
)
def test_an_export_that_is_not_whole_or_does_not_say_what_it_is_is_refused(exported, tmp_path, change, message):
    path = rewritten(exported, tmp_path / "network.safetensors", change)
    with pytest.raises(UserError) as caught:
        read_initial(Config(**SMALL, init=str(path)), choose_devices("1"))
    assert message in str(caught.value) and "network.safetensors" in str(caught.value)


def test_an_export_says_of_the_network_all_that_must_fit():
    assert set(FITTING) <= {*export.NETWORK_FIELDS, *export.READING_FIELDS}


def test_a_cut_off_export_is_refused(exported, tmp_path):
    path = pathlib.Path(tmp_path / "network.safetensors")
    path.write_bytes(exported.read_bytes()[:-5])
    with pytest.raises(UserError, match="network.safetensors"):
        read_initial(Config(**SMALL, init=str(path)), choose_devices("1"))
