"""Handle Ctrl-C, SIGTERM and SIGUSR1 as requests to stop at the next safe point."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from segnet_jax.system.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Context manager that turns the first signal into a flag; a second Ctrl-C exits immediately.

    SIGUSR1, by which SLURM announces the end of a job's time (`--signal=USR1@120`), counts as SIGTERM.

    A separate thread receives the signals, as Python's handlers do not run while the main thread compiles or computes.

    Args:
      first: text for the line printed on a signal, the work to finish before stopping.

    Attributes:
      exit_code: 130 after Ctrl-C, 143 after SIGTERM or SIGUSR1, None before any signal.
    """

    def __init__(self, first: str = "the step is finished and saved first"):
        self._first = first
        self.exit_code: int | None = None
        self._nothing_to_save = False
        self._before: dict[int, object] = {}
        self._lock = threading.RLock()  # a second signal may arrive while the first is handled

    def requested(self) -> bool:
        """Return whether a stop was requested."""
        return self.exit_code is not None

    def check(self) -> None:
        """Raise `Stopped` if a stop was requested; for work that may be abandoned."""
        if self.requested():
            raise Stopped(self.exit_code)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal raise `Stopped` inside the context, where there is nothing to save."""
        self._nothing_to_save = True
        self.check()
        try:
            yield
        finally:
            self._nothing_to_save = False

    def _note(self, number: int) -> None:
        """Set the flag and print a line on the first signal; called by both the thread and Python's handler."""
        with self._lock:
            if self.requested():
                return
            self.exit_code = 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)
        first = self._first if not self._nothing_to_save else "nothing is lost"
        again = "; Ctrl-C again exits immediately" if number == signal.SIGINT else ""
        _write_line(f"stopping: {first}{again}")

    def _handle(self, number: int, _frame) -> None:
        """Handle a signal in the main thread."""
        self._note(number)
        if self._nothing_to_save:
            self.check()

    def _listen(self) -> None:
        """Receive signal numbers from the C handler, in the thread."""
        num_interrupts = 0
        while number := self._ear.recv(1)[0]:
            if number in _SIGNALS:
                self._note(number)
            num_interrupts += number == signal.SIGINT
            if num_interrupts > 1:
                leave_at_once(128 + number, "exited immediately: checkpoints saved before are complete")

    def __enter__(self) -> "Stop":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set signal handlers
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._thread = threading.Thread(target=self._listen, name="stop", daemon=True)
        self._thread.start()
        self._wakeup_before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
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


def leave_at_once(exit_code: int, message: str) -> None:
    """Exit the process immediately, from any thread, after printing a message and restoring the terminal's cursor."""
    _write_line(("\x1b[?25h" if sys.stderr.isatty() else "") + message)
    os._exit(exit_code)


def _write_line(text: str) -> None:
    """Print a line to standard error, bypassing Python's buffers, whose locks the interrupted code may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
