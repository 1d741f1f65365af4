"""One training over several processes: they join, exchange values, stop together and leave.

JAX forms the processes and runs their collectives (`jax.distributed.initialize`). The rest of this package is what it
does not offer, found with jax 0.10.2 and 0.12.0 by killing processes:

* `rendezvous.py`: where a process does not come in time, `initialize` aborts all others in C++ (exit code 134) without
  naming it. So the processes meet over TCP first, and initialize JAX when all are there.
* `watchdog.py`: when a process dies or hangs in a collective, the others wait forever (jax #38503) or abort. The same
  connections carry heartbeats; the process that misses them names the lost one and ends with exit code 8.
* `relay.py`: when process 0 dies, JAX aborts the others before the watchdog can speak, with `jax_enable_recoverability`
  too. Behind a local relay JAX sees a silent connection instead of a closed one.
* `Hosts.broadcast`, `all_gather`, `barrier`, `stop_at`: JAX's key-value store is private, and the public collectives of
  `jax.experimental.multihost_utils` neither time out nor say who is missing. They are messages of the watchdog's.
* `cluster.py`: the only private name, `ClusterEnv`, because `initialize` does not return what it detects.
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
    from segnet_jax.distributed.watchdog import Watch

logger = logging.getLogger(__name__)

JOIN_SECONDS = 300.0  # until all processes must have come: schedulers start them minutes apart
LEAVE_SECONDS = 3600.0  # until all must be done: process 0 still writes and draws
PARTING_SECONDS = 5.0  # for JAX to close its connections, and for a process that ends by an error to end
FOR_EVER = 100_000  # seconds of silence after which JAX would abort; it is our watch that tells who is lost


class Hosts:
    """The processes of a training, as one of them sees them; a training alone has one.

    Entered, it is left together with the others. An error that ends it is told to them, and they have the heartbeat's
    time to end by the same error, each for itself, before they end because this process is lost.

    Attributes:
      process_id: this process's number, from 0.
      num_processes: how many there are.
    """

    def __init__(
        self, process_id: int = 0, num_processes: int = 1, heartbeat: float = 0.0, watch: "Watch | None" = None
    ):
        self.process_id, self.num_processes = process_id, num_processes
        self._heartbeat, self._watch = heartbeat, watch
        self._counts: Counter[str] = Counter()
        self._stop: tuple[int, int] | None = None  # agreed: the first call that is not made, and the exit code
        self._has_left = False

    @property
    def is_writer(self) -> bool:
        """Whether this process writes and prints: one of several does."""
        return self.process_id == 0

    def broadcast(self, name: str, value: str | None = None, seconds: float = LEAVE_SECONDS) -> str:
        """Return process 0's value on all processes, which must call this equally often for each name.

        Args:
          name: of the value.
          value: process 0's; that of the others is ignored.
          seconds: how long the others wait.

        Raises:
          HostLost: process 0 did not send it in time.
        """
        if self.is_writer and value is None:
            raise ValueError(f"process 0 must give a value for {name}")
        if self._watch is None:
            return value
        key = self._fresh(name)
        if self.is_writer:
            self._watch.send("value", key, 0, value)
        elif (value := self._watch.receive(key, 0, seconds)) is None:
            raise HostLost(f"{self._watch.processes[0]} did not come to {name} within {seconds:g} s")
        return value

    def all_gather(self, name: str, value: str, seconds: float = LEAVE_SECONDS) -> list[str]:
        """Return the values of all processes in their order; all must call this equally often for each name.

        Raises:
          HostLost: some did not come within so many seconds; it names them.
        """
        if self._watch is None:
            return [value]
        key, processes = self._fresh(name), self._watch.processes
        if not self.is_writer:
            self._watch.send("value", key, self.process_id, value)
        self.broadcast(name, "", seconds)  # process 0 is here: it waits as long for the others, and says who was absent
        values = [value]
        if self.is_writer:
            deadline = time.monotonic() + seconds
            for process in processes[1:]:
                values.append(self._watch.receive(key, process.number, max(0.0, deadline - time.monotonic())))
        values = json.loads(self.broadcast(name, json.dumps(values), LEAVE_SECONDS))
        absent = [str(process) for process, each in zip(processes, values, strict=True) if each is None]
        if absent and values[self.process_id] is None:
            raise HostLost(f"{processes[self.process_id]} came to {name} when the others had stopped waiting")
        if absent:
            raise HostLost(f"{', '.join(absent)} did not come to {name} within {seconds:g} s")
        return values

    def barrier(self, name: str, seconds: float) -> None:
        """Wait until all processes are here; cheap enough for every step.

        Raises:
          HostLost: some are not in time; it names them.
        """
        self.all_gather(name, "", seconds)

    def ask_to_stop(self, call: int, exit_code: int) -> None:
        """Ask all processes to stop before the next call; the first to ask decides the exit code.

        Args:
          call: number of the call that this process is about to make.
          exit_code: that of all processes.
        """
        if self._watch is None:
            self._stop = self._stop or (call, exit_code)
        else:
            self._watch.ask_to_stop(call + 1, exit_code)

    def stop_at(self, call: int) -> int | None:
        """Return the exit code if all processes have agreed to stop before this call.

        All must come to a barrier between this and the call. Whoever asks before call n asks before its barrier, and
        process 0 passes that on before it opens the barrier, so that all know of it before call n + 1.
        """
        stop = self._stop if self._watch is None else self._watch.stop
        return stop[1] if stop and call >= stop[0] else None

    def before_lost(self, last_words: Callable[[str], None]) -> None:
        """Sets what is done with the message, for 5 s at most, before this process leaves because another is lost."""
        if self._watch:
            self._watch.last_words = last_words

    def blame(self, error: BaseException) -> BaseException:
        """Waits, after an error in what all do together, for the watch to name who is lost and to end this process.

        Returns:
          The error itself, if nobody was lost.
        """
        if self._watch:
            time.sleep(self._heartbeat + 3)
        return error

    def leave(self) -> None:
        """Waits until all others leave too, then parts from them; no collective may be under way.

        Raises:
          HostLost: some do not in time, or one has ended by an error.
        """
        if self._watch is None or self._has_left:
            return
        self._has_left = True
        self._watch.leave("")
        if not self._watch.all_leave.wait(LEAVE_SECONDS):
            _end_within(PARTING_SECONDS, HostLost.exit_code)
            raise HostLost(f"{', '.join(map(str, self._watch.not_leaving()))} did not end within {LEAVE_SECONDS:g} s")
        failed = self._watch.failed()
        _part(HostLost.exit_code if failed else 0)
        if failed:
            raise HostLost(f"{'; '.join(failed)}: see what it printed")

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        if error is None:
            self.leave()
        elif self._watch and not self._has_left:
            self._has_left = True
            if isinstance(error, jax.errors.JaxRuntimeError):
                self.blame(error)
            exit_code = getattr(error, "exit_code", 2 if isinstance(error, UserError) else 1)
            self._watch.leave(f"{type(error).__name__}: {error}".splitlines()[0][:300])
            if self._watch.all_leave.wait(self._heartbeat):
                _part(exit_code)
            else:  # a collective may be under way for ever, and JAX would wait for it, then for the others, then abort
                _end_within(PARTING_SECONDS, exit_code)

    def _fresh(self, name: str) -> str:
        """A key that has not been used and is the same on all processes."""
        self._counts[name] += 1
        return f"{name}/{self._counts[name]}"


def join(
    coordinator: str,
    process_id: int,
    num_processes: int,
    heartbeat: float,
    seconds: float = JOIN_SECONDS,
) -> Hosts:
    """Joins the other processes, if there are any; to be called before JAX is asked for its devices.

    Args:
      coordinator: host:port of process 0, to join by hand; empty: what the cluster says, if it says anything.
      process_id: this process's number, from 0; -1: not given.
      num_processes: how many there are; 0: not given.
      heartbeat: seconds without a sign of life until a process is lost.
      seconds: until all must have come.

    Raises:
      UserError: for flags that are given by halves or fit neither one another nor those of the others, a port that is
        taken, or a cluster that does not tell where the processes meet.
      HostLost: process 0 is not to be reached, or some have not come in time.
    """
    place = cluster.by_hand(coordinator, process_id, num_processes) or cluster.by_cluster(os.environ)
    if place is None and (why := cluster.why_alone(os.environ)):
        logger.warning(why)
    if place is None or place.num_processes == 1:
        return Hosts()
    # Imported by trainings over several processes only.
    from segnet_jax.distributed.relay import open_relay
    from segnet_jax.distributed.rendezvous import Process, arrive, gather
    from segnet_jax.distributed.watchdog import CLOSED, Watch

    me, (host, port) = Process(place.process_id), place.address
    logger.info(f"{me} meets the other {place.num_processes - 1} at {place.coordinator}")
    if me.number == 0:
        try:
            meeting = gather(port, me, place.num_processes, _free_port(), seconds)
        except OSError as error:
            raise UserError(f"process 0 cannot listen on port {port} ({error.strerror}): use another one") from None
        watch, jax_port = Watch(me, meeting, heartbeat), meeting.jax_port
    else:
        meeting = arrive((host, port), me, place.num_processes, seconds)
        watch = Watch(me, meeting, heartbeat)
        jax_port = open_relay((host, meeting.jax_port), on_end=lambda: watch.lose(0, CLOSED))
    _initialize(jax_port, place)
    return Hosts(place.process_id, place.num_processes, heartbeat, watch)


def _initialize(jax_port: int, place: cluster.ClusterProcess) -> None:
    """Initialize `jax.distributed`, whose own notice of lost processes is put off forever."""
    jax.config.update("jax_enable_preemption_service", False)  # its notifier would take SIGTERM, which we hear
    jax.config.update("jax_check_proxy_envs", False)  # it would warn of what is seen to here
    os.environ["no_grpc_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), "127.0.0.1"]))
    jax.distributed.initialize(
        f"127.0.0.1:{jax_port}",
        place.num_processes,
        place.process_id,
        local_device_ids=place.local_device_ids,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=FOR_EVER,
        shutdown_timeout_seconds=FOR_EVER,
    )


def _part(exit_code: int) -> None:
    """Closes JAX's connections, as all do now; all is done, so one that dies meanwhile is not waited for."""
    timer = _end_within(PARTING_SECONDS, exit_code)
    jax.distributed.shutdown()
    timer.cancel()


def _end_within(seconds: float, exit_code: int) -> threading.Timer:
    """Ends the process after so long, whatever it hangs in."""
    timer = threading.Timer(seconds, os._exit, (exit_code,))
    timer.daemon = True
    timer.start()
    return timer


def _free_port() -> int:
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]
