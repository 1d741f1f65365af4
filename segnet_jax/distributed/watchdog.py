"""Heartbeats between the processes of a training run, to detect a lost or stuck process.

Each process keeps a TCP connection to process 0, which forwards messages. A killed process closes its connection; a
stuck one, or one whose host is lost, sends no heartbeats. JAX would wait for it forever (jax #38503).
"""

import contextlib
import os
import selectors
import threading
import time
from collections.abc import Callable

from segnet_jax.distributed.rendezvous import Process, Rendezvous
from segnet_jax.system.errors import HostLost

LAST_WORDS_SECONDS = 5  # time limit of `last_words`
CLOSED = "its connection is closed because it died or was killed"
RESTART = "start the same command again on all hosts: it resumes from the newest checkpoint"


class Watchdog:
    """A thread that detects a lost or stuck process and then ends this one with exit code 8.

    The thread must end the process, because the main thread may be waiting in a collective forever.

    Args:
      me: this process.
      rendezvous: result of the rendezvous.
      heartbeat: seconds without a message after which a process counts as lost.

    Attributes:
      processes: all processes, by number.
      last_words: called with the message, for at most LAST_WORDS_SECONDS, before exiting because a process is lost.
      all_leave: set when every process has announced that it leaves.
      stop: the first step call to skip and the exit code, or None until a process requests a stop.
    """

    def __init__(self, me: Process, rendezvous: Rendezvous, heartbeat: float):
        self._me, self.processes, self._links = me, rendezvous.processes, dict(rendezvous.links)
        self._heartbeat, self._beat = heartbeat, min(1.0, heartbeat / 4)
        self._heard = dict.fromkeys(self._links, time.monotonic())
        self._leaving: dict[int, tuple[str, float]] = {}  # process number -> reason to leave, time of announcement
        self._lock, self._has_lost = threading.RLock(), False
        self.stop: tuple[int, int] | None = None
        self._values: dict[tuple[str, int], str] = {}  # received, not yet returned by `receive`
        self._has_value = threading.Condition(self._lock)
        self._selector = selectors.DefaultSelector()
        for number, link in self._links.items():
            link.socket.settimeout(1)
            self._selector.register(link.socket, selectors.EVENT_READ, number)
        self.last_words: Callable[[str], None] = lambda message: None
        self.all_leave = threading.Event()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def send(self, *message) -> None:
        """Send a message: from process 0 to all others, from the others to process 0."""
        for link in list(self._links.values()):
            link.send(*message)

    def receive(self, key: str, number: int, seconds: float) -> str | None:
        """Return the value that a process sends under a key, or None after a timeout."""
        with self._has_value:
            self._has_value.wait_for(lambda: (key, number) in self._values, seconds)
            return self._values.pop((key, number), None)

    def ask_to_stop(self, call: int, exit_code: int) -> None:
        """Request that all processes stop before a step call; process 0 forwards the first request."""
        with self._lock:
            if self._me.number != 0:
                self.send("stop", call, exit_code)
            elif self.stop is None:
                self.stop = call, exit_code
                self.send("stop", call, exit_code)

    def leave(self, reason: str) -> None:
        """Announce that this process leaves: normally if the reason is empty, otherwise because of an error."""
        self._set_leaving(self._me.number, reason)

    def not_leaving(self) -> list[Process]:
        """Return the processes that have not announced that they leave."""
        return [process for process in self.processes if process.number not in self._leaving]

    def failed(self) -> list[str]:
        """Return a message for each other process that leaves because of an error."""
        reasons = ((number, reason) for number, (reason, _) in sorted(self._leaving.items()) if reason)
        return [f"{self.processes[number]}: {reason}" for number, reason in reasons if number != self._me.number]

    def lose(self, number: int, why: str) -> None:
        """End this process because another one is lost, unless this one is already ending because of an error."""
        with self._lock:
            if self.all_leave.is_set() or self._reason(self._me.number) or self._has_lost:
                return
            self._has_lost = True
            if reason := self._reason(number):
                why = f"it ended: {reason}"
            self.send("lost", number, why)
        message = f"{self.processes[number]} was lost: {why}; {RESTART}"
        if number == self._me.number:
            message = f"this {self._me} was declared dead by the other processes: {why}; {RESTART}"
        thread = threading.Thread(target=self.last_words, args=(message,), daemon=True)
        thread.start()
        thread.join(LAST_WORDS_SECONDS)
        with contextlib.suppress(OSError):  # stderr may be closed
            os.write(2, f"error: {message}\n".encode())  # unbuffered: a stuck thread may hold the buffer's lock
        os._exit(HostLost.exit_code)

    def _run(self) -> None:
        beat = time.monotonic()
        while True:
            before = time.monotonic()
            if before >= beat:
                self.send("beat")
                beat = before + self._beat
            for key, _ in self._selector.select(max(0.0, beat - time.monotonic())):
                self._read(key.data)
            self._check_lost(before)

    def _read(self, number: int) -> None:
        messages = self._links[number].receive()
        if messages is None:
            self._selector.unregister(self._links[number].socket)
            self._links.pop(number).socket.close()
            del self._heard[number]
            self.lose(number, CLOSED)
            return
        self._heard[number] = time.monotonic()
        for message in messages:
            match message:
                case ["value", key, who, value]:
                    with self._has_value:
                        self._values[key, who] = value
                        self._has_value.notify_all()
                case ["stop", call, exit_code] if self._me.number == 0:
                    self.ask_to_stop(call, exit_code)
                case ["stop", call, exit_code]:
                    self.stop = call, exit_code
                case ["leaving", who, reason] if who not in self._leaving:
                    self._set_leaving(who, reason)
                case ["lost", who, why]:
                    self.lose(who, why)

    def _set_leaving(self, who: int, reason: str) -> None:
        with self._lock:
            self._leaving[who] = reason, time.monotonic()
            self.send("leaving", who, reason)
            if not self.not_leaving():
                self.all_leave.set()

    def _check_lost(self, before: float) -> None:
        """End this process if another one is lost.

        Args:
          before: time before the links were last read; a later time would make a process that was suspended declare
            the others lost.
        """
        for number, heard in list(self._heard.items()):
            if before - heard > self._heartbeat:
                self.lose(number, f"no heartbeat for {self._heartbeat:g} s")
        for number, (reason, when) in list(self._leaving.items()):
            if reason and before - when > self._heartbeat:  # not an error in all processes: this one would have left
                self.lose(number, CLOSED)

    def _reason(self, number: int) -> str:
        """Return the error with which a process has announced that it leaves, or "" if there is none."""
        return self._leaving.get(number, ("", 0.0))[0]
