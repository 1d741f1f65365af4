"""Training progress on the console: a live line on terminals, and one line per epoch."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from segnet_jax.metrics.confusion import Scores
from segnet_jax.reporting.remaining_time import Pace, duration
from segnet_jax.reporting.tables import percent
from segnet_jax.system import logs

logger = logging.getLogger(__name__)


class Progress:
    """A display of epoch, step, loss, learning rate, throughput, remaining and elapsed time; a context manager.

    On a terminal, a thread redraws a live line five times a second, so the training loop only stores numbers. Each
    epoch also logs one line, with scores if it was evaluated. Messages logged meanwhile go above the live line.

    Args:
      total_steps: steps in the whole run.
      steps_per_epoch: steps of one epoch.
      first_step: finished steps at the start; above 0 for a resumed run.
      file: output stream; by default that of the log.
      elapsed: seconds that the run took before it was resumed.
      clock: function that returns monotonic seconds.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        first_step: int = 0,
        *,
        file: TextIO | None = None,
        elapsed: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._step = first_step
        self._file = file or logs.output()
        self._clock = clock
        self._start = clock() - elapsed
        self._pace = Pace(first_step, clock())
        self._phase = "compiling"
        self._loss = self._learning_rate = self._images_per_second = math.nan
        self._losses: list[float] = []  # finite losses of this epoch
        self._line_due, self._last_line = False, clock()
        self.num_skipped = 0
        self._console = Console(file=self._file, highlight=False)
        self._live, self._stack = None, contextlib.ExitStack()

    def __enter__(self) -> "Progress":
        self._stack.enter_context(logs.above(self._console))
        if self._console.is_interactive and self._file.isatty() and not logs.is_quiet():
            self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=5, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()
            self._live = None
        if self._line_due:
            self._epoch_line()
        self._stack.close()

    def step(
        self,
        step: int,
        loss: float,
        learning_rate: float,
        images_per_second: float,
        *,
        num_skipped: int = 0,
    ) -> None:
        """Record a finished step, and the float16 steps skipped since the last call.

        NaN as `images_per_second` keeps the displayed throughput.
        """
        if self._line_due:  # the previous epoch had no evaluation
            self._epoch_line()
        self._pace.step(step, self._clock())
        self._step, self._phase = step, ""
        self._loss, self._learning_rate = loss, learning_rate
        if not math.isnan(images_per_second):
            self._images_per_second = images_per_second
        self.num_skipped += num_skipped
        if math.isfinite(loss):
            self._losses.append(loss)
        self._line_due = step % self._steps_per_epoch == 0 or step == self._total_steps
        if not self._live and not self._line_due and self._clock() - self._last_line >= logs.INTERVAL:
            self._last_line = self._clock()
            parts = [*self._place(), f"loss {_short(loss)}", *self._speed(), *self._skipped(), *self._times()]
            logger.info("  ".join(parts), extra={"is_live": True})

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show an activity between steps, such as "evaluating", and exclude its time from the time per step."""
        self._phase = name
        try:
            yield
        finally:
            self._phase = ""
            self._pace.between_steps(self._clock())

    def evaluated(self, scores: Scores, loss: float) -> None:
        """Print the epoch's line with the scores and the loss of the validation split."""
        self._pace.between_steps(self._clock())
        self._pace.end_interval()
        self._epoch_line(
            f"val loss {_short(loss)}",
            f"mIoU {percent(scores.miou)}",
            f"accuracy {percent(scores.global_accuracy)}",
        )

    def _epoch_line(self, *scores: str) -> None:
        losses = [f"loss {_short(sum(self._losses) / len(self._losses))}"] if self._losses else []
        place, (left, elapsed) = self._place(), self._times()
        parts = [*place, *losses, *scores, *self._speed(), *self._skipped(), left, elapsed]
        # Parts to drop if the line is too long, least important first.
        optional = [elapsed, *place[1:], *self._speed(), *scores[::-2], *losses, *self._skipped(), left]
        logger.info("  ".join(parts), extra={"fit": partial(_fit, parts, optional)})
        self._losses.clear()
        self._line_due, self._last_line = False, self._clock()

    def _draw(self) -> Text:
        """Return the live line: the parts that fit the width, and a bar in the remaining space."""
        rate = [] if math.isnan(self._learning_rate) else [f"lr {self._learning_rate:.2g}"]
        phase = [self._phase] if self._phase else []
        loss = [] if math.isnan(self._loss) else [f"loss {_short(self._loss)}"]
        left, *elapsed = self._times()
        width = self._console.width - 1
        place, speed, skipped = self._place(), self._speed(), self._skipped()
        parts = [*place, *phase, *loss, *rate, *speed, *skipped, left, *elapsed]
        optional = (*elapsed, *rate, *speed, *place[1:], *skipped, *loss)  # least important first
        line = Text(_fit(parts, optional, width), no_wrap=True, overflow="crop")
        room = min(width - len(line) - 2, 40)
        if room >= 10:
            full = round(room * self._step / self._total_steps)
            bar, rest = "━─" if self._console.encoding.startswith("utf") else "=-"
            line = Text.assemble((bar * full, "green"), (rest * (room - full), "dim"), "  ", line, no_wrap=True)
        return line

    def _place(self) -> list[str]:
        epochs, steps = str(-(-self._total_steps // self._steps_per_epoch)), str(self._total_steps)
        epoch = max(1, -(-self._step // self._steps_per_epoch))  # of the newest step
        return [f"epoch {epoch:{len(epochs)}}/{epochs}", f"step {self._step:{len(steps)}}/{steps}"]

    def _speed(self) -> list[str]:
        rate = self._images_per_second
        return [] if math.isnan(rate) else [f"{rate:.{1 if rate < 100 else 0}f} images/s"]

    def _skipped(self) -> list[str]:
        return [f"skipped {self.num_skipped}"] if self.num_skipped else []

    def _times(self) -> list[str]:
        left = self._pace.seconds_left(self._total_steps - self._step)
        return [f"left {duration(left)}", f"elapsed {duration(self._clock() - self._start)}"]


def _fit(parts: Sequence[str], optional: Sequence[str], width: int) -> str:
    """Join the parts of a line, dropping optional parts in order until the line fits the width."""
    shown = list(parts)
    for part in optional:
        if len("  ".join(shown)) <= width:
            break
        shown.remove(part)
    return "  ".join(shown)


def _short(loss: float) -> str:
    return f"{loss:#.4g}"
