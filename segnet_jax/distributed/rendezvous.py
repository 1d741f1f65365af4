"""Rendezvous of all processes at process 0, before JAX is initialized.

`jax.distributed` has a rendezvous too, but it aborts in C++ if a process is missing, without naming it.
"""

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass, field

from segnet_jax.system.errors import HostLost, UserError

GREETING_SECONDS = 5.0  # for a new connection to identify itself: it may come from an unrelated program


@dataclass(frozen=True)
class Process:
    """A process of the training run; str() formats it for messages."""

    number: int
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    def __str__(self) -> str:
        return f"process {self.number} (host {self.host}, pid {self.pid})"


class Link:
    """A connection that carries messages: JSON lists, one per line."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self._sending = connection, threading.Lock()
        self._rest, self._early = b"", []  # an incomplete line; messages received together with an answer

    def send(self, *message) -> None:
        """Send a message, ignoring errors: `receive` detects a closed connection."""
        with self._sending, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[list] | None:
        """Return new messages, possibly none, or None if the other end has closed or does not send JSON."""
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
        """Return the next message, or None after a timeout or if the other end has closed."""
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
        """Send a final message and close the connection."""
        self.send(word, why)
        self.socket.close()


@dataclass(frozen=True)
class Rendezvous:
    """The result of a rendezvous.

    Attributes:
      processes: all processes, by number.
      links: connections by process number: process 0 has one to every other process, the others only one to process 0.
      jax_port: port at which process 0 will run JAX's coordinator.
    """

    processes: list[Process]
    links: dict[int, Link]
    jax_port: int


def accept_all(port: int, me: Process, num_processes: int, jax_port: int, seconds: float) -> Rendezvous:
    """Listen on all interfaces until every other process has connected, then send each the list of processes.

    Called by process 0.

    Raises:
      HostLost: If processes are missing after the timeout; the others get the same error.
      OSError: If listening on the port fails.
    """
    processes, links = {0: me}, {}
    deadline = time.monotonic() + seconds
    with _listen(port) as server:
        while len(processes) < num_processes:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = [number for number in range(num_processes) if number not in processes]
                message = f"only {len(processes)} of {num_processes} processes joined within {seconds:g} s: "
                message += f"{list_processes(missing)} missing; start the same command on all hosts"
                for link in links.values():
                    link.dismiss("gave up", message)
                raise HostLost(message) from None
            link = Link(connection)
            match link.answer(GREETING_SECONDS):
                case ["here", int(number), str(host), int(pid), int(count)]:
                    if refusal := _refusal(number, count, num_processes):
                        link.dismiss("refused", refusal)
                        continue
                    process = Process(number, host, pid)
                    if number in links:  # restarted after a crash, or two processes have the same number
                        links[number].dismiss("refused", f"{process} has the same number: set another --process-id")
                    processes[number], links[number] = process, link
                case _:
                    link.socket.close()
    all_processes = [processes[number] for number in range(num_processes)]
    for link in links.values():
        link.send("all here", [[each.host, each.pid] for each in all_processes], jax_port)
    return Rendezvous(all_processes, links, jax_port)


def contact(address: tuple[str, int], me: Process, num_processes: int, seconds: float) -> Rendezvous:
    """Connect to process 0 and wait until it has accepted all processes. Called by every other process.

    Raises:
      HostLost: If process 0 cannot be reached, or processes are missing after the timeout.
      UserError: If the flags contradict those of the other processes.
    """
    where = f"process 0 at {address[0]}:{address[1]}"
    deadline, why = time.monotonic() + seconds, "no answer"
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
                return Rendezvous([Process(number, *names) for number, names in enumerate(roll)], {0: link}, jax_port)
            case [("refused" | "gave up") as word, str(message)]:
                link.socket.close()
                raise (UserError if word == "refused" else HostLost)(message)
        link.socket.close()
        why = "it answers, but processes are missing"
        time.sleep(min(0.2, max(0, deadline - time.monotonic())))
    raise HostLost(f"{me} could not join {where} within {seconds:g} s ({why}); start the same command on all hosts")


def list_processes(numbers: list[int]) -> str:
    """Format the first ten process numbers and the count of the others for a message."""
    more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return f"process{'es' * (len(numbers) > 1)} {', '.join(map(str, numbers[:10]))}{more}"


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be compiled in but disabled
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def _refusal(number: int, count: int, num_processes: int) -> str:
    """Return the reason to refuse a process, or "" to accept it."""
    if count != num_processes:
        return f"--num-processes is {num_processes} in process 0, but {count} in process {number}: set the same value"
    if not 0 < number < num_processes:
        return f"process id {number} is out of range 1..{num_processes - 1}"
    return ""
