"""Check that runs killed, stopped, out of disk or started twice end like an uninterrupted run or explain why not."""

import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import socket
import subprocess
import time

import pytest
from broken_runs import (
    EIGHT,
    FIRST_KILLS,
    ONE,
    STEPS_PER_EPOCH,
    RunPaths,
    Start,
    differences,
    draw_kill,
    saved,
)
from faults import BALLAST

from segnet_jax import train
from segnet_jax.config.flags import parse_config

SEED = int(os.environ.get("SEGNET_JAX_SEED", "0"))
FEW, MANY = 4, 40  # epochs
EXPECTED = {"kill": 137, "term": 143, "int": 130}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Return a function that trains an uninterrupted run of some epochs once and returns its folder."""
    base, runs = tmp_path_factory.mktemp("unbroken"), {}

    def of(epochs: int) -> pathlib.Path:
        if epochs not in runs:
            flags = [*EIGHT, "--epochs", epochs, "--run", base / f"run-{epochs}"]
            config = parse_config(list(map(str, flags)), prog="segnet_jax.train", description="")
            assert train.train(config) == 0  # in this process, whose devices and XLA flags the others inherit
            runs[epochs] = base / f"run-{epochs}"
        return runs[epochs]

    return of


@pytest.fixture
def place(tmp_path, programs):
    """Return a function that returns the paths of a new run of some epochs."""
    return lambda epochs, flags=EIGHT: RunPaths(
        tmp_path / "run", tmp_path / "cache", programs, (*flags, "--epochs", epochs)
    )


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "segnet_jax_test", folder], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no small disk here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def break_at(place, moment):
    """Start the command with a fault and check how it ends."""
    before = saved(place.run)
    ended = place.train(moment)
    fault = moment.partition("=")[2].partition("+")[0]
    print(f"{moment}: {ended.code}, {ended.finished_steps} steps, {saved(place.run)} saved, {ended.seconds:.1f} s")
    assert ended.code == EXPECTED[fault], ended.err
    assert "Traceback" not in ended.err
    assert saved(place.run) >= before  # nothing that was saved is lost
    if re.search("^run  ", ended.err, re.MULTILINE):  # it logged its folder before the fault
        assert ended.first_step == before
    else:
        assert ended.finished_steps == 0
    if fault == "kill":
        # Only steps since the last epoch's end, and the save in progress, are not saved.
        assert ended.finished_steps - saved(place.run) <= 2 * STEPS_PER_EPOCH
    else:
        assert saved(place.run) == ended.finished_steps
        assert ended.seconds_since(fault) < 10
        if place.run.exists():
            noted = json.loads((place.run / "outcome.json").read_text())
            assert noted["exit_code"] == ended.code and (noted["saved"] or 0) == ended.finished_steps
            assert re.search(rf"Step {noted['saved']} is saved|Nothing is saved yet", ended.err)
    return ended


def finish(place, unbroken):
    """Start the command again and compare the run with the uninterrupted one."""
    ended = place.train()
    assert ended.code == 0, ended.err
    assert differences(place.run, unbroken) == []


# --- killed ---


@pytest.mark.slow  # a minute; test_resume.py resumes in one process
def test_a_run_killed_while_saving_ends_as_the_unbroken_run(place, unbroken):
    generator, place = random.Random(SEED), place(FEW)
    print("seed", SEED)
    break_at(place, draw_kill(generator, "saving"))  # many more moments, and signals, in the slow ones
    finish(place, unbroken(FEW))


def moments_of_one_run(generator):
    """Return 25 moments at which to kill one run; None stands for an external kill.

    The first is in the first start and the second in saving; of the others, at least 6 are in saving, 3 in evaluation,
    2 in compilation and 2 in drawing figures.
    """
    phases = ["saving"] * 6 + ["evaluating"] * 3 + ["compiling"] * 2 + ["drawing"] * 2
    phases += generator.choices(["starting", "training", "saving", "outside"], k=24 - len(phases) - 1)
    generator.shuffle(phases)
    drawn = [None if phase == "outside" else draw_kill(generator, phase) for phase in phases]
    return [f"{generator.choice(FIRST_KILLS)}=kill", "saving: removing:1=kill", *drawn]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [EIGHT, ONE], ids=["eight devices", "one device"])
def test_a_run_killed_at_25_random_moments_ends_as_the_unbroken_run(place, unbroken, flags, tmp_path, programs):
    seed = SEED + len(flags[-1])
    generator, place = random.Random(seed), place(MANY, flags)
    print("seed", seed)
    moments = moments_of_one_run(generator)
    assert len(moments) == 25
    for moment in moments:
        if moment:
            break_at(place, moment)
        else:
            killed_from_outside(place, generator.uniform(0.2, 4))
    if flags is ONE:
        alone = RunPaths(tmp_path / "alone", place.cache, programs, place.flags)
        assert alone.train().code == 0
    finish(place, unbroken(MANY) if flags is EIGHT else alone.run)


def killed_from_outside(place, seconds):
    before = saved(place.run)
    start = place.start()
    time.sleep(seconds)
    start.kill()
    ended = start.wait()
    print(f"outside after {seconds:.2f} s: in {ended.phase}, {ended.finished_steps} steps, {saved(place.run)} saved")
    assert ended.code == 137 and saved(place.run) >= before


@pytest.mark.slow
def test_a_program_half_written_when_the_process_is_killed_is_compiled_again(place, unbroken):
    place = place(FEW)
    optimized = {
        "programs": "",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }  # takes long enough to be cached
    assert place.train("compiling: keeping=kill", **optimized).code == 137
    (half,) = (place.cache / "compiled").glob("*-cache")
    before = half.stat().st_size
    ended = place.train("training: stepped=term", **optimized)
    assert ended.code == 143 and "Error reading" not in ended.err
    assert half.stat().st_size > 1.9 * before
    ended = place.train("training: stepped=term", **optimized)
    assert ended.code == 143 and ended.count("compiling: keeping") == 0 and "Error reading" not in ended.err


# --- stopped ---

BEFORE_THE_FIRST_STEP = ["starting: decoding:5", "starting: counting:3", "compiling: step"]
STOPS = [
    *("starting: counting:5=term", "starting: decoding:9=term", "compiling: step=term+0.05", "compiling: XLA=term"),
    *("training: step:2=term", "training: stepped:3=term", "evaluating: batch:2=term", "saving: arrays=term"),
    *("saving: manifest:2=term", "drawing: half:2=term"),
    *("starting: restore=int", "training: step=int+0.01", "evaluating: scored=int", "saving: read=int"),
    "drawing: plot=int",
]


@pytest.mark.slow
def test_a_run_stopped_at_15_moments_loses_no_finished_step(place, unbroken):
    place = place(MANY // 2)
    assert sum("=term" in stop for stop in STOPS) == 10 and sum("=int" in stop for stop in STOPS) == 5
    for moment in STOPS:
        break_at(place, moment)
    finish(place, unbroken(MANY // 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        f"{moment}=int-int"
        for moment in (
            "saving: manifest:4",
            "training: step:7",
            "evaluating: batch:4",
            "compiling: XLA:2",
            "drawing: half:5",
        )
    ],
)
def test_a_second_ctrl_c_leaves_within_two_seconds_and_what_was_saved_before_is_whole(place, unbroken, moment):
    place = place(FEW)
    ended = place.train(moment)
    print(f"{moment}: left {ended.seconds_since('second'):.2f} s after the second Ctrl-C")
    assert ended.code == 130 and ended.seconds_since("second") < 2
    assert "exited immediately: checkpoints saved before are complete" in ended.err
    if moment.startswith(("saving", "training", "drawing")):
        assert saved(place.run) > 0
    finish(place, unbroken(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("moment", BEFORE_THE_FIRST_STEP)
@pytest.mark.parametrize("fault", ["term", "int"])
def test_a_signal_before_the_first_step_leaves_promptly(place, moment, fault):
    ended = break_at(place(FEW), f"{moment}={fault}")
    assert ended.seconds_since(fault) < 3 and ended.finished_steps <= 1


# --- out of disk ---


def break_by_disk(place, moment, expected=4):
    """Start the command with a disk that fills up at a given moment, and compare its output with the disk's state."""
    before = saved(place.run)
    ended = place.train(*[moment] if moment else [])
    print(f"{moment}: {ended.code}, {ended.finished_steps} steps, {saved(place.run)} saved: {ended.err[-200:]!r}")
    assert ended.code == expected and "Traceback" not in ended.err, ended.err
    now = saved(place.run)
    assert before <= now <= ended.finished_steps
    reported = re.search(r"Step (\d+) is saved and verified", ended.err)
    assert (int(reported[1]) if reported else 0) == now  # nothing false is printed
    assert "scores of the" not in ended.out
    assert re.search(r"error: .*(no space left|MB are free|cannot be saved|cannot write)", ended.err), ended.err
    (pathlib.Path(place.disk) / BALLAST).unlink(missing_ok=True)


