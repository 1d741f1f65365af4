"""A TCP relay to another host that keeps its local connection open when that host is lost.

JAX aborts in C++ as soon as its connection to process 0 breaks, before the watchdog can report the lost process, and no
callback can prevent it (std::bad_cast in jaxlib 0.10 and 0.12). Behind the relay, JAX sees a silent connection instead.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from segnet_jax.system.errors import HostLost

CONNECT_SECONDS = 60.0  # process 0 announces its port just before opening it
LAST_NEWS_SECONDS = 1.0  # for the watchdog to receive the reason for the end of process 0


def open_relay(far_address: tuple[str, int], on_end: Callable[[], None]) -> int:
    """Connect to another host, open a local port that relays one connection to it, and return the port.

    Args:
      far_address: host and port to connect to.
      on_end: called after the other host has closed the connection.

    Returns:
      The local port.

    Raises:
      HostLost: If the other host cannot be reached.
    """
    far = _connect(far_address)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not on macOS
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)  # firewalls drop connections idle for minutes
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    threading.Thread(target=_serve, args=(server, far, on_end), name="relay", daemon=True).start()
    return port


def _connect(address: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            connection = socket.create_connection(address, timeout=10)
            connection.settimeout(None)
            return connection
        except OSError as error:
            if time.monotonic() > deadline:
                where = f"port {address[1]} of process 0 at {address[0]}"
                raise HostLost(f"cannot reach {where} ({error.strerror}): open all ports between the hosts") from None
            time.sleep(0.05)


def _serve(server: socket.socket, far: socket.socket, on_end: Callable[[], None]) -> None:
    near, _ = server.accept()
    server.close()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=_pump, args=(near, far), name="relay back", daemon=True).start()
    _pump(far, near)
    time.sleep(LAST_NEWS_SECONDS)
    on_end()
    threading.Event().wait()  # forever: returning would close `near`


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
