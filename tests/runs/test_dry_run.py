"""Test dry runs: faults are found before compilation, no files remain, and the estimates are right."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from segnet_jax import check as command
from segnet_jax.system.command import run_command

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    "--data synthetic --scenes 8 9 --image-size 24 32 --init none --depth 1 --width 0.0625 --epochs 2 --devices 2 "
    "--batch-size-per-device 2 --class-weights none"
).split()


def check(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["check", *map(str, flags)])
    with pytest.raises(SystemExit) as left:
        run_command(command.main)
    return left.value.code


def test_a_valid_dry_run_reports_its_cost_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert check(monkeypatch, *SMALL, "--json", "estimate.json") == 0
    assert os.listdir(tmp_path) == ["estimate.json"]
    estimate, out = json.loads((tmp_path / "estimate.json").read_text()), capsys.readouterr().out
    assert "restored bit-identically" in out and "no problems found" in out
    assert (estimate["steps_per_epoch"], estimate["epochs"], estimate["global_batch_size"]) == (2, 2, 4)
    # 9 images make three batches of four
    rest = 3 * estimate["scoring"]["seconds_a_batch"] + estimate["showing"]["keeping"] + estimate["saving"]["seconds"]
    assert estimate["scoring"]["batches"] == 3 and estimate["step"]["finite"]
    epoch = 2 * estimate["step"]["seconds_a_step"] + rest
    drawing = min(estimate["showing"]["drawing"], epoch / 9)  # a tenth of all at most
    assert estimate["seconds_an_epoch"] == pytest.approx(epoch + drawing)
    # parameters, momentum and statistics in float32, two devices: the state alone is more than this
    assert estimate["memory"]["step"] > estimate["saving"]["bytes"] > 0


def test_a_fault_of_the_data_is_found_by_file_before_anything_is_compiled(tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(ROOT / "data" / "sample", tmp_path / "data")
    label = folder / "valannot" / "val_00001.png"
    label.write_bytes(label.read_bytes()[:-40])
    start = time.monotonic()
    flags = [*SMALL[SMALL.index("--image-size") :], "--data", folder]
    assert check(monkeypatch, *flags) == 2
    printed = capsys.readouterr()
    assert "valannot/val_00001.png" in printed.err and "compiled" not in printed.err and not printed.out
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "--run", "RUN"], "remove --resume"),
        (["--run", "OTHER"], "is not an empty folder"),
        (["--json"], "--json needs a file to write to"),
        (["--json", "no/estimate.json"], "there is no folder"),
        (["--learning-rate", "0"], "--learning-rate must be between"),
    ],
)
def test_mistakes_are_reported_in_one_line(tmp_path, monkeypatch, capsys, flags, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    named = {"RUN": tmp_path / "run", "OTHER": tmp_path / "other"}
    assert check(monkeypatch, *SMALL, *(named.get(flag, flag) for flag in flags)) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("error:") == 1


@pytest.mark.slow
def test_on_camvid_memory_and_time_are_what_the_run_then_takes(camvid_folder, tmp_path):
    """Check time within 25 % and memory of the process within 15 %; the machine must be idle otherwise."""
    config = ROOT / "experiments" / "camvid_small" / "config.toml"
    flags = ["--config", config, "--data", camvid_folder, "--evaluate-every", "1", "--checkpoint-every", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as users have it
    for name, more in (("check", ["--json", "estimate.json"]), ("train", ["--run", "run", "--max-steps", "135"])):
        start = [sys.executable, "-m", f"segnet_jax.{name}", *map(str, flags), *more]
        subprocess.run(start, cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)}, check=True)
    estimate = json.loads((tmp_path / "estimate.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    times = [row["seconds"] for row in rows if row["kind"] == "val"]
    assert estimate["seconds_an_epoch"] == pytest.approx((times[2] - times[0]) / 2, rel=0.25)
    found = json.loads((tmp_path / "run" / "evaluations" / "step_0000135.json").read_text())
    assert estimate["memory"]["host"] == pytest.approx(found["peak_memory"]["host"], rel=0.15)
