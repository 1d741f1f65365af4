"""Evaluate every image of a split once, with integer counts, and optionally compute boundary F1.

For boundary F1, the devices count boundary pixels by distance while the host matches boundaries one to one.
"""

import math
import signal
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import loky
import numpy as np

from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.distributed.data_parallel import sum_over_processes
from segnet_jax.metrics.boundary import BoundaryF1, boundary_f1
from segnet_jax.metrics.boundary_matching import count_pairs
from segnet_jax.metrics.table import labeled_pixels, right_pixels

MAX_CELLS = 2**24
"""Maximum number of elements in all per-image confusion matrices (64 MB): 138,000 images with 11 classes."""


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a split.

    Attributes:
      confusion: int64 [C,C]; rows are the ground truth. With several classes per pixel, see `metrics.co_occurrence`.
      confusions: int32 [N,C,C], the confusion matrix of each image, in sample order; None if larger than MAX_CELLS.
      boundaries: int32 [N,C,4], the counts of `metrics.boundary.boundary_counts` for each image.
      loss: the run's loss over the whole split.
      predictions: index -> uint8 [H,W], for the samples in `evaluate`'s `keep` on this process's devices.
      accuracies: index -> fraction of labeled pixels that are correct, for all samples with labeled pixels on this
        process's devices.
      worst: index -> uint8 [H,W], the predictions with the lowest accuracies, lowest first.
      seconds: duration without compilation; NaN if not measured.
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
    keep: Collection[int] = (),
    num_worst: int = 0,
    on_prediction: Callable[[int, np.ndarray], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    mean_loss: Callable[[Any, int], Any] = lambda sums, num_pixels: sums / num_pixels,
) -> Evaluation | None:
    """Evaluate the network on all batches.

    Args:
      eval_step: the mapped step of `steps.eval_step`.
      variables: variables of the network, replicated.
      batches: batches on the devices; padding has VOID labels, which are ignored.
      indices: for each batch, the sample indices on the devices of all processes, int [D,B]; -1 for padding.
      first_device: index of this process's first device.
      keep: indices of the samples whose predictions are returned.
      num_worst: number of worst predictions to return.
      on_prediction: called with the index and prediction, uint8 [H,W], of each sample on this process's devices.
      should_stop: called after each batch; if it returns True, the evaluation stops.
      mean_loss: function (sums of the loss over the split, number of labeled pixels) -> loss.

    Returns:
      Results over all devices and processes, or None if stopped.
    """
    losses, pending, predictions = [], deque(), {}
    accuracies: dict[int, float] = {}
    worst: dict[int, np.ndarray] = {}
    confusion, confusions, boundaries = 0, {}, {}

    def process(index: np.ndarray, totals: dict[str, jax.Array], local: dict[str, jax.Array]) -> None:
        nonlocal confusion
        losses.append(jax.tree.map(lambda each: np.asarray(each, np.float64), totals["loss"]))
        matrices = np.asarray(totals["confusions"])
        confusion = confusion + matrices.sum(axis=(0, 1), dtype=np.int64)
        if (len(confusions) + index.size) * matrices[0, 0].size <= MAX_CELLS:
            confusions.update(_by_index(index, matrices))
        boundaries.update(_by_index(index, np.asarray(totals["boundaries"])))
        local_devices = slice(first_device, first_device + len(local["prediction"]))
        index, matrices = index[local_devices], matrices[local_devices]
        is_sample = index >= 0
        correct, labeled = right_pixels(matrices)[is_sample], labeled_pixels(matrices)[is_sample]
        new = {int(i): c / n for i, c, n in zip(index[is_sample], correct, labeled, strict=True) if n}
        accuracies.update(new)
        lowest = sorted({*worst, *new}, key=lambda i: (accuracies[i], i))[:num_worst]
        if set(lowest) <= worst.keys() and not on_prediction and not np.isin(index, list(keep)).any():
            return  # no prediction of this batch is needed: skip the transfer to the host
        prediction = np.asarray(local["prediction"])
        by_index = {i: each.copy() for i, each in _by_index(index, prediction).items()}
        for item in by_index.items() if on_prediction else ():
            on_prediction(*item)
        predictions.update({i: by_index[i] for i in by_index if i in keep})
        new_worst = {i: worst[i] if i in worst else by_index[i] for i in lowest}
        worst.clear()
        worst.update(new_worst)

    num_images = 0
    for batch, index in zip(batches, indices, strict=True):
        num_images += int((index >= 0).sum())
        pending.append((index, *eval_step(variables, batch)))
        if len(pending) > 2:  # lags behind to keep the devices busy
            process(*pending.popleft())
        if should_stop():
            return None
    while pending:
        process(*pending.popleft())
    per_image = np.stack([confusions[i] for i in range(num_images)]) if len(confusions) == num_images else None
    num_pixels = max(int(labeled_pixels(np.asarray(confusion))), 1)
    loss = float(mean_loss(jax.tree.map(lambda *each: sum(each), *losses), num_pixels))
    counts = np.stack([boundaries[i] for i in range(num_images)])
    return Evaluation(confusion, per_image, counts, loss, predictions, accuracies, worst)


def _by_index(index: np.ndarray, values: np.ndarray) -> dict[int, np.ndarray]:
    """Return {sample index: its element of values [D,B,...]}, without padding."""
    return {int(index[position]): values[position] for position in zip(*np.nonzero(index >= 0), strict=True)}


def evaluate_boundaries(
    evaluate: Callable[..., Evaluation | None], samples: CachedSplit, num_classes: int, multi_label: bool = False
) -> tuple[Evaluation, BoundaryF1] | None:
    """Evaluate a split, and match the boundaries of each prediction and label. Every process must call this.

    `evaluate` takes `on_prediction`. If it returns None because it was stopped, so does this function. With
    `multi_label`, a pixel may have several classes.
    """
    pairs = np.zeros((len(samples), num_classes), np.int32)
    pending = deque()

    def submit(index: int, prediction: np.ndarray) -> None:
        pending.append((index, pool.submit(count_pairs, samples.read(index)[1], prediction, num_classes, multi_label)))
        if len(pending) > 4 * num_workers:  # bounds the predictions held in memory
            collect()

    def collect() -> None:
        index, future = pending.popleft()
        pairs[index] = future.result()

    num_workers = min(loky.cpu_count(), 16)
    with _pool(num_workers, len(samples) * math.prod(samples.image_size)) as pool:
        evaluation = evaluate(on_prediction=submit)
        if evaluation is None:
            for _, future in pending:
                future.cancel()
            return None
        while pending:
            collect()
    return evaluation, boundary_f1(evaluation.boundaries, sum_over_processes(pairs))


def _pool(num_workers: int, num_pixels: int) -> Executor:
    """Return an executor for the matching: threads for small splits, processes if their start-up pays off.

    Threads scale poorly, because scipy's flow algorithm, which takes most of the time, holds the GIL.
    """
    if num_pixels <= 50 * 360 * 480:
        return ThreadPoolExecutor(num_workers, "boundaries")
    ignore_interrupt = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the main process
    return loky.ProcessPoolExecutor(num_workers, initializer=ignore_interrupt)
