"""Test custom networks, losses, optimizers and callbacks: the same training, stored names, required again on resume."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from made_runs import make_run
from test_train import digest_of, restored

import segnet_jax
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.nn import SegNet
from segnet_jax.runs.callbacks import HOOKS
from segnet_jax.runs.initialization import read_initial
from segnet_jax.system.errors import UserError
from segnet_jax.train import train as train_command
from segnet_jax.training.build_model import build_model
from segnet_jax.training.custom_objects import CustomObjects, check_loss, custom_objects
from segnet_jax.training.losses import Loss, cross_entropy_sum

TINY = {"data": "synthetic", "scenes": (8, 4), "image_size": (24, 32), "depth": 1, "width": 1 / 16, "init": "none"}
TINY |= {"class_weights": "none", "epochs": 2, "devices": "1", "learning_rate": 0.1, "weight_decay": 0.0}


def own_cross_entropy(logits, label, class_weights):
    """Sum the cross-entropy over labeled pixels, independently of the package."""
    return cross_entropy_sum(logits, label, class_weights)


OWN = {"model": SegNet, "loss": own_cross_entropy, "optimizer": functools.partial(optax.sgd, momentum=0.9)}


class Recorder(segnet_jax.Callback):
    """A callback that records the arguments of each hook."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, trainer):
        self.seen.append(("begin", trainer.step))

    def on_step_end(self, trainer, step, metrics):
        self.seen.append(("step", step))
        assert np.isfinite(metrics["loss"]) and metrics["weight_norm"] > 0

    def on_epoch_end(self, trainer, epoch):
        self.seen.append(("epoch", epoch))
        assert trainer.step == int(trainer.state.step) == 2 * epoch

    def on_evaluation_end(self, trainer, result):
        self.seen.append(("evaluation", result.step))
        assert result.iou.keys() == set(trainer.setup.dataset.classes.names)

    def on_train_end(self, trainer):
        self.seen.append(("end", (trainer.folder / "result.json").exists()))


@pytest.fixture(scope="module", autouse=True)
def optax_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Train with custom objects, stop after three of four steps, and resume; return the run and the hooks' calls."""
    recorder, folder = Recorder(), tmp_path_factory.mktemp("runs") / "own"
    settings = TINY | OWN | {"run": str(folder), "callbacks": [recorder], "log_norms": True}
    assert segnet_jax.train(**settings, max_steps=3, profile=1).scores is None
    return segnet_jax.train(**settings), recorder.seen


@pytest.mark.slow
def test_objects_that_equal_the_built_in_ones_train_the_same_network_bit_for_bit_also_resumed(resumed, tmp_path):
    config = Config(**TINY)
    by_name = segnet_jax.train(config, run=str(tmp_path / "named"))
    own, named = restored(resumed[0].folder), restored(by_name.folder)
    for part in ("params", "batch_stats"):
        assert jax.tree.all(jax.tree.map(np.array_equal, own[part], named[part]))
    assert resumed[0].scores.miou == by_name.scores.miou
    np.testing.assert_array_equal(resumed[0].curve("loss", "train").values, by_name.curve("loss", "train").values)


def test_the_hooks_are_called_in_order_and_at_every_start(resumed):
    first = [("begin", 0), ("step", 1), ("step", 2), ("epoch", 1), ("evaluation", 2), ("step", 3), ("end", False)]
    assert resumed[1] == [*first, ("begin", 3), ("step", 4), ("epoch", 2), ("evaluation", 4), ("end", True)]
    assert len(HOOKS) == 5 and {hook for hook in HOOKS if hook in vars(Recorder)} == set(HOOKS)


def test_the_trace_of_profile_is_in_the_run_and_consists_of_files(resumed):
    found = [path for path in (resumed[0].folder / "profile").rglob("*") if not path.is_dir()]
    assert any(path.name.endswith(".xplane.pb") and path.stat().st_size > 1000 for path in found)
    assert not any(path.is_symlink() for path in found)  # a link would make the run unreadable


@pytest.mark.parametrize("flags", [("--resume",), tuple("--data synthetic --init none".split())])
def test_a_command_cannot_resume_such_a_run_and_says_why(resumed, flags):
    before = digest_of(resumed[0].folder)
    with pytest.raises(
        UserError, match=r"passed from Python \(model=.*SegNet.*loss=.*own_cross_entropy.*a command cannot import"
    ):
        config = parse_config(["--run", str(resumed[0].folder), *flags], prog="segnet_jax.train", description="")
        train_command(config)
    assert digest_of(resumed[0].folder) == before


def test_other_objects_or_the_config_alone_do_not_continue_it(resumed, tmp_path):
    run = resumed[0]
    with pytest.raises(UserError, match="got loss=.*resume it with segnet_jax.train"):
        segnet_jax.train(**TINY, run=str(run.folder), loss=own_cross_entropy)
    with pytest.raises(UserError, match="the config was trained with custom objects passed from Python"):
        segnet_jax.train(run.folder / "config.toml")
    with pytest.raises(UserError, match="unknown flag --own"):
        parse_config(["--own", "loss=os.system"], prog="segnet_jax.train", description="")


