"""Ctrl-C and SIGTERM as a wish to be met at the next good moment, not as an interruption."""

import signal
import sys
import types


class Stop:
    """Turns the first Ctrl-C or SIGTERM into a flag while it is entered; a second Ctrl-C interrupts at once.

    Attributes:
      exit_code: 130 after Ctrl-C, 143 after SIGTERM, None while nobody asked.
    """

    def __init__(self):
        self.exit_code: int | None = None
        self._before: dict[int, object] = {}

    def requested(self) -> bool:
        """Whether somebody has asked to stop."""
        return self.exit_code is not None

    def _note(self, number: int, _frame: types.FrameType | None) -> None:
        if self.requested() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.exit_code = 128 + number
        print(
            "\nstopping: the step is finished and saved first"
            + ("; Ctrl-C again leaves at once" if number == signal.SIGINT else ""),
            file=sys.stderr,
        )

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
