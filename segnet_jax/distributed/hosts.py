"""One training over several hosts: how its processes join, agree on what must be alike, and part.

Where they meet is found by `cluster.py`, they do by `rendezvous.py`; a process that is lost ends all others, with its
name, by `watchdog.py`.
"""

import json
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

from segnet_jax.distributed import cluster
from segnet_jax.distributed.relay import open_relay
from segnet_jax.distributed.rendezvous import Process, arrive, gather
from segnet_jax.distributed.watchdog import CLOSED, Watch
from segnet_jax.system.errors import HostLost, UserError

logger = logging.getLogger(__name__)

JOIN_SECONDS = 300.0  # until all processes must have come: schedulers start them minutes apart
LEAVE_SECONDS = 3600.0  # until all must be done: process 0 still writes and draws
PARTING_SECONDS = 5.0  # for JAX to close its connections, and for a process that ends by an error to end
FOR_EVER = 100_000  # seconds of silence after which JAX would abort; it is our watch that tells who is lost
CALLS_AHEAD = 4  # a call waits for the results of the third before it: no process is further ahead of another than 3


class Hosts:
    """The processes of a training, as one of them sees them; a training alone has one.

    Entered, it is left together with the others. An error that ends it is told to them, and they have the heartbeat's
    time to end by the same error, each for itself, before they end because this process is lost.

    Attributes:
      process_id: this process's number, from 0.
      num_processes: how many there are.
    """

    def __init__(self, process_id: int = 0, num_processes: int = 1, heartbeat: float = 0.0, watch=None, client=None):
        self.process_id, self.num_processes = process_id, num_processes
        self._heartbeat, self._client = heartbeat, client
        self._watch: Watch | None = watch
        self._counts: Counter[str] = Counter()
        self._stop: tuple[int, int] | None = None  # agreed: before which call, and with which exit code
        self._has_asked = self._has_left = False

    @property
    def is_writer(self) -> bool:
        """Whether this process writes and prints: one of several does."""
        return self.process_id == 0

    def broadcast(self, name: str, value: str | None = None, seconds: float = LEAVE_SECONDS) -> str:
        """Gives process 0's value to all, each of which must call it as often for each name.

        Args:
          name: of what is shared.
          value: process 0's; that of the others is not looked at.
          seconds: how long the others wait for it.

        Raises:
          HostLost: process 0 has not told it in time.
        """
        if self.is_writer and value is None:
            raise ValueError(f"process 0 must give a value for {name}")
        if self._client is None:
            return value
        key = self._fresh(f"share/{name}")
        if self.is_writer:
            self._call("key_value_set", key, f"={value}")
            return value
        return self._told(key, self._watch.processes[0], name, seconds)

    def all_gather(self, name: str, value: str, seconds: float = LEAVE_SECONDS) -> list[str]:
        """Gives each process's value to all, in the order of their numbers; all must call it as often for each name.

        Args:
          name: of what is told.
          value: this process's.
          seconds: how long each is waited for.

        Raises:
          HostLost: one has not told its own in time.
        """
        if self._client is None:
            return [value]
        key = self._fresh(f"exchange/{name}")
        self._call("key_value_set", f"{key}/{self.process_id}", f"={value}")
        return [self._told(f"{key}/{each.number}", each, name, seconds) for each in self._watch.processes]

    def _told(self, key: str, process: Process, name: str, seconds: float) -> str:
        """What a process tells under a key."""
        told = self._call("blocking_key_value_get", key, _milliseconds(seconds), known="DEADLINE_EXCEEDED")
        if told is None:
            raise HostLost(f"{process} has not told {name} within {seconds:g} s")
        return told[1:]

    def barrier(self, name: str, seconds: float) -> None:
        """Waits until all processes are here, as often as they have been; cheap enough for every step.

        Raises:
          HostLost: some are not in time; it names them.
        """
        if self._client is None:
            return
        key = f"barrier/{name}"  # the same each time: the coordinator would keep every other one
        self._counts[key] += 1
        self._call("key_value_set", f"{key}/{self.process_id}", str(self._counts[key]), True)
        if self._call("wait_at_barrier", key, _milliseconds(seconds), known="DEADLINE_EXCEEDED") is not None:
            return
        times = {int(found.rsplit("/", 1)[1]): int(value) for found, value in self._call("key_value_dir_get", key)}
        absent = [each for each in self._watch.processes if times.get(each.number, 0) < self._counts[key]]
        if absent:
            raise HostLost(f"{', '.join(map(str, absent))} did not come to {name} within {seconds:g} s")
        raise HostLost(f"{self._watch.processes[self.process_id]} came to {name} when the others had stopped waiting")

    def ask_to_stop(self, call: int, exit_code: int) -> None:
        """Asks all to stop before the same call; whoever asks first is heard.

        Args:
          call: the number of the call that this process is about to dispatch.
          exit_code: with which all shall leave.
        """
        if self._client is None:
            self._stop = self._stop or (call, exit_code)
        elif not self._has_asked:
            self._has_asked = True
            self._call("key_value_set", "stop", json.dumps([call + CALLS_AHEAD, exit_code]), known="ALREADY_EXISTS")

    def stop_at(self, call: int) -> int | None:
        """The exit code, if all have agreed to stop before this call; every process asks before each.

        Whoever asks before call n has it published when it dispatches n. Nobody dispatches n + 4 without the results of
        n + 1, so by then all find it.
        """
        if self._stop is None and self._client is not None:
            agreed = self._call("key_value_try_get", "stop", known="NOT_FOUND")
            self._stop = tuple(json.loads(agreed)) if agreed else None
        return self._stop[1] if self._stop and call >= self._stop[0] else None

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

    def _call(self, method: str, *args, known: str = "") -> Any:
        """Calls JAX's client: what it returns, or "" for nothing; None after the error that is known."""
        try:
            result = getattr(self._client, method)(*args)
        except jax.errors.JaxRuntimeError as error:
            if known and known in str(error):
                return None
            raise self.blame(error) from None
        return "" if result is None else result


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
    client = _initialize(jax_port, place)
    return Hosts(place.process_id, place.num_processes, heartbeat, watch, client)


def _initialize(jax_port: int, place: cluster.Place) -> Any:
    """Initializes JAX's own processes; returns the client of its key-value store, which it offers in private alone."""
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
    from jax._src import distributed

    return distributed.global_state.client


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


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
