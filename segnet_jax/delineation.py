"""Boundary F1 of a whole split: the devices count by distance, the host pairs one to one beside them."""

import math
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

import loky
import numpy as np

from segnet_jax.metrics.boundary import BoundaryF1, boundary_f1
from segnet_jax.metrics.matching import count_pairs
from segnet_jax.pipeline.decoded import Records
from segnet_jax.training.evaluation import Evaluation
from segnet_jax.training.parallel import sum_over_processes


def evaluate_boundaries(
    evaluate: Callable[..., Evaluation | None], records: Records, num_classes: int
) -> tuple[Evaluation, BoundaryF1] | None:
    """Evaluates, and pairs the boundaries of each prediction with those of its label; every process calls it.

    Args:
      evaluate: (on_prediction) -> what was found of the records; None if it was stopped.
      records: of the split.
      num_classes: C.

    Returns:
      What was found, and boundary F1; None if it was stopped.
    """
    pairs = np.zeros((len(records), num_classes), np.int32)
    waiting = deque()

    def look(index: int, prediction: np.ndarray) -> None:
        waiting.append((index, pool.submit(count_pairs, records.read(index)[1], prediction, num_classes)))
        if len(waiting) > 4 * num_workers:  # predictions wait in memory
            take()

    def take() -> None:
        index, counting = waiting.popleft()
        pairs[index] = counting.result()

    num_workers = min(loky.cpu_count(), 16)
    with _pool(num_workers, len(records) * math.prod(records.image_size)) as pool:
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
