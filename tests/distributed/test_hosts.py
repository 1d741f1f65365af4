"""Check that several real processes over loopback join, exchange values, detect a lost process, and exit."""

import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from segnet_jax.distributed import cluster
from segnet_jax.distributed.hosts import Hosts, join
from segnet_jax.distributed.rendezvous import Process, accept_all, contact
from segnet_jax.system.errors import HostLost, UserError

SCRIPT = pathlib.Path(__file__).parents[1] / "host_process.py"
HEARTBEAT = 2
RESTART = "start the same command again on all hosts"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def started(*what, count=2, **variables):
    """Start `count` processes of host_process.py."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    port = str(free_port())
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), port, str(process_id), str(count), str(HEARTBEAT), *what],
            env=inherited | {"PYTHONPATH": str(SCRIPT.parents[1])} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process_id in range(count)
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


def values_in(line):
    """Parse lines of JSON; skip messages of Gloo, which may also precede the JSON on a line."""
    return json.loads(line[line.index("{") :]) if '{"' in line else {}


def end(process, seconds=60):
    """Return a process's exit code, the values it printed to stdout, and its stderr."""
    out, err = process.communicate(timeout=seconds)
    values = {}
    for line in out.splitlines():
        values |= values_in(line)
    return process.returncode, values, err


def wait_until_ready(process):
    for line in process.stdout:
        if "ready" in values_in(line):
            return
    raise AssertionError(process.stderr.read())


def errors(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    "who, proxy", [pytest.param("0", {}, marks=pytest.mark.slow), ("1", {"http_proxy": "http://127.0.0.1:9"})]
)
def test_all_stop_before_the_same_call_whichever_requests_it(who, proxy):
    with started("agree", who, "5", **proxy) as running:
        ends = [end(process) for process in running]
    gathered = [["0, 0", "1, 0"], ["0, 1", "1, 1"]]
    expected = {"shared": ["of 0, 0", "of 0, 1"], "gathered": gathered, "stopped_before": 6, "code": 143}
    assert ends == [(0, expected, "")] * 2


@pytest.mark.slow
def test_three_processes_agree():
    with started("agree", "2", "0", count=3) as running:
        ends = [end(process) for process in running]
    assert [(code, values["stopped_before"]) for code, values, _ in ends] == [(0, 1)] * 3


def lose(victim, where, how):
    """Start two processes and signal one; return how the other ends, its delay, and the victim's pid."""
    with started("wait", f"{where}{victim}") as running:
        for process in running:
            wait_until_ready(process)
        time.sleep(0.2)  # into the collective
        start = time.monotonic()
        running[victim].send_signal(how)
        ending = end(running[1 - victim], HEARTBEAT + 20)
        return ending, time.monotonic() - start, running[victim].pid


