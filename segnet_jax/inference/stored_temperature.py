"""Calibrate a network's confidence by a temperature fitted on the validation split, which `predict` reads."""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.data.dataset import Split
from segnet_jax.distributed.data_parallel import AXIS, AheadOfTime, Devices, parallel_eval_step, prefetch, replicate
from segnet_jax.inference.averaging import Views
from segnet_jax.inference.network import Network
from segnet_jax.inference.predictor import Sizing
from segnet_jax.metrics.calibration import calibration, count_in_bins
from segnet_jax.metrics.fit_temperature import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature, nll_and_slope
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import UserError, shown
from segnet_jax.training.step_inputs import Input

logger = logging.getLogger(__name__)

CALIBRATION_FILE = "calibration.json"
"""File of a run folder with the temperature of its network."""

_MOST_BYTES = 10_000

_CONDITIONS = {
    "step": "another checkpoint",
    "tta": "other --tta flags",
    "size": "images of the training size",
    "data": "other images",
}


@dataclass(frozen=True)
class FittedTemperature:
    """A fitted temperature, and the scores before (temperature 1) and after fitting.

    Attributes:
      temperature: divides the logits.
      nll: mean negative log-likelihood per labeled pixel, (before, after).
      error: expected calibration error, (before, after).
    """

    temperature: float
    nll: tuple[float, float]
    error: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """Return the content of `calibration.json` that does not depend on the run."""
        both = {"nll": self.nll, "calibration_error": self.error}
        ends = {name: dict(zip(("before", "after"), values, strict=True)) for name, values in both.items()}
        return {"temperature": self.temperature, **ends}


def calibrate(network: Network, source: Input, devices: Devices) -> FittedTemperature:
    """Fit the temperature of a network on every labeled pixel of a split, in four passes over it.

    Args:
      network: the network; for averages over views, the temperature divides the logarithm of the mean probabilities.
      source: input of the split's batches.
      devices: devices to compute on.

    Raises:
      ValueError: If the split has no labeled pixel.
    """
    settings = {"make_batch": source.make_batch, "forward": network.forward}
    steps = {
        name: AheadOfTime(
            parallel_eval_step(partial(step, **settings), devices, source.store_axis), name, devices, source.store
        )
        for name, step in (("the slope of the NLL", _nll_step), ("the calibration", _bins_step))
    }
    variables = replicate(network.variables, devices)

    def total(name: str, factors: np.ndarray) -> tuple[Any, np.ndarray]:
        """Return a step's two sums over the split: its integer counts, and its per-image values."""
        state, sums, of_images = (variables, replicate(factors, devices)), [], 0.0
        for inputs in prefetch(source.inputs(), devices):
            counts, each = steps[name](state, inputs)
            sums.append(jax.tree.map(lambda array: np.asarray(array, np.int64), counts))
            of_images = of_images + np.asarray(each, np.float64).sum(axis=(0, 1))
        return jax.tree.map(lambda *arrays: sum(arrays), *sums), of_images

    temperature = fit_temperature(lambda factors: total("the slope of the NLL", factors)[1][:, 1])
    counts, nll = total("the calibration", np.float32([1, 1 / temperature]))
    before, after = (calibration({name: values[i] for name, values in counts.items()}) for i in range(2))
    pixels = int(before.pixels.sum())
    return FittedTemperature(temperature, tuple((nll[:, 0] / pixels).tolist()), (before.error, after.error))


def _nll_step(state, inputs, store, *, make_batch, forward):
    """Sum the NLL and its slope over each image of a batch on one device."""
    (variables, factors), batch = state, lax.optimization_barrier(make_batch(inputs, store))
    return (), nll_and_slope(forward(variables, batch["image"]), batch["label"], factors)


def _bins_step(state, inputs, store, *, make_batch, forward):
    """Count the pixels of a batch by confidence at each factor, and sum their NLL."""
    (variables, factors), batch = state, lax.optimization_barrier(make_batch(inputs, store))
    logits, label = forward(variables, batch["image"]), batch["label"]
    prediction = logits.argmax(axis=-1).astype(jnp.uint8)
    centered = logits - logits.max(axis=-1, keepdims=True)
    counts = lax.map(
        lambda factor: count_in_bins(label, prediction, 1 / jnp.exp(factor * centered).sum(axis=-1), 1.0), factors
    )
    return lax.psum(counts, AXIS), nll_and_slope(logits, label, factors)


def check_own_images(split: Split, meta: Mapping[str, Any], run: str) -> None:
    """Check that a temperature is fitted on the run's own validation images.

    Raises:
      UserError: If the split differs from that in the checkpoint's metadata, which exported networks lack.
    """
    if split.fingerprint != meta.get("data", {}).get("val", split.fingerprint):
        raise UserError(f"--calibrate needs the validation images of {run}, got others: use the --data of the run")


def conditions(meta: Mapping[str, Any], views: Views, sizing: Sizing) -> dict[str, Any]:
    """Return the conditions for which a temperature is valid, as stored in `calibration.json`.

    Args:
      meta: metadata of the checkpoint in use.
      views: the views that are averaged.
      sizing: the choice of the network's input size.
    """
    size = "native" if sizing.tile else sizing.size
    return {"step": meta["step"], "tta": views.as_json(), "size": size, "data": meta.get("data", {}).get("val", "")}


def read_temperature(run: str, current: Mapping[str, Any]) -> float:
    """Return the temperature of a run's network; 1 if no calibration was fitted under the same conditions.

    Args:
      run: run folder or exported folder.
      current: the conditions of its use, from `conditions`.

    Raises:
      UserError: If the file is damaged, a link, or too large.
    """
    path = shown(os.path.join(run, CALIBRATION_FILE))
    damaged = f"{path} is damaged: run evaluate --calibrate again, or delete it"
    try:
        if not untrusted_files.is_file(run, CALIBRATION_FILE):
            return 1.0
        stored = untrusted_files.read_json(run, CALIBRATION_FILE, most=_MOST_BYTES)
        temperature, fitted = float(stored["temperature"]), {name: stored[name] for name in current}
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        raise UserError(damaged) from None
    if not (math.isfinite(temperature) and MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE):
        raise UserError(damaged)
    if other := [_CONDITIONS[name] for name in current if fitted[name] != current[name]]:
        logger.info(f"note: {path} was fitted for {' and '.join(other)}, so the confidence is not calibrated")
        return 1.0
    return temperature
