"""Ctrl-C and SIGTERM as a wish to be met at the next good moment, not as an interruption."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from segnet_jax.system.errors import Stopped


class Stop:
    """Turns the first Ctrl-C or SIGTERM into a flag while it is entered; a second Ctrl-C leaves at once.

    A thread of its own hears the signals, for Python's handlers wait as long as the main thread compiles or computes.

    Args:
      first: what is done before leaving, for the line that answers the signal.

    Attributes:
      exit_code: 130 after Ctrl-C, 143 after SIGTERM, None while nobody asked.
    """

    def __init__(self, first: str = "the step is finished and saved first"):
        self._first = first
        self.exit_code: int | None = None
        self._nothing_to_save = False
        self._before: dict[int, object] = {}
        self._lock = threading.RLock()  # a second signal may come while the first is taken down

    def requested(self) -> bool:
        """Whether somebody has asked to stop."""
        return self.exit_code is not None

    def check(self) -> None:
        """Ends what is being done, if somebody has asked to stop; for work that is lost without harm.

        Raises:
          Stopped: if so.
        """
        if self.requested():
            raise Stopped(self.exit_code)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """While there is nothing to save: the first signal already interrupts, by raising `Stopped`."""
        self._nothing_to_save = True
        self.check()
        try:
            yield
        finally:
            self._nothing_to_save = False

    def _note(self, number: int) -> None:
        """Takes a signal down; told once, whichever of the thread and Python's handler comes first."""
        with self._lock:
            if self.requested():
                return
            self.exit_code = 128 + number
        told = self._first if not self._nothing_to_save else "nothing is lost"
        again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
        _tell(f"stopping: {told}{again}")

    def _handle(self, number: int, _frame) -> None:
        """Python's handler, in the main thread."""
        self._note(number)
        if self._nothing_to_save:
            self.check()

    def _listen(self) -> None:
        """The thread: hears each signal's number at once, from the system's own handler."""
        num_interrupts = 0
        while number := self._ear.recv(1)[0]:
            if number in (signal.SIGINT, signal.SIGTERM):
                self._note(number)
            num_interrupts += number == signal.SIGINT
            if num_interrupts > 1:
                leave_at_once(128 + number, "left at once: what was saved before is whole")

    def __enter__(self) -> "Stop":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may hear signals: whoever calls us from another one hears them himself
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._thread = threading.Thread(target=self._listen, name="stop", daemon=True)
        self._thread.start()
        self._wakeup_before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._mouth.send(b"\0")
        self._thread.join()
        self._ear.close()
        self._mouth.close()


def leave_at_once(exit_code: int, told: str) -> None:
    """Ends the process here and now, from any thread, with a line and the terminal's cursor given back."""
    _tell(("\x1b[?25h" if sys.stderr.isatty() else "") + told)
    os._exit(exit_code)


def _tell(text: str) -> None:
    """Prints a line past Python's buffers, which whoever was interrupted may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
