"""How speed is timed: rounds of chained steps, several things in turns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds that one step took, in several rounds of many steps each."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return float(np.median(self.rounds))

    def summary(self, images_per_step: int) -> dict[str, float]:
        """Images per second, and milliseconds a step: their median, least and most."""
        return {
            "images_per_second": images_per_step / self.median,
            "ms_per_step": 1e3 * self.median,
            "ms_per_step_min": 1e3 * min(self.rounds),
            "ms_per_step_max": 1e3 * max(self.rounds),
        }


def timed(run: Callable[[int], object], *, steps: int, rounds: int, warm_up: int = 3) -> Timing:
    """Times steps chained without a wait between them; each round ends when all that it made is ready.

    Args:
      run: takes so many steps and returns what the last one made.
      steps: of a round.
      rounds: how many.
      warm_up: steps before the first, for autotuning, allocation and caches.
    """
    return timed_in_turns([run], steps=steps, rounds=rounds, warm_up=warm_up)[0]


def timed_in_turns(
    runs: Sequence[Callable[[int], object]], *, steps: int, rounds: int, warm_up: int = 3
) -> list[Timing]:
    """Times several things as `timed` does, a round of each in turns, so that a slow minute falls on all alike."""
    for run in runs:
        jax.block_until_ready(run(warm_up))
    seconds = [[] for _ in runs]
    for _ in range(rounds):
        for run, of_run in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(steps))
            of_run.append((time.perf_counter() - start) / steps)
    return [Timing(tuple(of_run)) for of_run in seconds]
