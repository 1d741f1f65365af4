"""Scoring a whole split: every image once, counted in integers; boundary F1 beside it.

For boundary F1 the devices count by distance, and the host pairs boundaries one to one beside them.
"""

import math
import signal
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import loky
import numpy as np

from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.distributed.data_parallel import sum_over_processes
from segnet_jax.metrics.boundary import BoundaryF1, boundary_f1
from segnet_jax.metrics.matching import count_pairs

MOST_CELLS = 2**24
"""Of the confusion matrices of all images: up to here, 64 MB, each is kept, which 138,000 images of 11 classes have."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a split found.

    Attributes:
      confusion: int64 [C,C], rows the known class.
      confusions: int32 [N,C,C], likewise of each image, in the order of the records; None where there are too many.
      boundaries: int32 [N,C,4], of each image what `metrics.boundary.boundary_counts` counts.
      loss: weighted cross-entropy, a mean over the labelled pixels.
      predictions: index -> uint8 [H,W], of the records asked for that this process saw.
      accuracies: index -> share of its labelled pixels that are right, of all records that this process saw and that
        have such pixels.
      worst: index -> uint8 [H,W], of those with the lowest accuracies, the lowest first.
      seconds: that it took, without compiling; NaN where nobody has timed it.
    """

    confusion: np.ndarray
    confusions: np.ndarray | None
    boundaries: np.ndarray
    loss: float
    predictions: dict[int, np.ndarray]
    accuracies: dict[int, float]
    worst: dict[int, np.ndarray]
    seconds: float = math.nan


def evaluate(
    eval_step: Callable,
    variables: dict,
    batches: Iterable[dict[str, jax.Array]],
    indices: Iterable[np.ndarray],
    first_device: int = 0,
    wanted: Collection[int] = (),
    num_worst: int = 0,
    on_prediction: Callable[[int, np.ndarray], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluates the network on all batches.

    Args:
      eval_step: the mapped step of `steps.eval_step`.
      variables: the network's, replicated.
      batches: on the devices; padding carries VOID labels, which do not count.
      indices: which record stands where in each batch, over the devices of all processes, int [D,B], -1 for padding.
      first_device: this process's first, among all.
      wanted: indices of the records whose predictions are to be kept.
      num_worst: how many of the worst predictions are to be kept.
      on_prediction: called with the index and the prediction, uint8 [H,W], of each record that this process sees.
      should_stop: asked after each batch.

    Returns:
      The sums over all devices and processes; None if it was stopped.
    """
    losses, unread, predictions = [], deque(), {}
    accuracies: dict[int, float] = {}
    worst: dict[int, np.ndarray] = {}
    confusion, confusions, boundaries = 0, {}, {}

    def look(index: np.ndarray, told: dict[str, jax.Array], seen: dict[str, jax.Array]) -> None:
        nonlocal confusion
        losses.append(float(told["loss"]))
        matrices = np.asarray(told["confusions"])
        confusion = confusion + matrices.sum(axis=(0, 1), dtype=np.int64)
        if (len(confusions) + index.size) * matrices[0, 0].size <= MOST_CELLS:
            confusions.update(_by_index(index, matrices))
        boundaries.update(_by_index(index, np.asarray(told["boundaries"])))
        mine = slice(first_device, first_device + len(seen["prediction"]))
        index, matrices = index[mine], matrices[mine]
        here = index >= 0
        right, labelled = np.trace(matrices, axis1=2, axis2=3)[here], matrices.sum(axis=(2, 3))[here]
        known = {int(i): r / n for i, r, n in zip(index[here], right, labelled, strict=True) if n}
        accuracies.update(known)
        lowest = sorted({*worst, *known}, key=lambda i: (accuracies[i], i))[:num_worst]
        if set(lowest) <= worst.keys() and not on_prediction and not np.isin(index, list(wanted)).any():
            return  # no picture of this batch is needed
        prediction = np.asarray(seen["prediction"])
        found = {i: each.copy() for i, each in _by_index(index, prediction).items()}
        for each in found.items() if on_prediction else ():
            on_prediction(*each)
        predictions.update({i: found[i] for i in found if i in wanted})
        kept = {i: worst[i] if i in worst else found[i] for i in lowest}
        worst.clear()
        worst.update(kept)

    num_images = 0
    for batch, index in zip(batches, indices, strict=True):
        num_images += int((index >= 0).sum())
        unread.append((index, *eval_step(variables, batch)))
        if len(unread) > 2:  # some batches late, so that the devices are kept busy meanwhile
            look(*unread.popleft())
        if should_stop():
            return None
    while unread:
        look(*unread.popleft())
    every = np.stack([confusions[i] for i in range(num_images)]) if len(confusions) == num_images else None
    loss = sum(losses) / max(int(np.sum(confusion)), 1)
    counts = np.stack([boundaries[i] for i in range(num_images)])
    return Evaluation(confusion, every, counts, loss, predictions, accuracies, worst)


def _by_index(index: np.ndarray, values: np.ndarray) -> dict[int, np.ndarray]:
    """Record -> its part of values [D,B,...], where a batch has one and no padding."""
    return {int(index[place]): values[place] for place in zip(*np.nonzero(index >= 0), strict=True)}


def evaluate_boundaries(
    evaluate: Callable[..., Evaluation | None], samples: CachedSplit, num_classes: int
) -> tuple[Evaluation, BoundaryF1] | None:
    """Evaluates, and pairs the boundaries of each prediction with those of its label; every process calls it.

    Args:
      evaluate: (on_prediction) -> what was found of the records; None if it was stopped.
      samples: of the split.
      num_classes: C.

    Returns:
      What was found, and boundary F1; None if it was stopped.
    """
    pairs = np.zeros((len(samples), num_classes), np.int32)
    waiting = deque()

    def look(index: int, prediction: np.ndarray) -> None:
        waiting.append((index, pool.submit(count_pairs, samples.read(index)[1], prediction, num_classes)))
        if len(waiting) > 4 * num_workers:  # predictions wait in memory
            take()

    def take() -> None:
        index, counting = waiting.popleft()
        pairs[index] = counting.result()

    num_workers = min(loky.cpu_count(), 16)
    with _pool(num_workers, len(samples) * math.prod(samples.image_size)) as pool:
        found = evaluate(on_prediction=look)
        if found is None:
            for _, counting in waiting:
                counting.cancel()
            return None
        while waiting:
            take()
    return found, boundary_f1(found.boundaries, sum_over_processes(pairs))


def _pool(num_workers: int, num_pixels: int) -> Executor:
    """What the pairing runs on: threads, or processes where it takes longer than these take to start.

    Threads do not help each other much: scipy's flow, which is most of the pairing, holds the interpreter.
    """
    if num_pixels <= 50 * 360 * 480:
        return ThreadPoolExecutor(num_workers, "boundaries")
    ignore_interrupt = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # it is for the one who asked
    return loky.ProcessPoolExecutor(num_workers, initializer=ignore_interrupt)
