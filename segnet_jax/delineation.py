"""Boundary F1 of a whole split: the devices count by distance, the host pairs one to one beside them."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from segnet_jax.beginning import Beginning
from segnet_jax.metrics.boundary import BoundaryF1, boundary_f1
from segnet_jax.metrics.matching import count_pairs
from segnet_jax.pipeline.decoded import Records
from segnet_jax.training.evaluation import Evaluation
from segnet_jax.training.parallel import sum_over_processes
from segnet_jax.training.state import TrainState


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
    num_threads = os.cpu_count() or 1
    waiting = deque()

    def pair(index: int, prediction: np.ndarray) -> None:
        pairs[index] = count_pairs(records.read(index)[1], prediction, num_classes)

    def look(index: int, prediction: np.ndarray) -> None:
        waiting.append(threads.submit(pair, index, prediction))
        if len(waiting) > 4 * num_threads:  # predictions wait in memory
            waiting.popleft().result()

    with ThreadPoolExecutor(num_threads, "boundaries") as threads:
        found = evaluate(on_prediction=look)
        if found is None:
            threads.shutdown(cancel_futures=True)
            return None
        while waiting:
            waiting.popleft().result()
    return found, boundary_f1(found.boundaries, sum_over_processes(pairs))


def chosen_variables(start: Beginning, state: TrainState, step: int) -> dict[str, Any] | None:
    """The network's variables that a finished training's result is of; every process calls it.

    Args:
      start: the training.
      state: after its last step.
      step: the last.

    Returns:
      Those of the checkpoint that `--result-checkpoint` names; None where it is the best and is not whole any more.
    """
    chosen = start.meta[start.config.result_checkpoint]["step"]
    if chosen == step:
        return state.variables
    start.checkpoints.wait()
    if start.checkpoints.latest("best") != chosen:
        return None
    return start.checkpoints.restore("best", chosen, start.shapes).variables
