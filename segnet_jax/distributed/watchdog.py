"""Processes that train together notice when one of them is gone or stuck.

Each keeps a TCP connection to process 0, which passes on what it learns. A process that is killed closes its
connection; one that is stuck, or whose host is gone, no longer beats. JAX waits for that one for ever (jax #38503).
"""

import contextlib
import os
import selectors
import threading
import time
from collections.abc import Callable

from segnet_jax.distributed.rendezvous import Meeting, Process
from segnet_jax.system.errors import HostLost

LAST_WORDS_SECONDS = 5  # for what is still to be done before a process leaves because another is lost
CLOSED = "its connection is closed, it died or was killed"
AGAIN = "start the same command again on all hosts: it goes on from the newest checkpoint"


class Watch:
    """Notices in a thread of its own that a process is gone or stuck, and then ends this one, exit code 8.

    It cannot ask the main thread to: that may wait in a collective for ever.

    Args:
      me: this process.
      meeting: all of them.
      heartbeat: seconds without a sign of life until a process is lost.

    Attributes:
      processes: all, by their numbers.
      last_words: called with the message before this process leaves, for LAST_WORDS_SECONDS at most.
      all_leave: set once every process has said that it leaves.
      stop: the first call that is not made, and the exit code, once a process has asked to stop.
    """

    def __init__(self, me: Process, meeting: Meeting, heartbeat: float):
        self._me, self.processes, self._links = me, meeting.processes, dict(meeting.links)
        self._heartbeat, self._beat = heartbeat, min(1.0, heartbeat / 4)
        self._heard = dict.fromkeys(self._links, time.monotonic())
        self._leaving: dict[int, tuple[str, float]] = {}  # who has said that it leaves: why and when
        self._lock, self._has_lost = threading.RLock(), False
        self.stop: tuple[int, int] | None = None
        self._values: dict[tuple[str, int], str] = {}  # received and not yet asked for
        self._has_value = threading.Condition(self._lock)
        self._selector = selectors.DefaultSelector()
        for number, link in self._links.items():
            link.socket.settimeout(1)
            self._selector.register(link.socket, selectors.EVENT_READ, number)
        self.last_words: Callable[[str], None] = lambda message: None
        self.all_leave = threading.Event()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def send(self, *message) -> None:
        """Send a message to the processes that this one is connected to: process 0 to all, the others to process 0."""
        for link in list(self._links.values()):
            link.send(*message)

    def receive(self, key: str, number: int, seconds: float) -> str | None:
        """Return the value that a process sends under a key; None if it does not come in time."""
        with self._has_value:
            self._has_value.wait_for(lambda: (key, number) in self._values, seconds)
            return self._values.pop((key, number), None)

    def ask_to_stop(self, call: int, exit_code: int) -> None:
        """Ask all processes to stop before a call; process 0 hears the first and passes it on."""
        with self._lock:
            if self._me.number != 0:
                self.send("stop", call, exit_code)
            elif self.stop is None:
                self.stop = call, exit_code
                self.send("stop", call, exit_code)

    def leave(self, reason: str) -> None:
        """Tells all that this process leaves: as it should where the reason is empty, else because of an error."""
        self._note_leaving(self._me.number, reason)

    def not_leaving(self) -> list[Process]:
        """Who has not said that it leaves."""
        return [process for process in self.processes if process.number not in self._leaving]

    def failed(self) -> list[str]:
        """Who else leaves because of an error, and which, in words."""
        reasons = ((number, reason) for number, (reason, _) in sorted(self._leaving.items()) if reason)
        return [f"{self.processes[number]}: {reason}" for number, reason in reasons if number != self._me.number]

    def lose(self, number: int, why: str) -> None:
        """Ends this process because another one is lost; where this one ends by an error already, that goes first."""
        with self._lock:
            if self.all_leave.is_set() or self._reason(self._me.number) or self._has_lost:
                return
            self._has_lost = True
            if reason := self._reason(number):
                why = f"it ended: {reason}"
            self.send("lost", number, why)
        told = f"{self.processes[number]} was lost: {why}; {AGAIN}"
        if number == self._me.number:
            told = f"this {self._me} was taken for lost by the others: {why}; {AGAIN}"
        talking = threading.Thread(target=self.last_words, args=(told,), daemon=True)
        talking.start()
        talking.join(LAST_WORDS_SECONDS)
        with contextlib.suppress(OSError):  # nobody may be left to read it
            os.write(2, f"error: {told}\n".encode())  # past buffers that a stuck thread may hold
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
            self._judge(before)

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
                    self._note_leaving(who, reason)
                case ["lost", who, why]:
                    self.lose(who, why)

    def _note_leaving(self, who: int, reason: str) -> None:
        with self._lock:
            self._leaving[who] = reason, time.monotonic()
            self.send("leaving", who, reason)
            if not self.not_leaving():
                self.all_leave.set()

    def _judge(self, before: float) -> None:
        """Whether one is lost by now.

        Args:
          before: the time before the links were last read. Against a later one, this process would take the others for
            silent after it was itself suspended.
        """
        for number, heard in list(self._heard.items()):
            if before - heard > self._heartbeat:
                self.lose(number, f"no sign of life for {self._heartbeat:g} s")
        for number, (reason, when) in list(self._leaving.items()):
            if reason and before - when > self._heartbeat:  # by an error that all meet, this one would have left too
                self.lose(number, CLOSED)

    def _reason(self, number: int) -> str:
        """The error by which a process has said that it leaves, if it has."""
        return self._leaving.get(number, ("", 0.0))[0]
