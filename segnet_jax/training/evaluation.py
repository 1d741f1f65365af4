"""Scoring a whole split: every image once, counted in integers."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import jax
import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a split found.

    Attributes:
      confusion: int64 [C,C], rows the known class.
      loss: weighted cross-entropy, a mean over the labelled pixels.
      predictions: index -> uint8 [H,W], of the records asked for that this process saw.
    """

    confusion: np.ndarray
    loss: float
    predictions: dict[int, np.ndarray]


def evaluate(
    eval_step: Callable,
    variables: dict,
    batches: Iterable[dict[str, jax.Array]],
    indices: Iterable[np.ndarray],
    wanted: Collection[int] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluates the network on all batches.

    Args:
      eval_step: the mapped step of `steps.eval_step`.
      variables: the network's, replicated.
      batches: on the devices; padding carries VOID labels, which do not count.
      indices: which record stands where in each batch, int [L,B], -1 for padding.
      wanted: indices of the records whose predictions are to be kept.
      should_stop: asked after each batch.

    Returns:
      The sums over all devices and processes; None if it was stopped.
    """
    sums, predictions = [], {}
    for batch, index in zip(batches, indices, strict=True):
        batch_sums, prediction = eval_step(variables, batch)
        sums.append(batch_sums)
        for device, place in zip(*np.nonzero(np.isin(index, list(wanted))), strict=True):
            predictions[int(index[device, place])] = np.asarray(prediction[device, place])
        if should_stop():
            return None
    sums = jax.device_get(sums)  # one wait at the end: the devices were kept busy meanwhile
    confusion = np.sum([one["confusion"] for one in sums], axis=0, dtype=np.int64)
    loss = sum(float(one["loss"]) for one in sums) / max(int(confusion.sum()), 1)
    return Evaluation(confusion, loss, predictions)