def on_disk(place, disk):
    return RunPaths(disk / "run", place.cache, place.programs, place.flags, disk)


@pytest.mark.slow
def test_a_full_disk_leaves_the_older_checkpoint_whole_and_ends_with_4(place, unbroken, small_disk):
    place = on_disk(place(FEW), small_disk)
    for moment in ("saving: arrays:3=fill", "training: line:2=fill"):
        break_by_disk(place, moment)
    finish(place, unbroken(FEW))


FULL = [
    *("saving: begin:3=fill", "saving: arrays:3=fill", "saving: meta:2=fill", "saving: manifest:3=fill"),
    *("saving: note=fill", "saving: read=fill", "training: step:2=fill", "drawing: half=fill"),
    *("starting: metrics=fill", "evaluating: scored=fill"),
]


@pytest.mark.slow
def test_a_disk_that_fills_up_at_ten_moments_costs_no_checkpoint(place, unbroken, small_disk):
    assert len(FULL) == 10
    place = on_disk(place(MANY // 2), small_disk)
    for moment in FULL:
        break_by_disk(place, moment)
    finish(place, unbroken(MANY // 2))


@pytest.mark.slow
def test_a_start_on_a_full_disk_ends_with_4_and_costs_nothing(place, unbroken, small_disk):
    place = on_disk(place(FEW), small_disk)
    break_at(place, "training: step:5=term")
    with contextlib.suppress(OSError), open(small_disk / BALLAST, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    break_by_disk(place, "")
    finish(place, unbroken(FEW))


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["saving: begin:2", "saving: arrays:4", "training: stepped:6", "drawing: plot:2", "drawing: half:5"]
)
def test_a_file_that_may_not_grow_ends_as_a_full_disk_does(place, unbroken, moment, tmp_path):
    place = on_disk(place(FEW), tmp_path)
    break_by_disk(place, f"{moment}=limit")
    finish(place, unbroken(FEW))


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        [f"{moment}=fill-free"]
        for moment in (
            "saving: arrays:3",
            "training: line:5",
            "saving: meta:2",
            "saving: manifest:3",
            "saving: note:2",
            "drawing: half:5",
        )
    ],
)
def test_where_room_is_waited_for_a_full_disk_changes_nothing(place, unbroken, small_disk, moments):
    place = on_disk(place(FEW), small_disk)
    ended = place.train(*moments, more=("--on-disk-full", "wait"))
    assert ended.code == 0, ended.err
    assert "waiting for free space" in ended.err and "space is available again" in ended.err
    assert differences(place.run, unbroken(FEW)) == []


# --- started twice ---


def snapshot(folder):
    return {
        path.relative_to(folder): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_a_second_start_is_refused_by_name_and_one_after_a_kill_takes_over(place, unbroken, tmp_path):
    place = place(FEW)
    with place.start("training: step:4=pause") as first:
        first.wait_for(lambda err, moments: "fault: pause" in moments and "saving: prune" in moments)
        time.sleep(0.5)  # the save ends
        before = snapshot(place.run)
        second = place.train(events=tmp_path / "second")
        who = rf"process {first.pid} on {re.escape(socket.gethostname())} since 20\d\d-[\dT:+-]+"
        assert second.code == 5 and re.search(rf"error: {place.run} is in use by {who}: wait", second.err), second.err
        assert snapshot(place.run) == before
        assert not first.is_over(0)
        first.kill()
        assert first.is_over(10)
    third = place.train()
    assert third.code == 0 and re.search(rf"took over the lock of {who}, which has ended", third.err)
    assert differences(place.run, unbroken(FEW)) == []


@pytest.mark.slow
def test_twenty_simultaneous_starts_get_twenty_folders(programs, tmp_path):
    with contextlib.ExitStack() as stack:
        starts = []
        for number in range(20):
            start = Start(
                [*EIGHT, "--epochs", FEW],
                cache=tmp_path / "cache",
                programs=programs,
                events=tmp_path / f"log-{number}",
                at=["compiling: step=pause"],
                cwd=tmp_path,
            )
            starts.append(stack.enter_context(start))
        for start in starts:
            start.wait_for(lambda err, moments: "fault: pause" in moments)
        named = {re.search(r"run      (runs/synthetic-\d+)", start.err)[1] for start in starts}
        assert len(named) == 20
        assert named == {str(path.relative_to(tmp_path)) for path in (tmp_path / "runs").iterdir()}


# --- a wrong clock ---


@pytest.mark.slow
def test_a_wall_clock_that_jumps_by_days_changes_nothing(place, unbroken):
    place = place(FEW)
    moments = [
        f"{moment}=clock" for moment in ("starting: data", "training: step:2", "saving: arrays:2", "drawing: half:5")
    ]
    assert place.train(*moments, "training: step:8=term").code == 143
    ended = place.train("training: step:2=clock", "evaluating: batch:2=clock")
    assert ended.code == 0, ended.err
    assert differences(place.run, unbroken(FEW)) == []
    rows = [json.loads(line) for line in (place.run / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows]
    assert all(before <= after for before, after in itertools.pairwise(seconds)) and 0 < seconds[0]
    assert seconds[-1] < 60 and all((row.get("images_per_second") or 1) > 0 for row in rows)
    result = json.loads((place.run / "result.json").read_text())
    assert 0 < result["seconds"] < 60
    assert not re.search(r"(left|elapsed) -\d", ended.err)
