"""Test the small files of a run folder: metrics.jsonl, TensorBoard events, environment.json, result.json."""

import importlib.metadata
import json
import os
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import segnet_jax
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.metrics.boundary import BoundaryF1
from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting import environment
from segnet_jax.reporting.metrics_log import MetricsLog, read_metrics
from segnet_jax.system import files
from segnet_jax.system.errors import UserError


def strict_json(text):
    """Parse strict JSON, rejecting NaN and Infinity, which Python's parser accepts."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def events(folder):
    """Read all events of a folder's TFRecord files, without TensorBoard."""
    from tensorboardX.proto.event_pb2 import Event

    result = []
    for path in sorted(folder.glob("events.*"), key=os.path.getctime):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            result.append(Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
    return result


def train_lines(folder, steps, **more):
    with MetricsLog(folder, **more) as log:
        for step in steps:
            log.write("train", step, loss=1 / step)


def test_a_measurement_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("train", 1, loss=np.float32(0.5), accuracy=jnp.float32(0.25), epoch=0.1)
        assert read_metrics(tmp_path / "metrics.jsonl") == [
            {"kind": "train", "step": 1, "loss": 0.5, "accuracy": 0.25, "epoch": 0.1}
        ]


def test_nan_and_infinity_become_null_and_every_line_is_valid_json(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("train", 1, loss=float("nan"), learning_rate=np.float32("inf"))
        log.write("val", 1, miou=0.5, iou={"Sky": np.nan, "Straße <script>": 0.25})
    train, val = (strict_json(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines())
    assert train == {"kind": "train", "step": 1, "loss": None, "learning_rate": None}
    assert val == {"kind": "val", "step": 1, "miou": 0.5, "iou": {"Sky": None, "Straße <script>": 0.25}}


@pytest.mark.parametrize("torn", [b'{"kind": "train", "st', b"\0\0\0", b'{"kind": "train"}', b"\xff", b"7"])
def test_an_incomplete_last_line_is_ignored(tmp_path, torn):
    train_lines(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tr\n{"kind": "train", "step": 3}\n')
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_metrics(path)


def test_resuming_drops_the_steps_after_the_checkpoint_so_that_each_is_logged_once(tmp_path):
    train_lines(tmp_path, range(1, 8))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "tra')
    with MetricsLog(tmp_path, resume_step=5) as log:
        assert (log.last_step("train"), log.last_step("val")) == (5, 0)
        for step in range(6, 9):
            log.write("train", step, loss=1 / step)
    assert [strict_json(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 9))
    assert not list(tmp_path.glob(".*tmp"))


def test_resuming_drops_an_evaluation_that_is_not_in_the_checkpoint_of_its_step(tmp_path):
    with MetricsLog(tmp_path) as log:
        for kind, step in (("train", 3), ("val", 3), ("train", 6), ("val", 6)):
            log.write(kind, step, loss=1.0)
    with MetricsLog(tmp_path, resume_step=6, scored_step=3) as log:  # killed after its line, before it was saved
        assert (log.last_step("train"), log.last_step("val")) == (6, 3)
        log.write("val", 6, loss=1.0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [("train", 3), ("val", 3), ("train", 6), ("val", 6)]


def test_a_step_cannot_be_written_twice(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("train", 4, loss=1.0)
        log.write("val", 4, loss=1.0)
        with pytest.raises(ValueError, match="train step 4"):
            log.write("train", 4, loss=1.0)


def test_a_new_run_does_not_append_to_the_metrics_of_another(tmp_path):
    train_lines(tmp_path, [1])
    with pytest.raises(FileExistsError):
        MetricsLog(tmp_path)


def test_a_run_resumed_before_its_first_line_creates_the_file(tmp_path):
    train_lines(tmp_path, [1], resume_step=0)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("train", 1, loss=0.5, learning_rate=float("nan"))
        log.write("val", 1, miou=0.25, iou={"Sky": 0.75, "Car": None})
    values = {
        (event.step, value.tag): value.simple_value for event in events(tmp_path) for value in event.summary.value
    }
    assert values == {(1, "train/loss"): 0.5, (1, "val/miou"): 0.25, (1, "val/iou/Sky"): 0.75}


def test_tensorboard_hides_the_steps_that_a_resumed_run_repeats(tmp_path):
    train_lines(tmp_path, [1, 2, 3])
    train_lines(tmp_path, [3], resume_step=2)
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [3]
    assert len(list(tmp_path.glob("events.*"))) == 2


def test_tensorboard_does_not_import_pytorch_which_can_be_imported_later(tmp_path):
    (tmp_path / "torch.py").write_text("print('imported')")
    code = "from segnet_jax.reporting.metrics_log import MetricsLog as Log; Log('.'); print('written'); import torch"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "written\nimported\n", done.stderr


def test_a_failed_write_leaves_only_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.atomic_write_json(path, {"miou": np.float64(0.5), "none": float("-inf")})
    assert strict_json(path.read_text()) == {"miou": 0.5, "none": None}
    assert os.listdir(tmp_path) == ["result.json"]

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.atomic_write_text(path, "new")
    assert strict_json(path.read_text())["miou"] == 0.5
    assert os.listdir(tmp_path) == ["result.json"]


def test_arrays_of_numpy_and_jax_become_plain_json():
    value = {"a": np.int64(3), "b": [np.bool_(True), jnp.bfloat16(0.5)], 7: np.array([[1.0, np.nan]]), "c": ("x", None)}
    assert files.plain(value) == {"a": 3, "b": [True, 0.5], "7": [[1.0, None]], "c": ["x", None]}
    with pytest.raises(TypeError, match="object"):
        files.plain(object())


def test_the_version_is_that_of_the_code_even_if_it_is_not_installed(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert environment.versions() == {"segnet_jax": segnet_jax.__version__}


def test_the_environment_has_versions_and_devices_but_no_paths(tmp_path):
    found = environment.environment(["Tesla V100"] * 8 + ["cpu"])
    assert found.keys() == {"python", "platform", "num_cpus", "devices", "versions", "commit"}
    assert found["devices"] == {"Tesla V100": 8, "cpu": 1}
    assert found["versions"]["numpy"] == np.__version__
    text = json.dumps(found)
    assert str(tmp_path.home()) + "/" not in text and os.getcwd() not in text


def test_the_commit_is_that_of_the_packages_checkout_or_none(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    room = tmp_path / "segnet_jax" / "reporting"
    room.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(room / "run_folder.py"))
    assert environment.commit() is None
    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    assert environment.commit() == git("rev-parse", "HEAD")
    (tmp_path / "a").write_text("2")
    assert environment.commit() == git("rev-parse", "HEAD") + "-dirty"


def test_a_result_has_scores_data_and_hardware():
    classes = ClassTable(names=("Sky", "Car", "Pole"), colors=((0, 0, 0),) * 3)
    found = environment.result(
        scores(np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])),
        classes,
        protocol="demo",
        split="val",
        num_images=10,
        seconds=4.0,
        images_per_second=25.25,
        device="1 x cpu",
        seed=3,
    )
    strict_json(json.dumps(found))
    assert found["per_class"] == {
        "Sky": {"iou": 8 / 11, "accuracy": 0.8, "precision": 8 / 9, "recall": 0.8, "dice": 16 / 19, "pixels": 10},
        "Car": {"iou": 0.5, "accuracy": 0.75, "precision": 0.6, "recall": 0.75, "dice": 2 / 3, "pixels": 4},
        "Pole": {"iou": None, "accuracy": None, "precision": None, "recall": None, "dice": None, "pixels": 0},
    }
    assert found["global_accuracy"] == 11 / 14
    assert found["images_per_second"] == 25.25
    assert (found["protocol"], found["split"], found["num_images"]) == ("demo", "val", 10)
    assert (found["device"], found["seed"], found["seconds"]) == ("1 x cpu", 3, 4.0)
    assert {"miou", "mean_accuracy", "weighted_iou", "mean_dice", "mean_precision", "versions", "commit"} < found.keys()
    assert "boundary_f1" not in found


def test_a_result_has_boundary_f1_by_both_definitions_and_for_each_class():
    boundary = BoundaryF1(0.5, 0.25, np.array([0.75, 0.25]), np.array([0.5, np.nan]))
    about = {"protocol": "demo", "split": "val", "num_images": 1, "seconds": 1.0, "images_per_second": 1.0, "seed": 0}
    classes = ClassTable(names=("Sky", "Car"), colors=((0, 0, 0),) * 2)
    found = environment.result(scores(np.eye(2, dtype=int)), classes, device="1 x cpu", boundary_f1=boundary, **about)
    assert found["boundary_f1"] == {"paper": 0.5, "script": 0.25}
    per_class = [each["boundary_f1"] for each in found["per_class"].values()]
    assert per_class == [{"paper": 0.75, "script": 0.5}, {"paper": 0.25, "script": None}]