@pytest.mark.parametrize(
    "victim, where, how",
    [
        pytest.param(0, "collective", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, "collective", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(0, "host", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, "host", signal.SIGKILL, marks=pytest.mark.slow),
        (1, "host", signal.SIGTERM),  # JAX would intercept it
        pytest.param(0, "collective", signal.SIGSTOP, marks=pytest.mark.slow),
        (1, "host", signal.SIGSTOP),
    ],
)
def test_a_lost_process_ends_the_other_with_its_name(victim, where, how):
    (code, values, err), seconds, pid = lose(victim, where, how)
    why = "no heartbeat for 2 s" if how == signal.SIGSTOP else "its connection is closed"
    assert code == 8
    [line] = errors(err)
    assert f"process {victim} (host {socket.gethostname()}, pid {pid}) was lost: {why}" in line and RESTART in line
    assert line == f"error: {values['last_words']}"
    assert seconds < HEARTBEAT + (3 if how == signal.SIGSTOP else 0)


@pytest.mark.slow
def test_of_twenty_lost_processes_each_is_named():
    for i in range(20):
        victim, where, how = i % 2, ("collective", "host")[i // 2 % 2], (signal.SIGKILL, signal.SIGSTOP)[i // 4 % 2]
        (code, _, err), seconds, pid = lose(victim, where, how)
        assert code == 8 and f"process {victim} (host {socket.gethostname()}, pid {pid}) was lost" in err, (i, err)
        assert seconds < HEARTBEAT + 20


@pytest.mark.slow
def test_a_third_process_hears_from_process_0_who_was_lost():
    with started("wait", "host1", count=3) as running:
        for process in running:
            wait_until_ready(process)
        running[1].kill()
        for survivor in (running[0], running[2]):
            code, _, err = end(survivor, HEARTBEAT + 20)
            assert code == 8 and f"pid {running[1].pid}) was lost" in err


def test_a_barrier_names_the_missing_process():
    with started("absent") as running:
        ends = [end(process) for process in running]
    assert [code for code, _, _ in ends] == [8, 8]
    absent = f"process 1 (host {socket.gethostname()}, pid {running[1].pid})"
    assert errors(ends[0][2]) == [f"error: {absent} did not reach the check of the data within 1 s"]
    assert errors(ends[1][2]) == [f"error: {absent} reached the check of the data after the others had stopped waiting"]


@pytest.mark.parametrize(
    "what, code",
    [pytest.param(("fail", "all"), 2, marks=pytest.mark.slow), pytest.param(("stop",), 143, marks=pytest.mark.slow)],
)
def test_an_error_of_all_processes_is_not_reported_as_a_loss(what, code):
    with started(*what) as running:
        ends = [end(process) for process in running]
    assert [ending[0] for ending in ends] == [code, code]
    assert "lost" not in "".join(ending[2] for ending in ends)


def test_an_error_of_one_process_is_reported_by_the_other():
    with started("fail", "1") as running:
        ends = [end(process) for process in running]
    assert [code for code, _, _ in ends] == [8, 2]
    assert f"pid {running[1].pid}) was lost: it ended: UserError: no folder /d" in ends[0][2]
    assert ends[1][2] == "error: no folder /d\n"


def test_a_process_alone_agrees_with_itself():
    with Hosts() as hosts:
        assert hosts.is_writer and (hosts.process_id, hosts.num_processes) == (0, 1)
        assert hosts.broadcast("name", "value") == "value" and hosts.all_gather("name", "value") == ["value"]
        hosts.barrier("here", 1)
        assert hosts.stop_at(3) is None
        hosts.ask_to_stop(3, 130)
        hosts.ask_to_stop(4, 143)
        assert hosts.stop_at(3) == 130
        error = ValueError()
        assert hosts.wait_for_watchdog(error) is error


@pytest.mark.parametrize(
    "flags, message",
    [
        (("node1:4321", -1, 0), "--num-processes and --process-id must be set together with --coordinator node1:4321"),
        (("node1:4321", -1, 2), "--process-id must be set together with --coordinator node1:4321 --num-processes 2"),
        (("", 0, 2), "--coordinator must be set together with --process-id 0 --num-processes 2"),
        (("node1", 0, 2), "--coordinator must be host:port of process 0, such as node1:4321, got 'node1'"),
        (("node1:", 0, 2), "got 'node1:'"),
        ((":4321", 0, 2), "got ':4321'"),
        (("node1:70000", 0, 2), "got 'node1:70000'"),
        (("node1:4321", 2, 2), "--process-id must be from 0 to 1 for --num-processes 2, got 2"),
    ],
)
def test_incomplete_and_invalid_flags_are_refused(flags, message):
    with pytest.raises(UserError) as refused:
        join(*flags, heartbeat=2)
    assert message in str(refused.value)


def test_flags_for_one_process_join_no_other():
    assert join("node1:4321", 0, 1, heartbeat=2).num_processes == 1


def test_the_address_of_an_unreachable_coordinator_is_reported():
    port = free_port()
    with pytest.raises(HostLost) as lost:
        join(f"127.0.0.1:{port}", 1, 2, heartbeat=2, seconds=0.5)
    me = f"process 1 (host {socket.gethostname()}, pid {os.getpid()})"
    message = f"{me} could not join process 0 at 127.0.0.1:{port} within 0.5 s (Connection refused)"
    assert message in str(lost.value)


def test_a_port_in_use_is_reported():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port} .Address already in use"):
            join(f"127.0.0.1:{port}", 0, 2, heartbeat=2, seconds=0.5)


def meet(port, arrivals, num_processes=3, seconds=1.0):
    """Return the rendezvous or error of process 0 and of each arriving process, (id, count), in a dict."""
    ends = {}

    def run(name, function, *args):
        try:
            ends[name] = function(*args)
        except (HostLost, UserError) as error:
            ends[name] = error

    threads = [threading.Thread(target=run, args=(0, accept_all, port, Process(0), num_processes, 1234, seconds))]
    for place, (number, count) in enumerate(arrivals, start=1):
        args = place, contact, ("127.0.0.1", port), Process(number), count, seconds + 1
        threads.append(threading.Thread(target=run, args=args))
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # one after the other
    for thread in threads:
        thread.join()
    return ends


def test_every_process_reports_which_are_missing():
    ends = meet(free_port(), [(1, 4)], num_processes=4)
    assert isinstance(ends[0], HostLost) and isinstance(ends[1], HostLost) and str(ends[0]) == str(ends[1])
    assert str(ends[0]).startswith("only 2 of 4 processes joined within 1 s: processes 2, 3 missing")


def test_a_process_with_wrong_flags_is_refused_and_the_others_join():
    ends = meet(free_port(), [(1, 3), (1, 3), (2, 4), (3, 3), (2, 3)])
    assert all(isinstance(ends[place], UserError) for place in (1, 3, 4))
    assert "has the same number: set another --process-id" in str(ends[1])  # it may have died: the later one stays
    assert str(ends[3]) == "--num-processes is 3 in process 0, but 4 in process 2: set the same value"
    assert str(ends[4]) == "process id 3 is out of range 1..2"
    assert [each.number for each in ends[2].processes] == [0, 1, 2] and ends[5].jax_port == 1234


def test_an_unrelated_program_at_the_port_is_ignored():
    port = free_port()

    def call():
        time.sleep(0.05)
        for words in (b"GET / HTTP/1.0\r\n\r\n", b"[1, 2]\n", b'{"a": 1}\n', b""):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(words)

    caller = threading.Thread(target=call)
    caller.start()
    ends = meet(port, [(1, 2)], num_processes=2, seconds=10.0)
    caller.join()
    assert ends[1].jax_port == 1234


SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "gpu[03-06]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
EIGHT_A_NODE = SLURM | {
    "SLURM_NTASKS": "32",
    "SLURM_STEP_NUM_TASKS": "32",
    "SLURM_STEP_TASKS_PER_NODE": "8(x4)",
    "SLURM_PROCID": "13",
    "SLURM_LOCALID": "5",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_VERSION": "4.1.6",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
TWO_A_HOST = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


def place_in(monkeypatch, environment):
    """Set this process's environment, which JAX reads, and return the process that it describes."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "MEGASCALE_", "JOB_COMPLETION", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return cluster.from_environment(os.environ)


@pytest.mark.parametrize(
    "environment, expected",
    [
        (SLURM, ("gpu03:61440", 2, 4, None)),  # all of the node's GPUs; JAX by itself would take the first
        (EIGHT_A_NODE, ("gpu03:61440", 13, 32, [5])),
        (EIGHT_A_NODE | {"CUDA_VISIBLE_DEVICES": "5"}, ("gpu03:61440", 13, 32, None)),  # --gpus-per-task=1
        (EIGHT_A_NODE | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, ("gpu03:61440", 13, 32, [5])),
        (OPEN_MPI, ("10.96.0.1:62624", 1, 2, None)),
        (TWO_A_HOST, ("10.96.0.1:62624", 1, 2, [1])),
    ],
)
def test_clusters_are_detected(monkeypatch, environment, expected):
    assert place_in(monkeypatch, environment) == cluster.ClusterProcess(*expected)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell of salloc, in an allocation of four tasks
        {name: value for name, value in SLURM.items() if "STEP" not in name},  # a batch script, without srun
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a pod of no indexed Job
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ],
)
def test_without_a_cluster_a_process_is_alone(monkeypatch, environment):
    assert place_in(monkeypatch, environment) is None


@pytest.mark.parametrize(
    "index, has_package, warns", [("1", False, True), ("0", False, True), ("1", True, False), (None, False, False)]
)
def test_a_pod_that_cannot_find_the_others_warns_and_trains_alone(monkeypatch, index, has_package, warns, logged):
    place_in(monkeypatch, {})  # clears variables of other clusters
    if index is not None:
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    monkeypatch.setattr(cluster, "_has_kubernetes", lambda: has_package)
    monkeypatch.setattr(cluster, "_detect_with_jax", lambda: ("segnet-0:4321", 0, 1, None))  # a Job of one completion
    assert join("", -1, 0, 2.0).num_processes == 1
    assert len(logged) == warns
    if warns:
        assert logged[0].startswith(f"warning: pod {index} of an indexed Job trains alone; ")
        assert (
            'pip install "jax[k8s]"' in logged[0] and "--coordinator HOST:PORT" in logged[0] and "\n" not in logged[0]
        )


def test_a_pod_with_flags_does_not_warn(monkeypatch, logged):
    place_in(monkeypatch, {"JOB_COMPLETION_INDEX": "0"})
    assert join("segnet-0:4321", 0, 1, 2.0).num_processes == 1 and not logged


def test_kubernetes_is_detected_through_jax(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name if name == "kubernetes" else found(name))
    monkeypatch.setattr(cluster, "_detect_with_jax", lambda: ("segnet-0.segnet:55527", 1, 2, None))
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    assert place_in(monkeypatch, environment) == cluster.ClusterProcess("segnet-0.segnet:55527", 1, 2)

    def refuse():
        raise RuntimeError("Kubernetes API Error: 403 - Forbidden\nIt appears that ...")

    monkeypatch.setattr(cluster, "_detect_with_jax", refuse)
    with pytest.raises(UserError, match="403 - Forbidden.*--coordinator HOST:PORT"):
        place_in(monkeypatch, environment)


def test_several_processes_that_jax_cannot_number_do_not_train_separately(monkeypatch):
    without_address = {name: value for name, value in OPEN_MPI.items() if name != "OMPI_MCA_orte_hnp_uri"}
    with pytest.raises(UserError, match="--coordinator HOST:PORT, --process-id and --num-processes"):
        place_in(monkeypatch, without_address | {"OMPI_VERSION": "5.0.3"})
