"""Estimate the remaining time of a training run, and format durations."""

import math
from collections import deque

_WINDOW_SECONDS = 60.0
_SAMPLE_SECONDS = 0.2
_MIN_SAMPLES = 6


class Pace:
    """An estimator of the remaining time: a moving average of seconds per step, plus the time between steps.

    The caller passes the time, so that tests need no clock. The first step is left out, since it includes compilation.
    Time between steps (evaluating, drawing, saving) is averaged over the steps between the last two evaluations.

    Args:
      step: finished steps at the start.
      now: monotonic seconds.
    """

    def __init__(self, step: int, now: float):
        self._now = now
        self._step = self._interval_start = step  # an interval ends with each evaluation
        self._in_steps = self._between_steps = 0.0  # seconds so far; seconds in this interval
        self._between_per_step = 0.0
        self._samples: deque[tuple[int, float]] = deque()  # (step, seconds in steps)

    def step(self, step: int, now: float) -> None:
        """Count the time since the last call as spent in the steps up to this one."""
        if self._samples:
            self._in_steps += now - self._now
        if not self._samples or self._in_steps - self._samples[-1][1] >= _SAMPLE_SECONDS:
            self._samples.append((step, self._in_steps))
            while len(self._samples) > _MIN_SAMPLES and self._in_steps - self._samples[0][1] > _WINDOW_SECONDS:
                self._samples.popleft()
        self._step, self._now = step, now

    def between_steps(self, now: float) -> None:
        """Count the time since the last call as spent between steps."""
        self._between_steps += now - self._now
        self._now = now

    def end_interval(self) -> None:
        """Start a new interval after an evaluation."""
        if self._step > self._interval_start:
            self._between_per_step = self._between_steps / (self._step - self._interval_start)
        self._interval_start, self._between_steps = self._step, 0.0

    def seconds_left(self, steps: int) -> float | None:
        """Return the estimated seconds for this many more steps, or None before the second step."""
        if not self._samples or self._step == self._samples[0][0]:
            return None
        first_step, first_seconds = self._samples[0]
        per_step = (self._in_steps - first_seconds) / (self._step - first_step)
        return steps * (per_step + self._between_per_step)


def duration(seconds: float | None) -> str:
    """Format 3725 seconds as "1:02:05", 65 as "1:05", and None, NaN or infinity as "-:--"."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
