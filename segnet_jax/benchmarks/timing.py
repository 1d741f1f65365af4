"""Time functions over rounds of asynchronously dispatched steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds per step in each of several rounds of many steps."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds, seconds per step."""
        return float(np.median(self.rounds))

    def summary(self, images_per_step: int) -> dict[str, float]:
        """Return images per second, and the median, minimum and maximum milliseconds per step."""
        return {
            "images_per_second": images_per_step / self.median,
            "ms_per_step": 1e3 * self.median,
            "ms_per_step_min": 1e3 * min(self.rounds),
            "ms_per_step_max": 1e3 * max(self.rounds),
        }


def timed(run: Callable[[int], object], *, steps: int, rounds: int, warm_up: int = 3) -> Timing:
    """Time steps that are dispatched asynchronously; each round waits for its last result.

    Args:
      run: function that takes that many steps and returns the last result.
      steps: steps per round.
      rounds: number of rounds.
      warm_up: steps before the first round, for autotuning, allocation and caches.
    """
    return timed_in_turns([run], steps=steps, rounds=rounds, warm_up=warm_up)[0]


def timed_in_turns(
    runs: Sequence[Callable[[int], object]], *, steps: int, rounds: int, warm_up: int = 3
) -> list[Timing]:
    """Time several functions like `timed`, alternating their rounds so that a slow phase affects all of them."""
    for run in runs:
        jax.block_until_ready(run(warm_up))
    seconds = [[] for _ in runs]
    for _ in range(rounds):
        for run, of_run in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(steps))
            of_run.append((time.perf_counter() - start) / steps)
    return [Timing(tuple(of_run)) for of_run in seconds]
