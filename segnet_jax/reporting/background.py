"""Run an action in a background thread."""

import threading
from collections.abc import Callable


class Background:
    """Runs one action at a time in a daemon thread; its error is raised by the next `start`, `check` or `wait`."""

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether an action is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, action: Callable[[], None]) -> None:
        """Run an action; the previous one must have ended.

        Raises:
          BaseException: If the previous action raised this error.
        """
        assert not self.is_busy
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(action,), name="drawing", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error of an action that has ended, unless raised already."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
            error, self._error = self._error, None
            if error is not None:
                raise error

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the action to end, at most `timeout` seconds.

        Raises:
          BaseException: If the action raised this error.
        """
        if self._thread is not None:
            self._thread.join(timeout)
            self.check()

    def _run(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:  # raised again by `check`
            self._error = error
