"""Test stochastic weight averaging and the logged norms against numpy."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from made_runs import make_run
from test_ema import Tiny, batches_for, trained_of
from test_steps import WEIGHTS, assert_trees_close
from test_train import SMALL, digest_of, restored, run

import segnet_jax
from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_run
from segnet_jax.config.flags import parse_config
from segnet_jax.distributed.data_parallel import choose_devices, parallel_train_step, replicate
from segnet_jax.nn.preprocessing import TORCH
from segnet_jax.runs.config_checks import check_averaged_steps
from segnet_jax.runs.trainer import Trainer
from segnet_jax.system.errors import UserError
from segnet_jax.training.batch_norm_statistics import save_statistics
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.ema import swa_decay_at
from segnet_jax.training.optimizer import OptimizerSettings, build_optimizer
from segnet_jax.training.precision import DTYPES, LossScale
from segnet_jax.training.restore_network import restore
from segnet_jax.training.state import create_state, init_variables
from segnet_jax.training.step_inputs import as_sent
from segnet_jax.training.step_settings import StepSettings
from segnet_jax.training.steps import train_steps

RATE = 0.05


def steps_of(count, optimizer=None, precision="float32", **settings):
    devices, model = choose_devices(str(count)), Tiny(dtype=DTYPES[precision])
    built, schedule = build_optimizer(OptimizerSettings(learning_rate=RATE), model, 100)
    optimizer = optimizer or built
    state = create_state(init_variables(model, seed=0), optimizer, precision, has_ema="swa" in settings)
    settings = StepSettings(model, jnp.asarray(WEIGHTS), TORCH, optimizer, schedule, **settings)
    step = parallel_train_step(partial(train_steps, make_batch=as_sent, settings=settings), devices)
    return replicate(state, devices), step


@pytest.mark.parametrize("first_step, steps_per_epoch", [(0, 1), (1, 1), (2, 2), (3, 4), (5, 3)])
def test_the_decays_give_the_mean_over_the_ends_of_epochs(first_step, steps_per_epoch):
    values, mean, ends = np.random.default_rng(0).normal(size=20), 7.0, []
    for step, value in enumerate(values):
        decay = float(swa_decay_at(jnp.int32(step), first_step, steps_per_epoch))
        mean = decay * mean + (1 - decay) * value
        taken = step + 1 - first_step
        ends += [value] if taken > 0 and taken % steps_per_epoch == 0 else []
        assert mean == pytest.approx(np.mean(ends) if ends else value, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("count", [1, 8])
def test_the_average_is_the_mean_of_the_states_at_the_ends_of_its_epochs(count):
    state, step = steps_of(count, swa=(0, 2))  # of four steps, the second and the fourth
    ends = []
    for number, batch in enumerate(batches_for(count), start=1):
        state, _ = step(state, batch, ())
        ends += [trained_of(state)] if number % 2 == 0 else []
        expected = jax.tree.map(lambda *all_: np.mean(all_, axis=0), *ends) if ends else trained_of(state)
        assert_trees_close(jax.device_get(state.variables), expected, rtol=1e-5, atol=1e-7)


def test_an_epoch_that_ends_with_a_skipped_float16_step_counts_with_the_state_that_it_leaves():
    (state, step), devices, states = steps_of(1, precision="float16", swa=(0, 2)), choose_devices("1"), []
    for number, batch in enumerate(batches_for(1), start=1):
        scale = LossScale(jnp.float32(2.0**50 if number == 4 else 2.0**10), jnp.int32(0))
        state, metrics = step(replicate(state.replace(loss_scale=scale), devices), batch, ())
        assert int(np.ravel(metrics["skipped"])[0]) == (number == 4)
        states.append(jax.tree.map(np.copy, trained_of(state)))
    assert jax.tree.all(jax.tree.map(np.array_equal, states[2], states[3]))
    expected = jax.tree.map(lambda second, fourth: (second + fourth) / 2, states[1], states[3])
    assert_trees_close(jax.device_get(state.variables), expected, rtol=1e-5, atol=1e-7)


def test_norms_are_those_of_gradient_and_parameters_and_change_no_bit():
    after = {}
    for is_logged in (False, True):
        state, step = steps_of(1, optimizer=optax.sgd(RATE), log_norms=is_logged)
        before = jax.device_get(state.params)
        state, metrics = step(state, batches_for(1)[0], ())
        after[is_logged] = jax.device_get(state.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, after[False], after[True]))
    leaves = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (before, after[True])]
    gradient = (leaves[0].astype(np.float64) - leaves[1]) / RATE  # plain SGD
    np.testing.assert_allclose(np.ravel(metrics["gradient_norm"]), np.linalg.norm(gradient), rtol=1e-3)
    np.testing.assert_allclose(np.ravel(metrics["weight_norm"]), np.linalg.norm(leaves[1]), rtol=1e-5)


def test_the_rate_is_constant_from_the_first_averaged_epoch_on():
    settings = OptimizerSettings(learning_rate=1.0, schedule="poly", poly_power=1.0, epochs=10, swa_epochs=4)
    rates = [float(build_optimizer(settings, Tiny(), 2)[1](step)) for step in range(20)]
    np.testing.assert_allclose(rates, [1 - step / 20 for step in range(12)] + [0.4] * 8, rtol=1e-6)
    fixed = dataclasses.replace(settings, swa_learning_rate=0.7)
    assert float(build_optimizer(fixed, Tiny(), 2)[1](15)) == pytest.approx(0.7)


SWA = ("--swa-epochs", 2, "--epochs", 4, "--schedule", "poly", "--swa-learning-rate", 0.02)


@pytest.mark.slow  # the average of states, above
def test_a_run_ends_with_the_mean_of_its_last_epochs_and_resumes_bit_for_bit(tmp_path):
    class Ends(segnet_jax.Callback):
        states = []

        def on_epoch_end(self, trainer, epoch):
            self.states.append(jax.device_get(trainer.state.params))

    words = [*SMALL, *map(str, SWA), "--run", str(tmp_path / "unbroken")]
    Trainer(parse_config(words, prog="x", description=""), callbacks=[Ends()]).run()
    assert run("--run", tmp_path / "stopped", *SWA, "--max-steps", 10) == 0  # within the last epoch
    assert run("--run", tmp_path / "stopped", *SWA) == 0
    assert digest_of(tmp_path / "stopped") == digest_of(tmp_path / "unbroken")
    expected = jax.tree.map(lambda one, two: (one + two) / 2, *Ends.states[-2:])
    assert_trees_close(restored(tmp_path / "unbroken")["ema"]["params"], expected, rtol=1e-5, atol=1e-7)
    assert list((tmp_path / "unbroken" / "checkpoints" / "statistics").iterdir())  # recomputed for the average


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"ema_decay": 0.9}, "--swa-epochs 3 and --ema-decay 0.9 both average the weights"),
        ({"schedule": "plateau"}, "--swa-epochs 3 needs a constant learning rate, got --schedule plateau"),
        ({"patience": 2}, "got --patience 2: use --patience 0"),
    ],
)
def test_settings_that_contradict_it_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Config(swa_epochs=3, **settings)


@pytest.mark.parametrize(
    "flag, given, implied", [("batch-norm", "running", "recompute"), ("result-checkpoint", "best", "last")]
)
def test_a_given_flag_that_contradicts_it_is_refused(flag, given, implied):
    words = [f"--{flag}", given, "--swa-epochs", "3"]
    with pytest.raises(
        UserError, match=f"--swa-epochs 3 implies --{flag} {implied}, got --{flag} {given}: remove one of them"
    ):
        parse_config(words, prog="x", description="")
    parse_config([f"--{flag}={implied}", "--swa-epochs", "3"], prog="x", description="")


def test_its_runs_can_be_restored_with_the_running_statistics(tmp_path):
    folder = make_run(tmp_path / "run", swa_epochs=1, epochs=2, result_checkpoint="last")
    config, devices = read_run(folder), choose_devices("1")
    plain = restore(str(folder), config, "result", devices, "float32", batch_norm="running")
    running = jax.device_get(plain.variables["batch_stats"])
    precise = jax.tree.map(lambda array: array + 1, running)
    with Checkpoints(folder / "checkpoints", devices) as checkpoints:
        sums = checkpoints.sum_of_state("newest", 8)
    save_statistics(folder / "checkpoints", sums, precise, {})
    for rule, expected in (("running", running), ("run", precise), ("recompute", precise)):
        found = restore(str(folder), config, "result", devices, "float32", batch_norm=rule)
        assert_trees_close(jax.device_get(found.variables["batch_stats"]), expected, rtol=0, atol=0)


def test_it_implies_recomputed_statistics_of_the_last_checkpoint_and_fits_the_run():
    config = Config(swa_epochs=3, epochs=3)
    assert (config.batch_norm, config.result_checkpoint, config.has_average) == ("recompute", "last", True)
    check_averaged_steps(config, 5)
    with pytest.raises(UserError, match="averages 15 steps, but the run has only 14: use at most 2"):
        check_averaged_steps(dataclasses.replace(config, steps=14), 5)
