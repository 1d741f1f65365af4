"""Test the benchmark: operation counts against hand-computed numbers, timing, and the command line."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from communication import BACKWARD_SHARE, IMAGE_FLOP

from segnet_jax import benchmark
from segnet_jax.benchmarks import roofline, throughput
from segnet_jax.benchmarks import run as benchmarks_run
from segnet_jax.benchmarks import timing as benchmarks_timing
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.nn.segnet import SegNet
from segnet_jax.system.command import run_command

TINY = ["--image-size", "16", "32", "--width", "0.0625", "--depth", "2", "--steps", "2", "--rounds", "3"]


@pytest.fixture(autouse=True)
def programs_kept_afterwards():
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, flags)])
    with pytest.raises(SystemExit) as left:
        run_command(benchmark.main)
    return left.value.code


@pytest.mark.slow
def test_the_work_of_the_published_network_is_the_published_one():
    work = roofline.work_of(SegNet(11, pooling="ceil", dtype=jnp.bfloat16), 360, 480)
    assert round(work.infer_flop / 1e9, 1) == 213.4  # performance tables of the roofline: 213.4 and 639.7 GFLOP,
    assert round(work.train_flop / 1e9, 1) == 639.7  # 2.42 and 0.43 GB
    assert round(work.train_bytes / 1e9, 2) == 2.42
    assert round(work.infer_bytes / 1e9, 2) == 0.43
    assert IMAGE_FLOP.value == pytest.approx(work.train_flop, rel=1e-3)  # what the model of scaling assumes
    assert BACKWARD_SHARE.value == pytest.approx(1 - work.infer_flop / work.train_flop, rel=1e-3)


def test_the_work_of_one_stage_matches_a_hand_count():
    work = roofline.work_of(SegNet(11, depth=1, width=1 / 64), 4, 6)  # one channel, 24 pixels
    forward = 2 * 9 * 24 * (3 * 1 + 1 * 1 + 1 * 1 + 1 * 11)
    assert work.infer_flop == forward
    assert work.train_flop == 3 * forward - 2 * 9 * 24 * 3 * 1


@pytest.mark.parametrize("dtype, num_bytes", [(jnp.float32, 4), (jnp.bfloat16, 2), (jnp.float16, 2)])
def test_bytes_are_those_of_the_precision_by_hand(dtype, num_bytes):
    work = roofline.work_of(SegNet(11, depth=1, width=1 / 64, dtype=dtype), 4, 6)
    read, written, normalized = 24 * (3 + 1 + 1 + 1), 24 * (1 + 1 + 1 + 11), 24 * (1 + 1 + 1)
    pools = 2 * (24 + 6) * num_bytes + 2 * 6  # pooling and unpooling: 24 pixels, 6 windows, 6 codes of a byte
    assert work.infer_bytes == (read + written) * num_bytes + pools
    assert work.train_bytes == (3 * (read + written) + 8 * normalized) * num_bytes + 2 * pools


def test_a_device_at_its_roofline_is_at_all_of_it():
    flop, num_bytes = 989e12 * 1e-3, 3350e9 * 1e-3  # a millisecond of each on an H100
    found = roofline.utilization(500, flop, num_bytes, "NVIDIA H100 80GB HBM3", "bfloat16")
    assert found["fraction_of_roofline"] == pytest.approx(1) and found["fraction_of_peak"] == pytest.approx(0.5)
    assert roofline.utilization(500, flop, num_bytes, "cpu", "float32")["fraction_of_peak"] is None
    assert roofline.peak_of("Tesla V100-SXM2-16GB", "float16") == (125e12, 900e9)
    assert roofline.peak_of("Tesla V100-SXM2-16GB", "bfloat16") is None  # it has no units for it


@pytest.mark.parametrize(
    "device_kind, expected",
    [
        ("NVIDIA A100-SXM4-80GB", (312e12, 2039e9)),
        ("NVIDIA H200", (989e12, 4800e9)),
        ("TPU v5 lite", (197e12, 819e9)),
        ("TPU v5", (459e12, 2765e9)),
        ("TPU v5p", (459e12, 2765e9)),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA T400 4GB", None),
        ("NVIDIA GH200 480GB", None),
        ("TPU v4 lite", None),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_whole_words_of_its_name(device_kind, expected):
    assert roofline.peak_of(device_kind, "bfloat16") == expected
    if expected is None:
        assert all(roofline.peak_of(device_kind, precision) is None for precision in ("float16", "float32"))


def test_a_timing_is_the_median_of_rounds_after_a_warm_up(monkeypatch):
    clock, calls = iter([0.0, 2.0, 10.0, 11.0, 20.0, 29.0]), []
    monkeypatch.setattr(benchmarks_timing.time, "perf_counter", lambda: next(clock))
    timing = benchmarks_timing.timed(calls.append, steps=10, rounds=3, warm_up=4)
    assert calls == [4, 10, 10, 10]
    assert timing.rounds == (0.2, 0.1, 0.9)
    assert timing.summary(4) == {
        "images_per_second": 20.0,
        "ms_per_step": 200.0,
        "ms_per_step_min": 100.0,
        "ms_per_step_max": 900.0,
    }


@pytest.mark.slow
def test_all_parts_are_measured_and_compared_with_an_earlier_time(monkeypatch, tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    data = ["--data", str(pathlib.Path(__file__).parents[2] / "data" / "sample")]
    flags = ["all", *TINY, *data, "--batch-size-per-device", "1", "--devices", "2", "--json"]
    assert run(monkeypatch, *flags, first) == 0
    found = json.loads(first.read_text())
    assert {
        "train",
        "epoch",
        "infer",
        "input",
        "pooling",
        "scaling",
        "date",
        "environment",
        "precision",
    } <= found.keys()
    assert all(found[part]["images_per_second"] > 0 for part in ("train", "epoch", "infer", "input", "pooling"))
    assert found["train"]["images_per_second_with_input"] > 0 and found["train"]["compile_seconds"] > 0
    assert found["train"]["program_memory_mb"] > 0
    assert (found["epoch"]["num_images"], found["epoch"]["num_scored"]) == (6, 3)  # data/sample
    assert [(row["devices"], row["sync_batch_norm"]) for row in found["scaling"]] == [
        (1, True),
        (2, True),
        (1, False),
        (2, False),
    ]
    assert [row["efficiency"] for row in found["scaling"] if row["devices"] == 1] == [1.0, 1.0]
    capsys.readouterr()
    pooling = ["pooling", *TINY, "--batch-size-per-device", "1", "--devices", "2", "--json", second]
    assert run(monkeypatch, *pooling, "--compare", first) == 0
    table = capsys.readouterr().out
    assert "now / before" in table and "pooling images per second" in table and "train" not in table


def test_several_steps_a_call_count_as_so_many_steps(monkeypatch):
    monkeypatch.setattr(throughput, "steps_per_dispatch", lambda config, devices: 3)  # a CPU itself is given one
    taken = []
    monkeypatch.setattr(throughput.TimedTrainer, "take", lambda self, inputs: taken.extend(map(jax.device_get, inputs)))
    monkeypatch.setattr(throughput.TimedTrainer, "memory", lambda self, inputs: {})
    clock = iter(range(0, 10**6, 6))  # six seconds a round
    monkeypatch.setattr(benchmarks_timing.time, "perf_counter", lambda: next(clock))
    options = benchmarks_run.BenchmarkOptions(
        image_size=(16, 32), width=1 / 16, depth=2, batch_size_per_device=16, steps_per_dispatch=3
    )
    measured = throughput.BenchmarkSetup(options.config, choose_devices("1"), "float32", steps=2, rounds=2)
    found = throughput.train(measured)  # the noise has 32 images: two steps an epoch, fewer than a call takes
    assert {inputs["index"].shape for inputs in taken} == {(1, 3, 1, 16)}
    assert len(taken) == 2 * (3 + 2 * 2)
    assert found["ms_per_step"] == 1000.0  # 6 s for two calls of three steps
    assert found["images_per_second"] == found["images_per_second_with_input"] == 16.0


def test_strong_scaling_divides_as_many_images_among_more_devices(monkeypatch):
    rate = {1: 10.0, 2: 20.0, 4: 20.0}
    monkeypatch.setattr(
        throughput, "train", lambda one: {"images_per_second": rate[one.devices.total], "ms_per_step": 1.0}
    )
    options = benchmarks_run.BenchmarkOptions(batch_size_per_device=3, strong=True)
    measured = throughput.BenchmarkSetup(options.config, choose_devices("4"), "float32", steps=1, rounds=1)
    rows = [row for row in throughput.scaling(measured, strong=True) if row["sync_batch_norm"]]
    assert [(row["scaling"], row["devices"], row["batch_size_per_device"]) for row in rows] == [
        *(("weak", 1, 3), ("weak", 2, 3), ("weak", 4, 3)),
        *(("strong", 1, 12), ("strong", 2, 6), ("strong", 4, 3)),
    ]
    assert [row["efficiency"] for row in rows] == [1.0, 1.0, 0.5] * 2


def full(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")


def test_what_does_not_fit_on_few_devices_is_left_out_of_strong_scaling(monkeypatch, tmp_path, capsys):
    def train(one):
        if one.config.batch_size_per_device > 8:
            full()
        return {"images_per_second": {1: 10.0, 2: 18.0, 4: 27.0}[one.devices.total], "ms_per_step": 1.0}

    monkeypatch.setattr(throughput, "train", train)
    flags = ["scaling", "--strong", "--devices", "4", "--batch-size-per-device", "4", "--json", tmp_path / "now.json"]
    assert run(monkeypatch, *flags) == 0
    printed, found = capsys.readouterr(), json.loads((tmp_path / "now.json").read_text())
    strong = [row for row in found["scaling"] if row["scaling"] == "strong"]
    assert [(row["devices"], row["batch_size_per_device"]) for row in strong] == 2 * [(2, 8), (4, 4)]
    assert [row["efficiency"] for row in strong] == 2 * [1.0, 27 / 36]  # of two devices' 18, not of one's
    assert [row["efficiency"] for row in found["scaling"] if row["scaling"] == "weak"] == 2 * [1.0, 0.9, 27 / 40]
    of_one = {"devices": 1, "scaling": "strong", "batch_size_per_device": 16, "left_out": "out of memory"}
    assert found["left_out"] == [of_one | {"sync_batch_norm": True}, of_one | {"sync_batch_norm": False}]
    assert printed.err.count("skipped strong scaling on 1 devices: 16 images per device do not fit into memory") == 2
    assert "strong, 2 devices" in printed.out and "strong, 1 devices" not in printed.out


def test_the_rows_before_one_that_does_not_fit_are_kept(monkeypatch, tmp_path, capsys):
    rows = iter([{"images_per_second": 10.0, "ms_per_step": 1.0}] * 2)
    monkeypatch.setattr(throughput, "train", lambda _: next(rows, None) or full())
    flags = ["scaling", "--devices", "4", "--batch-size-per-device", "16", "--json", tmp_path / "now.json"]
    assert run(monkeypatch, *flags) == 7
    assert [row["devices"] for row in json.loads((tmp_path / "now.json").read_text())["scaling"]] == [1, 2]
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert (
        len(errors) == 1 and "with --batch-size-per-device 16 at 360x480; try --batch-size-per-device 8," in errors[0]
    )
    assert "--grad-accum-steps" not in errors[0] and "--image-size" in errors[0]  # only flags that benchmark has
    assert "scaling 2 devices, synchronized BatchNorm: ms per step" in printed.out


def test_the_parts_before_one_that_breaks_off_are_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(throughput, "train", lambda _: {"images_per_second": 10.0})
    data = ["--data", str(pathlib.Path(__file__).parents[2] / "data" / "sample")]
    flags = ["all", *TINY, *data, "--devices", "8", "--batch-size-per-device", "1", "--json", tmp_path / "now.json"]
    assert run(monkeypatch, *flags) == 2
    assert json.loads((tmp_path / "now.json").read_text())["train"] == {"images_per_second": 10.0}
    printed = capsys.readouterr()
    assert (
        "6 training images are fewer than the global batch of 8" in printed.err
        and "--grad-accum-steps" not in printed.err
    )
    assert "train images per second" in printed.out


def test_an_epoch_of_rendered_scenes_has_steps_for_every_batch():
    assert benchmarks_run.scenes_for(4) == benchmarks_run.scenes_for(16) == (64, 16)
    assert benchmarks_run.scenes_for(32) == (128, 32)
    assert benchmarks_run.scenes_for(128) == (512, 128)  # 8 devices of 16
    assert benchmarks_run.scenes_for(400) == (512, 128)  # 0.1 s a scene
    assert benchmarks_run.scenes_for(1000) == (1000, 250)


def test_an_epoch_on_8_devices_of_16_images_has_them(monkeypatch):
    met = []
    monkeypatch.setattr(throughput, "epoch", lambda one: met.append((one.config.scenes, one.images_per_step)) or {})
    assert run(monkeypatch, "epoch", "--devices", "8", "--batch-size-per-device", "16") == 0
    assert met == [((512, 128), 128)]


@pytest.mark.slow
def test_compiling_is_timed_without_the_programs_that_are_kept(tmp_path):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "segnet_jax.benchmark", "pooling", *TINY, "--devices", "1"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert not list(tmp_path.glob("*-cache"))  # neither written nor read


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--compare", "no.json"], "cannot compare with no.json: No such file"),
        (["all", "--json", "no/now.json"], "--json no/now.json: there is no folder"),
        (["--steps", "0"], "--steps and --rounds must be at least 1"),
        (["--devices", "9"], "9 devices requested, but only 8 found"),
        (["nothing"], "nothing"),
        (["train", "--input", "host", "--steps-per-dispatch", "2"], "--steps-per-dispatch 2 works with --input device"),
    ],
)
def test_a_mistake_is_reported_in_one_line(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *flags) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]


def test_a_file_that_is_not_a_measurement_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "other.json").write_text("[1]")
    assert run(monkeypatch, "--compare", tmp_path / "other.json") == 2
    assert "was not written by benchmark --json" in capsys.readouterr().err
