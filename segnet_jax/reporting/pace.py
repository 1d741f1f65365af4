"""How long the rest of a training will take, and durations in words."""

import math
from collections import deque

_WINDOW_SECONDS = 60.0
_SAMPLE_SECONDS = 0.2
_MIN_SAMPLES = 6


class Pace:
    """A moving average of seconds a step, and what evaluation adds to it.

    Time is told to it, so that it can be tested. The first step is not counted, for it holds the compilation. What
    happens between steps (evaluating, drawing, saving) is counted apart: each step still to come carries its share of
    the latest stretch from one evaluation to the next.

    Args:
      step: finished steps at the start.
      now: monotonic seconds.
    """

    def __init__(self, step: int, now: float):
        self._now = now
        self._step = self._stretch_start = step
        self._stepping = self._aside = 0.0  # seconds in steps so far; seconds beside them in this stretch
        self._aside_per_step = 0.0
        self._samples: deque[tuple[int, float]] = deque()  # (step, seconds in steps)

    def step(self, step: int, now: float) -> None:
        """The time since the last report went into the steps up to this one."""
        if self._samples:
            self._stepping += now - self._now
        if not self._samples or self._stepping - self._samples[-1][1] >= _SAMPLE_SECONDS:
            self._samples.append((step, self._stepping))
            while len(self._samples) > _MIN_SAMPLES and self._stepping - self._samples[0][1] > _WINDOW_SECONDS:
                self._samples.popleft()
        self._step, self._now = step, now

    def aside(self, now: float) -> None:
        """The time since the last report went into something else."""
        self._aside += now - self._now
        self._now = now

    def end_stretch(self) -> None:
        """An evaluation and what belongs to it are over."""
        if self._step > self._stretch_start:
            self._aside_per_step = self._aside / (self._step - self._stretch_start)
        self._stretch_start, self._aside = self._step, 0.0

    def seconds_left(self, steps: int) -> float | None:
        """Seconds that so many more steps will take; None until two steps were seen."""
        if not self._samples or self._step == self._samples[0][0]:
            return None
        first_step, first_seconds = self._samples[0]
        per_step = (self._stepping - first_seconds) / (self._step - first_step)
        return steps * (per_step + self._aside_per_step)


def duration(seconds: float | None) -> str:
    """Writes 3725 seconds as "1:02:05", 65 as "1:05", and what is not known as "-:--"."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