def test_the_network_is_loaded_with_its_class_and_without_loss_and_optimizer(resumed):
    run = resumed[0]
    with pytest.raises(UserError, match=r"\(model=.*\) was passed from Python.*segnet_jax.load\(RUN, model=\.\.\.\)"):
        segnet_jax.load(run.folder)
    assert run.load(model=SegNet).predict(np.zeros((10, 12, 3), np.uint8)).shape == (10, 12)
    scores = segnet_jax.evaluate(run.folder, model=SegNet, boundary=False, devices=1)
    assert scores.miou == pytest.approx(run.scores.miou, abs=1e-6)
    mean = segnet_jax.evaluate([run.folder, run.folder], model=SegNet, boundary=False, devices=1)
    assert mean.miou == pytest.approx(run.scores.miou, abs=1e-6)


def test_a_run_may_start_from_one_with_the_same_network(resumed):
    config, devices = Config(**TINY | {"init": str(resumed[0].folder)}), choose_devices("1")
    start = read_initial(config, devices, own=CustomObjects(SegNet))
    best = restored(resumed[0].folder, "best")["params"]
    assert jax.tree.all(jax.tree.map(np.array_equal, start.variables["params"], best))
    with pytest.raises(UserError, match=r"the custom network of this run .* was passed from Python"):
        read_initial(config, devices)


def test_curves_are_those_of_the_log(resumed):
    rows = list(map(json.loads, (resumed[0].folder / "metrics.jsonl").read_text().splitlines()))
    curve = resumed[0].curve("iou/Sky")
    expected = [(row["step"], row["epoch"], row["iou"]["Sky"]) for row in rows if row["kind"] == "val"]
    np.testing.assert_array_equal(np.stack([curve.steps, curve.epochs, curve.values], axis=1), expected)
    with pytest.raises(UserError, match="has no val metric 'mio'.*miou"):
        resumed[0].curve("mio")


@pytest.mark.slow  # a stop by max_steps, above, ends in the same way
def test_a_callback_can_stop_the_training_which_the_same_call_resumes(tmp_path):
    class StopAtOnce(segnet_jax.Callback):
        def on_step_end(self, trainer, step, metrics):
            trainer.request_stop()

    settings = TINY | {"run": str(tmp_path / "run"), "input": "device"}
    run = segnet_jax.train(**settings, callbacks=[StopAtOnce()])
    assert run.scores is None and digest_of(run.folder)[0] < 4
    assert segnet_jax.train(**settings).scores is not None


@pytest.mark.parametrize(
    "given, message",
    [
        ({"model": SegNet(11)}, "must be the class of a network, not an instance"),
        ({"model": 3}, "must be the class of a network, not an instance, got 3"),
        ({"optimizer": optax.sgd(0.1)}, "must be a function of the learning-rate schedule, such as optax.adamw"),
        ({"loss": 3}, "loss must be a formula, a Loss or a function"),
    ],
)
def test_objects_of_another_kind_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        custom_objects(**given)


@pytest.mark.parametrize(
    "loss, message",
    [
        (lambda logits, label, weights: logits, r"must return one float32 number.*float32 of shape \[1, 8, 8, 3\]"),
        (lambda logits, label, weights: None, "fails: "),
        (lambda logits, label: 0.0, "fails: TypeError"),
        (Loss(lambda *_: jnp.zeros(3), lambda sums, number, weights: sums), r"got float32 of shape \[3\]"),
    ],
)
def test_a_loss_that_is_no_sum_is_refused_on_shapes(loss, message):
    with pytest.raises(UserError, match=message):
        check_loss(custom_objects(loss=loss), 3)
    check_loss(custom_objects(loss=own_cross_entropy), 3)
    check_loss(CustomObjects(), 3)


class NoTap(SegNet):
    """A network that does not implement the interface: it lacks a layer that it declares."""

    @property
    def layers(self):
        return super().layers[1:]


def test_a_config_and_a_protocol_or_a_model_for_a_built_in_network_are_refused(tmp_path):
    with pytest.raises(UserError, match="pass either config or protocol"):
        segnet_jax.train(Config(), protocol="demo")
    with pytest.raises(UserError, match="was not passed from Python: omit model"):
        segnet_jax.load(make_run(tmp_path / "run"), model=SegNet)


def test_a_network_that_does_not_implement_the_interface_is_refused():
    config = Config(**TINY)
    for model in (NoTap, nn.Dense):
        with pytest.raises(UserError, match=f"model {model.__name__} does not implement the interface"):
            build_model(config, 5, "float32", CustomObjects(model))
    wide = build_model(config, 5, "float32", CustomObjects(functools.partial(SegNet, width=0.5)))
    assert (wide.width, wide.depth, wide.num_classes) == (0.5, 1, 5)
