"""Check that several real processes over loopback take the same steps as one process, and save together."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # test_two_hosts.py tests the same through the command, with one input path

SCRIPT = pathlib.Path(__file__).parents[1] / "two_processes.py"


def train_together(count, folder, place, mapping="pmap"):
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, str(SCRIPT)]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(count), str(port), str(folder), place, mapping],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * count, "\n".join(outputs)
    return dict(np.load(folder / "restored.npz"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train_together(1, tmp_path_factory.mktemp("together") / "alone", "host")


@pytest.mark.parametrize(
    "place", ["host", "shards"]
)  # each process sends its part; gathers it from the other's devices
def test_two_processes_of_four_devices_end_where_one_of_eight_does(alone, tmp_path, place):
    two = train_together(2, tmp_path / "two", place)
    assert alone.keys() == two.keys() and len(alone) > 10
    for name in alone:
        np.testing.assert_allclose(two[name], alone[name], rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("count, place", [(1, "host"), (1, "shards"), (2, "host"), (2, "shards")])
def test_shard_map_ends_where_pmap_does_to_the_last_bit(tmp_path, count, place):
    by_pmap, by_shard_map = (
        train_together(count, tmp_path / mapping, place, mapping) for mapping in ("pmap", "shard_map")
    )
    assert by_pmap.keys() == by_shard_map.keys() and len(by_pmap) > 10
    for name in by_pmap:
        assert by_pmap[name].tobytes() == by_shard_map[name].tobytes(), name
