"""Test the training command in two processes: equal to one process, stopped together, exact after a kill."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_train import SMALL, latest_of, restored, run
from xla_flags import QUICK

from segnet_jax.training.manifest import verify

HEARTBEAT = 5
SAME = [*SMALL[: SMALL.index("--devices")], *SMALL[SMALL.index("--devices") + 2 :], "--epochs", "7"]  # 21 steps


class Two:
    """Two processes with four fake devices each that train in the same folder."""

    def __init__(self, folder, *flags, first=("-m", "segnet_jax.train"), of_second=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
        environment["XLA_FLAGS"] = QUICK
        hosts = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--heartbeat", str(HEARTBEAT)]
        self.log = folder / "metrics.jsonl"
        self.processes = [
            subprocess.Popen(
                [sys.executable, *(("-m", "segnet_jax.train") if rank else first), *SAME, "--fake-devices", "4"]
                + ["--run", str(folder), *hosts, "--process-id", str(rank), *flags],
                env=environment | dict(of_second) if rank else environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    def wait_for(self, step):
        limit = time.monotonic() + 60
        while time.monotonic() < limit and self.processes[0].poll() is None:
            if self.log.exists() and f'"step": {step},' in self.log.read_text():
                return
            time.sleep(0.02)

    def end(self, seconds=90):
        """Return the exit codes and stderr of both processes; fail after a timeout."""
        try:
            errors = [process.communicate(timeout=seconds)[1] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes], errors


def sum_of(folder):
    return verify(folder / "checkpoints" / "newest" / str(latest_of(folder)))["state"]


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = {"seconds", "images_per_second", "time"}
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "unbroken"
    codes, errors = Two(folder).end()
    assert codes == [0, 0], errors
    return folder


def test_two_processes_of_four_devices_end_where_one_of_eight_does(unbroken, tmp_path):
    assert run("--run", tmp_path / "one", "--epochs", 7) == 0
    ours, expected = (restored(folder)["params"] for folder in (unbroken, tmp_path / "one"))
    assert latest_of(unbroken) == 21
    for mine, other in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6)


@pytest.mark.slow  # runs/test_patience.py tests it in one process
def test_with_patience_both_processes_stop_at_the_same_step(tmp_path):
    flags = ("--seed", "5", "--epochs", "20", "--patience", "2")
    codes, errors = Two(tmp_path / "two", *flags).end()
    assert codes == [0, 0], errors
    assert run("--run", tmp_path / "one", *flags) == 0
    ours, expected = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one"))
    assert ours["stopped_early"] and ours["num_steps"] == expected["num_steps"] < 60
    assert ours["step"] == expected["step"] and latest_of(tmp_path / "two") == ours["num_steps"]


@pytest.mark.slow  # test_mapping.py compares the two in one process
def test_the_other_mapping_ends_at_the_same_bits(unbroken, tmp_path):
    codes, errors = Two(tmp_path / "run", "--mapping", "shard_map").end()
    assert codes == [0, 0], errors
    assert sum_of(tmp_path / "run") == sum_of(unbroken) and rows_of(tmp_path / "run") == rows_of(unbroken)
    assert "compiled the training step in" in errors[0]  # ahead of time, which `pmap` cannot do in several processes


@pytest.mark.slow
def test_two_processes_take_the_population_statistics_that_one_does(tmp_path):
    """Check 26 images in batches of eight: every device of both processes handles the remaining two."""
    flags = ("--batch-norm", "recompute", "--batch-norm-variance", "population", "--epochs", "1")
    codes, errors = Two(tmp_path / "two", *flags).end()
    assert codes == [0, 0], errors
    assert run("--run", tmp_path / "one", *flags) == 0
    ours, expected = (
        load_file(next((folder / "checkpoints" / "statistics").glob("*/batch_stats.safetensors")))
        for folder in (tmp_path / "two", tmp_path / "one")
    )
    assert ours.keys() == expected.keys() and len(ours) == 6  # mean and variance behind three convolutions
    for name, array in expected.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_killed_one_is_named_and_a_signal_to_one_stops_both_and_all_of_it_is_exact(unbroken, tmp_path):
    folder = tmp_path / "run"
    two = Two(folder)
    two.wait_for(8)
    two.processes[1].kill()
    killed_at = time.monotonic()
    codes, errors = two.end(HEARTBEAT + 20)
    assert codes == [8, -signal.SIGKILL] and time.monotonic() - killed_at < HEARTBEAT + 20
    assert f"error: process 1 (host {socket.gethostname()}, pid {two.processes[1].pid}) was lost" in errors[0]
    assert json.loads((folder / "outcome.json").read_text())["exit_code"] == 8

    two = Two(folder)
    two.wait_for(13)
    two.processes[1].send_signal(signal.SIGTERM)
    codes, errors = two.end()
    assert codes == [143, 143], errors
    stopped_at = json.loads((folder / "outcome.json").read_text())["saved"]
    assert latest_of(folder) == stopped_at and f"stopped after step {stopped_at} of 21" in errors[0]

    assert Two(folder).end()[0] == [0, 0]
    assert sum_of(folder) == sum_of(unbroken) and rows_of(folder) == rows_of(unbroken)


@pytest.mark.slow
def test_twenty_kills_of_either_process_are_named_and_the_restart_is_exact_each_time(unbroken, tmp_path):
    moments, longest = random.Random(0), 0.0
    for number in range(20):
        folder, victim = tmp_path / str(number), moments.randrange(2)
        two = Two(folder)
        two.wait_for(moments.randrange(1, 20))
        time.sleep(moments.random() / 4)
        two.processes[victim].kill()
        killed_at = time.monotonic()
        codes, errors = two.end(HEARTBEAT + 20)
        longest = max(longest, time.monotonic() - killed_at)
        assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 8), (number, codes, errors)
        assert f"error: process {victim} (host" in errors[1 - victim], errors
        assert Two(folder).end()[0] == [0, 0]
        assert sum_of(folder) == sum_of(unbroken) and rows_of(folder) == rows_of(unbroken), number
    print(f"20 of 20 named and exact; the other left after at most {longest:.1f} s")


FULL_ONCE = """
from segnet_jax import train
from segnet_jax.system.command import run_command
from segnet_jax.training import checkpoints

