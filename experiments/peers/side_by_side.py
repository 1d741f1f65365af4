"""Compare two implementations: check that outputs are equal, then time both alternately in one process."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from machine import Run

from segnet_jax.benchmarks.timing import Timing

# --- equality ---


class UnequalError(Exception):
    """Raised if the implementations to be timed do not compute the same."""


class Checks(dict[str, dict[str, float]]):
    """The outputs compared before timing, and their differences."""

    def close(self, what: str, ours: Any, theirs: Any, tolerance: float) -> None:
        """Compare our array with PyTorch's: the norm of the difference relative to the norm of PyTorch's.

        Raises:
          UnequalError: If it exceeds the tolerance or is NaN.
        """
        ours, theirs = (np.asarray(array, np.float64) for array in (ours, theirs))
        if ours.shape != theirs.shape:
            raise UnequalError(f"{what}: ours {ours.shape}, PyTorch's {theirs.shape}; nothing is timed")
        off = float(np.linalg.norm(ours - theirs)) / (float(np.linalg.norm(theirs)) or 1.0)
        if not off <= tolerance:
            raise UnequalError(f"{what}: ours is off PyTorch's by {off:.2g}, over {tolerance:g}; nothing is timed")
        self[what] = {"off": off, "tolerance": tolerance}


# --- turns ---


@dataclass(frozen=True)
class Times:
    """The times per step of one side's turns.

    Attributes:
      clock: wall-clock seconds.
      cores: CPU seconds of this process over all cores.
    """

    clock: Timing
    cores: Timing

    @property
    def ms(self) -> float:
        """Median in milliseconds."""
        return 1e3 * self.clock.median

    def summary(self, images: int) -> dict[str, float]:
        """Return the numbers, with units in their keys."""
        return self.clock.summary(images) | {"cpu_ms_per_step": 1e3 * self.cores.median}


def take_turns(
    sides: dict[str, Run],
    *,
    rounds: int,
    steps: int | dict[str, int],
    warm_up: int = 3,
    lead: int = 0,
    rest: float = 0.05,
) -> dict[str, Times]:
    """Time all sides alternately: A B A B ...

    Args:
      sides: name -> function that runs this many steps.
      rounds: turns of each side.
      steps: steps per turn, the same for all sides or by name.
      warm_up: steps before the first turn, for compiling, autotuning, allocation and caches.
      lead: untimed steps at the start of a turn, which use up what was prefetched during the rest.
      rest: seconds before each turn, in which the threads of the previous turn go idle.
    """
    if isinstance(steps, int):
        steps = dict.fromkeys(sides, steps)
    for run in sides.values():
        run(warm_up)
    taken = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            time.sleep(rest)
            if lead:
                run(lead)
            start, start_of_cores = time.perf_counter(), time.process_time()
            run(steps[name])
            clock, cores = time.perf_counter() - start, time.process_time() - start_of_cores
            taken[name].append((clock / steps[name], cores / steps[name]))
    return {name: Times(*(Timing(column) for column in zip(*turns, strict=True))) for name, turns in taken.items()}


@dataclass(frozen=True)
class Comparison:
    """A function timed on several sides.

    Attributes:
      what: description of the function.
      images: images per step.
      times: side -> times, ours first.
      checks: checks made before timing.
    """

    what: str
    images: int
    times: dict[str, Times]
    checks: Checks

    @property
    def ratios(self) -> dict[str, float]:
        """Return our median time divided by that of each other side."""
        ours, *others = self.times.values()
        return {name: ours.ms / other.ms for name, other in zip(list(self.times)[1:], others, strict=True)}

    @property
    def over_fastest(self) -> float:
        """Return our median time divided by that of the fastest other side."""
        return max(self.ratios.values())

    def as_json(self) -> dict[str, Any]:
        """Return all numbers, with units in their keys."""
        return {
            "what": self.what,
            "images_per_step": self.images,
            "sides": {name: times.summary(self.images) for name, times in self.times.items()},
            "ours_over": self.ratios,
            "ours_over_fastest": self.over_fastest,
            "equal": self.checks,
        }

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield table rows as described by `HEADINGS`."""
        what = self.what
        for name, times in self.times.items():
            numbers = times.summary(self.images)
            ms = (f"{numbers[f'ms_per_step{end}']:,.2f}" for end in ("", "_min", "_max"))
            ratio = f"{self.ratios[name]:.3f}" if name in self.ratios else ""
            yield what, name, *ms, f"{numbers['images_per_second']:,.4g}", ratio
            what = ""


HEADINGS = ("", "side", "ms a step", "least", "most", "images/s", "ours / it")
"""Column headings of `Comparison.rows`."""
