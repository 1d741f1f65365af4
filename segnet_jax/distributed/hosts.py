"""Multi-process training: join the processes, exchange values, stop together and leave.

`jax.distributed.initialize` connects the processes, so that their collectives can run. This package works around
limitations found by killing processes with jax 0.10.2 and 0.12.0:

* `rendezvous.py`: if a process does not join in time, `initialize` aborts all others in C++ (exit code 134) without
  naming it. Processes therefore connect over TCP first, and then initialize JAX.
* `watchdog.py`: when a process dies or hangs in a collective, the others wait forever (jax #38503) or abort. The same
  connections carry heartbeats; a process that stops receiving them names the lost process and exits with code 8.
* `relay.py`: when process 0 dies, JAX aborts the others before the watchdog can report it, even with
  `jax_enable_recoverability`. Behind a local relay JAX sees a silent connection instead of a closed one.
* `Hosts.broadcast`, `all_gather`, `barrier`, `stop_at` use the watchdog's messages: JAX's key-value store is private,
  and the collectives of `jax.experimental.multihost_utils` neither time out nor name missing processes.
* `cluster.py`: uses JAX's private `ClusterEnv`, because `initialize` does not return the detected values.
"""

import json
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax

from segnet_jax.distributed import cluster
from segnet_jax.system.errors import HostLost, UserError

if TYPE_CHECKING:
    from segnet_jax.distributed.watchdog import Watchdog

logger = logging.getLogger(__name__)

JOIN_SECONDS = 300.0  # for all processes to join: schedulers may start them minutes apart
LEAVE_SECONDS = 3600.0  # for all processes to finish: process 0 still writes files and draws figures
SHUTDOWN_SECONDS = 5.0  # for JAX to close its connections, and for a failed process to exit
NO_TIMEOUT = 100_000  # seconds without a heartbeat before JAX aborts: effectively never, the watchdog detects losses


class Hosts:
    """The processes of a training run, as seen from this one; also works for a single process.

    As a context manager, it waits on exit until all processes have left their block, then shuts down. If the block
    raises, the error is announced to the other processes. A process that does not itself fail within `heartbeat`
    seconds exits and reports this process as lost; if all processes fail, each keeps its own error.

    Attributes:
      process_id: this process's number, from 0.
      num_processes: number of processes.
    """

    def __init__(
        self, process_id: int = 0, num_processes: int = 1, heartbeat: float = 0.0, watchdog: "Watchdog | None" = None
    ):
        self.process_id, self.num_processes = process_id, num_processes
        self._heartbeat, self._watchdog = heartbeat, watchdog
        self._counts: Counter[str] = Counter()
        self._stop: tuple[int, int] | None = None  # the first step call to skip, and the exit code
        self._has_left = False

    @property
    def is_writer(self) -> bool:
        """Whether this is process 0, the only one that writes files and prints."""
        return self.process_id == 0

    def broadcast(self, name: str, value: str | None = None, seconds: float = LEAVE_SECONDS) -> str:
        """Return process 0's value in all processes, which must call this equally often with each name.

        Raises:
          HostLost: If process 0 does not send its value in time.
          ValueError: If process 0 passes no value.
        """
        if self.is_writer and value is None:
            raise ValueError(f"process 0 must pass a value for {name}")
        if self._watchdog is None:
            return value
        key = self._new_key(name)
        if self.is_writer:
            self._watchdog.send("value", key, 0, value)
        elif (value := self._watchdog.receive(key, 0, seconds)) is None:
            raise HostLost(f"{self._watchdog.processes[0]} did not reach {name} within {seconds:g} s")
        return value

    def all_gather(self, name: str, value: str, seconds: float = LEAVE_SECONDS) -> list[str]:
        """Return the values of all processes, which must call this equally often with each name.

        Raises:
          HostLost: If processes are missing after the timeout; the message names them.
        """
        if self._watchdog is None:
            return [value]
        key, processes = self._new_key(name), self._watchdog.processes
        if not self.is_writer:
            self._watchdog.send("value", key, self.process_id, value)
        self.broadcast(name, "", seconds)  # returns when process 0 has arrived, which then waits for the others
        values = [value]
        if self.is_writer:
            deadline = time.monotonic() + seconds
            for process in processes[1:]:
                values.append(self._watchdog.receive(key, process.number, max(0.0, deadline - time.monotonic())))
        values = json.loads(self.broadcast(name, json.dumps(values), LEAVE_SECONDS))
        absent = [str(process) for process, each in zip(processes, values, strict=True) if each is None]
        if absent and values[self.process_id] is None:
            raise HostLost(f"{processes[self.process_id]} reached {name} after the others had stopped waiting")
        if absent:
            raise HostLost(f"{', '.join(absent)} did not reach {name} within {seconds:g} s")
        return values

    def barrier(self, name: str, seconds: float) -> None:
        """Wait until all processes reach this call; cheap enough for every step.

        Raises:
          HostLost: If processes are missing after the timeout; the message names them.
        """
        self.all_gather(name, "", seconds)

    def ask_to_stop(self, call: int, exit_code: int) -> None:
        """Request that all processes stop before the next step call; `call` is the number of this process's next call.

        The first request sets the exit code of all processes.
        """
        if self._watchdog is None:
            self._stop = self._stop or (call, exit_code)
        else:
            self._watchdog.ask_to_stop(call + 1, exit_code)

    def stop_at(self, call: int) -> int | None:
        """Return the exit code if all processes must stop before this step call, otherwise None.

        All processes must pass a barrier between this call and the step call. A process that requests a stop before
        step call n does so before that barrier, and process 0 forwards the request before it opens the barrier. All
        processes therefore know of the request before step call n + 1.
        """
        stop = self._stop if self._watchdog is None else self._watchdog.stop
        return stop[1] if stop and call >= stop[0] else None

    def before_lost(self, last_words: Callable[[str], None]) -> None:
        """Set a function that the watchdog calls with the error message, for up to 5 s, when a process is lost."""
        if self._watchdog:
            self._watchdog.last_words = last_words

    def wait_for_watchdog(self, error: BaseException) -> BaseException:
        """Wait after an error in a collective, so that the watchdog can report a lost process and end this one.

        Returns:
          The error, if no process was lost.
        """
        if self._watchdog:
            time.sleep(self._heartbeat + 3)
        return error

    def leave(self) -> None:
        """Wait until all other processes leave, then shut down; no collective may be running.

        Raises:
          HostLost: If a process does not leave in time or has failed.
        """
        if self._watchdog is None or self._has_left:
            return
        self._has_left = True
        self._watchdog.leave("")
        if not self._watchdog.all_leave.wait(LEAVE_SECONDS):
            _exit_after(SHUTDOWN_SECONDS, HostLost.exit_code)
            raise HostLost(
                f"{', '.join(map(str, self._watchdog.not_leaving()))} did not end within {LEAVE_SECONDS:g} s"
            )
        failed = self._watchdog.failed()
        _shut_down(HostLost.exit_code if failed else 0)
        if failed:
            raise HostLost(f"{'; '.join(failed)}: see its output")

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        if error is None:
            self.leave()
        elif self._watchdog and not self._has_left:
            self._has_left = True
            if isinstance(error, jax.errors.JaxRuntimeError):
                self.wait_for_watchdog(error)
            exit_code = getattr(error, "exit_code", 2 if isinstance(error, UserError) else 1)
            self._watchdog.leave(f"{type(error).__name__}: {error}".splitlines()[0][:300])
            if self._watchdog.all_leave.wait(self._heartbeat):
                _shut_down(exit_code)
            else:  # a collective may hang: JAX would wait for it, then for the other processes, then abort
                _exit_after(SHUTDOWN_SECONDS, exit_code)

    def _new_key(self, name: str) -> str:
        """Return an unused key, the same on all processes."""
        self._counts[name] += 1
        return f"{name}/{self._counts[name]}"


