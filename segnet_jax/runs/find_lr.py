"""Learning-rate range test (`train --find-lr`): train with a growing rate and suggest one from the loss curve.

The trained weights are discarded; only a plot and its numbers are written.

Source: Smith 2017 (arXiv 1506.01186).
"""

import dataclasses
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from segnet_jax.config.fields import Config
from segnet_jax.distributed.data_parallel import prefetch, replicate
from segnet_jax.reporting.learning_rate_plot import learning_rate_plot
from segnet_jax.runs import dry_run
from segnet_jax.runs.find_run import name_of
from segnet_jax.runs.out_of_memory import explain_out_of_memory
from segnet_jax.runs.setup import Setup
from segnet_jax.system.console import bar
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_json
from segnet_jax.training import build_model, build_steps
from segnet_jax.training.custom_objects import NO_OBJECTS, CustomObjects
from segnet_jax.training.schedules import exponential_range

logger = logging.getLogger(__name__)

FIRST, LAST, NUM_STEPS = 1e-7, 10.0, 150
PICTURE, NUMBERS = "find_lr.png", "find_lr.json"
_SMOOTHING = 0.9  # decay of the moving average of the loss
_DIVERGED = 4.0  # the test ends when the average exceeds this multiple of its minimum


class Range(NamedTuple):
    """Rates and losses of a range test, float [N] each.

    Attributes:
      rates: learning rates.
      losses: loss of each step.
      smoothed: exponential moving average of the losses.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray


class Suggestion(NamedTuple):
    """Learning rates read off a range test.

    Attributes:
      steepest: rate where the smoothed loss falls fastest; None if it does not fall.
      lowest: rate where the smoothed loss is lowest.
    """

    steepest: float | None
    lowest: float


def find_lr(config: Config, own: CustomObjects = NO_OBJECTS) -> pathlib.Path:
    """Run the range test, log the suggestion, and return the folder with the plot and the numbers.

    Args:
      config: config of the training run; `run` may name the folder.
      own: custom objects, including the augmentation that `config.augment` names.

    Raises:
      UserError: If the config or the data are invalid, as for a training run.
    """
    if config.resume:
        raise UserError("--find-lr starts from the initial weights, got --resume: use only one of them")
    if config.coordinator:
        raise UserError("--find-lr runs in one process, got --coordinator: omit it")
    setup, initial = dry_run.read(config, own)
    with explain_out_of_memory(config, setup.devices):
        train, batches, optimizer = steps_of(setup)
        state = setup.initial_state(initial)
        state = state.replace(opt_state=replicate(optimizer.init(jax.device_get(state.params)), setup.devices))
        found = range_test(train, batches, state)
    suggestion = suggest(found)
    folder = _claim(config)
    learning_rate_plot(found.rates, found.losses, found.smoothed, suggestion.steepest, folder / PICTURE)
    atomic_write_json(folder / NUMBERS, found._asdict() | suggestion._asdict())
    if suggestion.steepest is None:
        logger.warning(f"the loss did not fall at any learning rate from {FIRST:g} to {LAST:g}: see {folder / PICTURE}")
    else:
        logger.info(
            f"suggestion: --learning-rate {suggestion.steepest:.2g}, where the loss falls fastest; the loss is lowest "
            f"at {suggestion.lowest:.2g}; see {folder / PICTURE}"
        )
    return folder


def steps_of(setup: Setup) -> tuple[Callable, Iterator, optax.GradientTransformation]:
    """Return the training step with growing learning rates, the batches of each dispatch, and the optimizer."""
    config, devices = setup.config, setup.devices
    schedule = exponential_range(FIRST, LAST, NUM_STEPS)
    optimizer, schedule = build_model.build_optimizer(config, setup.model, setup.sampler.steps_per_epoch, schedule)
    settings = dataclasses.replace(setup.step_settings, optimizer=optimizer, schedule=schedule)
    source = setup.training_source()
    train = build_steps.build_train_step(source, devices, settings)
    dispatches = setup.dispatches(range(NUM_STEPS))
    return train, prefetch(source.inputs(dispatches), devices), optimizer


def range_test(train: Callable, batches: Any, state: Any) -> Range:
    """Take training steps until the batches end or the loss diverges."""
    rates, losses, smoothed, total, weight = [], [], [], 0.0, 0.0
    with bar("learning rates", NUM_STEPS) as advance:
        for batch in batches:
            state, metrics = train(state, batch)
            columns = (np.asarray(metrics[name]).tolist() for name in ("learning_rate", "loss", "finite"))
            for rate, loss, is_finite in zip(*columns, strict=True):
                advance()
                if not math.isfinite(loss):
                    if is_finite:  # a skipped float16 step
                        continue
                    return Range(np.array(rates), np.array(losses), np.array(smoothed))
                total, weight = _SMOOTHING * total + (1 - _SMOOTHING) * loss, _SMOOTHING * weight + 1 - _SMOOTHING
                rates.append(rate)
                losses.append(loss)
                smoothed.append(total / weight)
                if smoothed[-1] > _DIVERGED * min(smoothed):
                    return Range(np.array(rates), np.array(losses), np.array(smoothed))
    return Range(np.array(rates), np.array(losses), np.array(smoothed))


def suggest(found: Range) -> Suggestion:
    """Return the rate where the smoothed loss falls fastest per decade before its minimum, and the rate at the minimum.

    Raises:
      UserError: If fewer than two losses were finite.
    """
    if len(found.rates) < 2:
        raise UserError(f"the loss was not finite even in the first steps, at a learning rate of {FIRST:g}")
    end = int(np.argmin(found.smoothed))
    lowest = float(found.rates[end])
    if end < 2:
        return Suggestion(None, lowest)
    slopes = np.gradient(found.smoothed, np.log(found.rates))[:end]
    return Suggestion(float(found.rates[np.argmin(slopes)]), lowest)


def _claim(config: Config) -> pathlib.Path:
    """Create the folder of the results: `--run`, or the next free runs/NAME-find-lr-NUMBER."""
    try:
        if config.run:
            os.makedirs(config.run, exist_ok=True)
            return pathlib.Path(config.run)
        for number in range(1, 1_000_000):
            folder = pathlib.Path("runs") / f"{name_of(config)}-find-lr-{number}"
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise UserError(f"cannot create the folder of the results: {error.strerror}; choose one with --run") from None
    raise UserError("runs/ is full; choose a folder with --run")
