"""Processes that train together meet at process 0, before JAX is asked for anything.

JAX can make them meet too, but aborts in C++ where one does not come, without saying which.
"""

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass, field

from segnet_jax.system.errors import HostLost, UserError

GREETING_SECONDS = 5.0  # for whoever connects to say who it is: another program may have found the port


@dataclass(frozen=True)
class Process:
    """One of the processes, as messages name it."""

    number: int
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    def __str__(self) -> str:
        return f"process {self.number} (host {self.host}, pid {self.pid})"


class Link:
    """A connection that carries messages: JSON lists, one a line."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self._sending = connection, threading.Lock()
        self._rest, self._early = b"", []  # a line's beginning, and messages that came along with an answer

    def send(self, *message) -> None:
        """Sends a message; that the other end has gone is for the receiver to notice."""
        with self._sending, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[list] | None:
        """The messages that have come, perhaps none; None once the other end has closed, or talks in no known way."""
        try:
            data = self.socket.recv(1 << 16)
            *lines, self._rest = (self._rest + data).split(b"\n")
            early, self._early = self._early, []
            return early + [json.loads(line) for line in lines] if data else None
        except TimeoutError:
            return []
        except (OSError, ValueError):
            return None

    def answer(self, seconds: float) -> list | None:
        """The next message, which must come within the time; None where it does not, or the other end has closed."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            messages = self.receive()
            if messages is None:
                return None
            if messages:
                self._early = messages[1:]
                return messages[0]
        return None

    def dismiss(self, word: str, why: str) -> None:
        """Tells the other end that it is not needed any more, and closes."""
        self.send(word, why)
        self.socket.close()


@dataclass(frozen=True)
class Meeting:
    """All processes, met.

    Attributes:
      processes: each, by its number.
      links: by number, those this process is connected to: process 0 to all others, they to process 0.
      jax_port: at which process 0 is going to offer JAX's coordinator.
    """

    processes: list[Process]
    links: dict[int, Link]
    jax_port: int


def gather(port: int, me: Process, num_processes: int, jax_port: int, seconds: float) -> Meeting:
    """Process 0 waits for the others on a port of all its interfaces, and tells each who they are.

    Raises:
      HostLost: some have not come in time; those that have are told so, too.
      OSError: the port cannot be listened on.
    """
    processes, links = {0: me}, {}
    deadline = time.monotonic() + seconds
    with _listen(port) as door:
        while len(processes) < num_processes:
            door.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = door.accept()
            except TimeoutError:
                missing = [number for number in range(num_processes) if number not in processes]
                told = f"{len(processes)} of {num_processes} processes came within {seconds:g} s: "
                told += f"{list_processes(missing)} missing; start the same command on all hosts"
                for link in links.values():
                    link.dismiss("gave up", told)
                raise HostLost(told) from None
            link = Link(connection)
            match link.answer(GREETING_SECONDS):
                case ["here", int(number), str(host), int(pid), int(count)]:
                    if refusal := _refusal(number, count, num_processes):
                        link.dismiss("refused", refusal)
                        continue
                    process = Process(number, host, pid)
                    if number in links:  # the one before has died and was started again, unless two are called alike
                        links[number].dismiss("refused", f"{process} came, too: give each another --process-id")
                    processes[number], links[number] = process, link
                case _:
                    link.socket.close()
    together = [processes[number] for number in range(num_processes)]
    for link in links.values():
        link.send("all here", [[each.host, each.pid] for each in together], jax_port)
    return Meeting(together, links, jax_port)


def arrive(address: tuple[str, int], me: Process, num_processes: int, seconds: float) -> Meeting:
    """Every other process calls on process 0 until that has all together.

    Raises:
      HostLost: process 0 is not to be reached, or does not have all together in time.
      UserError: the flags do not fit those of the others.
    """
    where = f"process 0 at {address[0]}:{address[1]}"
    deadline, why = time.monotonic() + seconds, "nobody answers"
    while (left := deadline - time.monotonic()) > 0:
        try:
            link = Link(socket.create_connection(address, timeout=min(left, 10)))
        except OSError as error:
            why = error.strerror or str(error) or "no answer"
            time.sleep(min(0.2, left))
            continue
        link.send("here", me.number, me.host, me.pid, num_processes)
        match link.answer(deadline - time.monotonic()):
            case ["all here", list(roll), int(jax_port)]:
                return Meeting([Process(number, *names) for number, names in enumerate(roll)], {0: link}, jax_port)
            case [("refused" | "gave up") as word, str(told)]:
                link.socket.close()
                raise (UserError if word == "refused" else HostLost)(told)
        link.socket.close()
        why = "it answers, but has not all processes together"
        time.sleep(min(0.2, max(0, deadline - time.monotonic())))
    raise HostLost(f"{me} waited {seconds:g} s in vain for {where} ({why}); start the same command on all hosts")


def list_processes(numbers: list[int]) -> str:
    """Numbers of processes for a message: the first ten, and how many more there are."""
    more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return f"process{'es' * (len(numbers) > 1)} {', '.join(map(str, numbers[:10]))}{more}"


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be compiled in and switched off
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def _refusal(number: int, count: int, num_processes: int) -> str:
    """Why a process that has come does not belong here; empty where it does."""
    if count != num_processes:
        return f"process 0 was told of {num_processes} processes, process {number} of {count}: give all the same"
    if not 0 < number < num_processes:
        return f"process {number} is none of the others, which are numbered 1 to {num_processes - 1}"
    return ""
