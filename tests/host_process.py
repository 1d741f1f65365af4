"""One of several processes that test_hosts.py starts: `python host_process.py PORT ID COUNT HEARTBEAT WHAT...`.

Joins the others, does WHAT, and prints the outcome to stdout as lines of JSON.
"""

import json
import logging
import os
import sys
import time
from collections import deque

from xla_flags import with_fake_devices

os.environ["XLA_FLAGS"] = with_fake_devices(2)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from segnet_jax.distributed.hosts import join  # noqa: E402
from segnet_jax.system import logs  # noqa: E402
from segnet_jax.system.command import run_command  # noqa: E402
from segnet_jax.system.errors import (
    Stopped,  # noqa: E402
    UserError,  # noqa: E402
)

port, process_id, count, heartbeat = sys.argv[1], *map(int, sys.argv[2:5])
what, *more = sys.argv[5:]


def report(**values):
    print(json.dumps(values), flush=True)


def psum():
    return jax.pmap(lambda x: jax.lax.psum(x, "data"), axis_name="data")


def agree(hosts, who, call_of_wish):
    """Share two values, pass a barrier, then step until all agree to stop at the request of one process."""
    shared = [hosts.broadcast("name", f"of {hosts.process_id}, {i}" if hosts.is_writer else None) for i in range(2)]
    gathered = [hosts.all_gather("place", f"{hosts.process_id}, {i}") for i in range(2)]
    hosts.barrier("begin", 20)
    step, numbers, unread = psum(), np.ones((2, 1), np.float32), deque()
    for call in range(100):
        if hosts.process_id == int(who) and call >= int(call_of_wish):
            hosts.ask_to_stop(call, 143)
        if (code := hosts.stop_at(call)) is not None:
            break
        hosts.barrier("step", 20)
        unread.append(step(numbers))
        if len(unread) > 2:
            assert unread.popleft()[0, 0] == 2 * count
    while unread:  # as the trainer does: a process that leaves during a collective would make the others hang
        assert unread.popleft()[0, 0] == 2 * count
    report(shared=shared, gathered=gathered, stopped_before=call, code=code)


def wait(hosts, where):
    """Compute once with the others, then wait to be killed.

    The victim, process 0 or 1, waits on the host; the other waits in WHERE.
    """
    victim, where = int(where[-1]), where[:-1]
    step, numbers = psum(), np.ones((2, 1), np.float32)
    step(numbers).block_until_ready()
    hosts.before_lost(lambda message: report(last_words=message))
    report(ready=os.getpid())
    if where == "collective" and hosts.process_id != victim:
        step(numbers).block_until_ready()
    time.sleep(120)


def absent(hosts):
    """Miss the barrier as process 1 after reaching it twice; both processes must leave with the same error."""
    for _ in range(2):
        hosts.barrier("the check of the data", 20)
    if hosts.process_id == 1:
        time.sleep(2.5)
    hosts.barrier("the check of the data", 1)


def fail(hosts, who):
    """Raise a user error in one process or in all."""
    if who == "all" or int(who) == hosts.process_id:
        raise UserError("no folder /d")
    time.sleep(120)


def stop(hosts):
    """Stop all processes."""
    raise Stopped(143)


def main():
    logs.configure(logging.WARNING)
    with join(f"127.0.0.1:{port}", process_id, count, heartbeat) as hosts:
        {"agree": agree, "wait": wait, "absent": absent, "fail": fail, "stop": stop}[what](hosts, *more)


if __name__ == "__main__":
    run_command(main)