finalize, times = checkpoints.finalize, []

def full_at_the_third(*args):
    times.append(1)
    if len(times) == 3:
        raise OSError(28, "No space left on device")
    return finalize(*args)

checkpoints.finalize = full_at_the_third
run_command(train.main)
"""


@pytest.mark.slow
def test_the_saving_process_waits_for_room_during_a_save_and_the_other_waits_for_it(unbroken, tmp_path):
    codes, errors = Two(tmp_path / "run", "--on-disk-full", "wait", first=("-c", FULL_ONCE)).end()
    assert codes == [0, 0], errors
    assert "waiting for free space" in errors[0] and "space is available again" in errors[0]
    assert sum_of(tmp_path / "run") == sum_of(unbroken) and rows_of(tmp_path / "run") == rows_of(unbroken)


@pytest.mark.slow
def test_if_one_has_no_room_for_decoded_images_both_take_batches_from_the_host(unbroken, tmp_path):
    (tmp_path / "file").touch()
    codes, errors = Two(tmp_path / "run", of_second={"SEGNET_JAX_CACHE": str(tmp_path / "file" / "cache")}).end()
    assert codes == [0, 0], errors
    assert "input    host in all processes, because of the memory or the cache of process 1" in errors[0]
    assert sum_of(tmp_path / "run") == sum_of(unbroken)


def test_a_signal_while_the_others_are_waited_for_ends_with_a_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        hosts = ["--coordinator", f"127.0.0.1:{nobody.getsockname()[1]}", "--num-processes", "2", "--process-id", "1"]
        command = [sys.executable, "-m", "segnet_jax.train", *SAME, "--run", str(tmp_path / "run"), *hosts]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        nobody.settimeout(60)
        with nobody.accept()[0]:
            process.terminate()
            errors = process.communicate(timeout=20)[1]
    assert process.returncode == 143 and "stopping: nothing is lost" in errors and "Traceback" not in errors
    assert not (tmp_path / "run").exists()
