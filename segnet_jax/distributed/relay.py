"""A local port that leads to another host and stays open when that host is gone.

JAX aborts in C++ as soon as its connection to process 0 breaks, before anybody can say who was lost, and lets no
callback prevent it (std::bad_cast in jaxlib 0.10 and 0.12). Behind a relay it sees silence, and the watch speaks.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from segnet_jax.system.errors import HostLost

CONNECT_SECONDS = 60.0  # process 0 opens its port just after it has told everybody
LAST_NEWS_SECONDS = 1.0  # for the watch to hear why process 0 went


def open_relay(far_address: tuple[str, int], on_end: Callable[[], None]) -> int:
    """Connects to another host and opens a local port, for one connection, that leads there.

    Args:
      far_address: host and port.
      on_end: called when the other host has closed the connection.

    Returns:
      The local port.

    Raises:
      HostLost: nobody answers there.
    """
    far = _connect(far_address)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not on macOS
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)  # firewalls forget who is silent for minutes
    door = socket.create_server(("127.0.0.1", 0))
    port = door.getsockname()[1]
    threading.Thread(target=_serve, args=(door, far, on_end), name="relay", daemon=True).start()
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
                raise HostLost(
                    f"{where} is not to be reached ({error.strerror}): training needs all ports open between the hosts"
                ) from None
            time.sleep(0.05)


def _serve(door: socket.socket, far: socket.socket, on_end: Callable[[], None]) -> None:
    near, _ = door.accept()
    door.close()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=_pump, args=(near, far), name="relay back", daemon=True).start()
    _pump(far, near)
    time.sleep(LAST_NEWS_SECONDS)
    on_end()
    threading.Event().wait()  # for ever: returning would close `near`


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copies until the source ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