def join(
    coordinator: str,
    process_id: int,
    num_processes: int,
    heartbeat: float,
    seconds: float = JOIN_SECONDS,
) -> Hosts:
    """Join the other processes, if any, before JAX's backend is initialized.

    The first three arguments are as in `cluster.from_flags`; if they are not set, the cluster is detected. A process
    counts as lost after `heartbeat` seconds without a message.

    Raises:
      UserError: If flags are incomplete, invalid or differ between processes, the port is in use, or the coordinator is
        unknown.
      HostLost: If process 0 cannot be reached, or processes are missing after the timeout.
    """
    process = cluster.from_flags(coordinator, process_id, num_processes) or cluster.from_environment(os.environ)
    if process is None and (warning := cluster.single_process_warning(os.environ)):
        logger.warning(warning)
    if process is None or process.num_processes == 1:
        return Hosts()
    # Needed only for training over several processes.
    from segnet_jax.distributed.relay import open_relay
    from segnet_jax.distributed.rendezvous import Process, accept_all, contact
    from segnet_jax.distributed.watchdog import CLOSED, Watchdog

    me, (host, port) = Process(process.process_id), process.address
    logger.info(f"{me} of {process.num_processes} joins the others at {process.coordinator}")
    if me.number == 0:
        try:
            rendezvous = accept_all(port, me, process.num_processes, _free_port(), seconds)
        except OSError as error:
            raise UserError(f"process 0 cannot listen on port {port} ({error.strerror}): use another port") from None
        watchdog, jax_port = Watchdog(me, rendezvous, heartbeat), rendezvous.jax_port
    else:
        rendezvous = contact((host, port), me, process.num_processes, seconds)
        watchdog = Watchdog(me, rendezvous, heartbeat)
        jax_port = open_relay((host, rendezvous.jax_port), on_end=lambda: watchdog.lose(0, CLOSED))
    _initialize(jax_port, process)
    return Hosts(process.process_id, process.num_processes, heartbeat, watchdog)


def _initialize(jax_port: int, process: cluster.ClusterProcess) -> None:
    """Initialize `jax.distributed` with its detection of lost processes disabled."""
    jax.config.update("jax_enable_preemption_service", False)  # it would install its own SIGTERM handler
    jax.config.update("jax_check_proxy_envs", False)  # suppresses a warning about proxies, which are set below
    os.environ["no_grpc_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), "127.0.0.1"]))
    jax.distributed.initialize(
        f"127.0.0.1:{jax_port}",
        process.num_processes,
        process.process_id,
        local_device_ids=process.local_device_ids,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=NO_TIMEOUT,
        shutdown_timeout_seconds=NO_TIMEOUT,
    )


def _shut_down(exit_code: int) -> None:
    """Shut down `jax.distributed` in all processes; exit if another process does not respond in time."""
    timer = _exit_after(SHUTDOWN_SECONDS, exit_code)
    jax.distributed.shutdown()
    timer.cancel()


def _exit_after(seconds: float, exit_code: int) -> threading.Timer:
    """Start a timer that ends the process, even if its main thread hangs."""
    timer = threading.Timer(seconds, os._exit, (exit_code,))
    timer.daemon = True
    timer.start()
    return timer


def _free_port() -> int:
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]
