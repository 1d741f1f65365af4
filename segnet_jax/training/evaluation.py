"""Scoring a whole split: every image once, counted in integers."""

from collections import deque
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
      accuracies: index -> share of its labelled pixels that are right, of all records that this process saw and that
        have such pixels.
      worst: index -> uint8 [H,W], of those with the lowest accuracies, the lowest first.
    """

    confusion: np.ndarray
    loss: float
    predictions: dict[int, np.ndarray]
    accuracies: dict[int, float]
    worst: dict[int, np.ndarray]


def evaluate(
    eval_step: Callable,
    variables: dict,
    batches: Iterable[dict[str, jax.Array]],
    indices: Iterable[np.ndarray],
    wanted: Collection[int] = (),
    num_worst: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluates the network on all batches.

    Args:
      eval_step: the mapped step of `steps.eval_step`.
      variables: the network's, replicated.
      batches: on the devices; padding carries VOID labels, which do not count.
      indices: which record stands where in each batch, int [L,B], -1 for padding.
      wanted: indices of the records whose predictions are to be kept.
      num_worst: how many of the worst predictions are to be kept.
      should_stop: asked after each batch.

    Returns:
      The sums over all devices and processes; None if it was stopped.
    """
    sums, unread, predictions = [], deque(), {}
    accuracies: dict[int, float] = {}
    worst: dict[int, np.ndarray] = {}

    def look(index: np.ndarray, seen: dict[str, jax.Array]) -> None:
        here = index >= 0
        right, labelled = (np.asarray(seen[name])[here] for name in ("right", "labelled"))
        known = {int(i): r / n for i, r, n in zip(index[here], right, labelled, strict=True) if n}
        accuracies.update(known)
        lowest = sorted({*worst, *known}, key=lambda i: (accuracies[i], i))[:num_worst]
        if set(lowest) <= worst.keys() and not np.isin(index, list(wanted)).any():
            return  # no picture of this batch is needed
        prediction = np.asarray(seen["prediction"])
        found = {int(index[place]): prediction[place].copy() for place in zip(*np.nonzero(here), strict=True)}
        predictions.update({i: found[i] for i in found if i in wanted})
        kept = {i: worst[i] if i in worst else found[i] for i in lowest}
        worst.clear()
        worst.update(kept)

    for batch, index in zip(batches, indices, strict=True):
        batch_sums, seen = eval_step(variables, batch)
        sums.append(batch_sums)
        unread.append((index, seen))
        if len(unread) > 2:  # some batches late, so that the devices are kept busy meanwhile
            look(*unread.popleft())
        if should_stop():
            return None
    while unread:
        look(*unread.popleft())
    sums = jax.device_get(sums)
    confusion = np.sum([one["confusion"] for one in sums], axis=0, dtype=np.int64)
    loss = sum(float(one["loss"]) for one in sums) / max(int(confusion.sum()), 1)
    return Evaluation(confusion, loss, predictions, accuracies, worst)
