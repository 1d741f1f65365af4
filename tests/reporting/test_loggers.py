"""Test TensorBoard's pictures and tables, and wandb and mlflow, by stand-ins and in their offline modes."""

import datetime
import json
import pathlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_logs import events
from test_run_logger import ABOUT, PICTURE, RUN

from segnet_jax.reporting import loggers
from segnet_jax.reporting.loggers import LOGGERS, check_installed, open_loggers
from segnet_jax.reporting.metrics_log import MetricsLog, read_metrics
from segnet_jax.reporting.run_logger import RunLogger
from segnet_jax.system.errors import UserError

HYPERPARAMETERS = {"learning_rate": 0.1, "loss": "dice", "flip": False}


class Recorder:
    """A logger that records its calls, and fails from a given call on."""

    def __init__(self, most=100):
        self.calls, self.most = [], most

    def __getattr__(self, name):
        def call(*args, **_):
            if len(self.calls) >= self.most:
                raise ConnectionError("no\nnetwork")
            self.calls.append((name, *args))

        return call


def write_some(folder, *more):
    with MetricsLog(folder, loggers=more) as log:
        log.describe(HYPERPARAMETERS, ["Sky", "Straße"])
        log.write("train", 1, loss=np.float32(0.5), rate=float("nan"), time="2026-11-30T21:00:00+00:00")
        log.write("val", 1, miou=0.25, iou={"Sky": 0.75, "Straße": None})


def test_a_logger_gets_the_finite_numbers_and_is_closed(tmp_path):
    recorder = Recorder()
    write_some(tmp_path, recorder)
    assert recorder.calls == [
        ("describe", HYPERPARAMETERS, ["Sky", "Straße"]),
        ("numbers", "train", 1, {"loss": 0.5}),
        ("numbers", "val", 1, {"miou": 0.25, "iou/Sky": 0.75}),
        ("close",),
    ]


def test_a_logger_that_fails_is_left_out_and_the_others_go_on(tmp_path, logged):
    failing, other = Recorder(most=1), Recorder()
    write_some(tmp_path, failing, other)
    assert len(failing.calls) == 1 and len(other.calls) == 4 and len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert logged == ["warning: Recorder failed and is no longer used: no network"]


def test_tensorboard_gets_hyperparameters_and_a_chart_of_all_classes(tmp_path):
    from tensorboardX.proto.layout_pb2 import Layout
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    write_some(tmp_path)
    found = {value.tag: value for event in events(tmp_path) for value in event.summary.value}
    start = HParamsPluginData.FromString(found["_hparams_/session_start_info"].metadata.plugin_data.content)
    values = start.session_start_info.hparams
    assert values["learning_rate"].number_value == 0.1 and values["loss"].string_value == "dice"
    assert values["flip"].bool_value is False and "_hparams_/session_end_info" in found
    layout = Layout.FromString(found["custom_scalars__config__"].tensor.string_val[0])
    assert list(layout.category[0].chart[0].multiline.tag) == ["^val/iou/Sky$", "^val/iou/Straße$"]


def test_the_samples_of_an_evaluation_are_pictures_in_tensorboard_and_rows_have_the_time(tmp_path):
    before = datetime.datetime.now(datetime.UTC)
    with RunLogger(tmp_path, **RUN | {"total_steps": 1}, **ABOUT) as logger:
        metrics = {"loss": [1.0], "learning_rate": [0.1], "accuracy": [0.5], "skipped": [0.0]}
        logger.log_steps(range(1), metrics)
        logger.log_evaluation(1, np.ones((1, 1), int), 0.5, [PICTURE], [PICTURE], {"a": 1.0})
    (image,) = (value.image for event in events(tmp_path) for value in event.summary.value if value.HasField("image"))
    drawn = tmp_path / "samples" / "step_0000001.png"
    assert image.encoded_image_string == drawn.read_bytes()
    assert (image.width, image.height) == Image.open(drawn).size
    for row in read_metrics(tmp_path / "metrics.jsonl"):
        written = datetime.datetime.fromisoformat(row["time"])
        assert -1 < (written - before).total_seconds() < 60


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(name, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"--logger {name} needs the package {name}, .*: pip install {name}"):
        check_installed([name])


def stand_in(tmp_path):
    """Open a logger that only has an id."""
    return open_loggers(["wandb"], tmp_path)[0].run_id


def test_a_resumed_run_keeps_its_id_and_a_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGERS, "wandb", lambda folder, run_id: SimpleNamespace(run_id=run_id))
    first = stand_in(tmp_path)
    assert stand_in(tmp_path) == first and len(first) == 32
    for content in ('{"wandb": "../other"}', '{"wandb": 3}', "[", "[]x"):
        (tmp_path / "loggers.json").write_text(content)
        with pytest.raises(UserError, match="loggers.json is damaged: delete it"):
            stand_in(tmp_path)


def test_a_logger_that_cannot_start_ends_the_start_in_one_line(tmp_path, monkeypatch):
    def fail(folder, run_id):
        raise ConnectionError("no\naccount")

    monkeypatch.setitem(LOGGERS, "mlflow", fail)
    with pytest.raises(UserError, match="--logger mlflow cannot start: no account"):
        open_loggers(["mlflow"], tmp_path)


def test_wandb_gets_steps_as_values_since_evaluations_come_later(tmp_path, monkeypatch):
    run, settings = Recorder(), {}
    run.config = SimpleNamespace(update=lambda values, **_: settings.update(values))
    module = ModuleType("wandb")
    module.init = lambda **given: settings.update(given) or run
    module.Settings, module.Image = dict, pathlib.Path
    monkeypatch.setitem(sys.modules, "wandb", module)
    write_some(tmp_path, *open_loggers(["wandb"], tmp_path))
    assert settings["resume"] == "allow" and settings["name"] == tmp_path.name and settings["loss"] == "dice"
    assert run.calls == [
        ("define_metric", "*"),
        ("log", {"step": 1, "train/loss": 0.5}),
        ("log", {"step": 1, "val/miou": 0.25, "val/iou/Sky": 0.75}),
        ("finish",),
    ]


@pytest.mark.slow  # the stand-ins above; importing wandb and mlflow takes seconds
@pytest.mark.parametrize("name", LOGGERS)
def test_in_its_offline_mode_the_library_stores_numbers_settings_and_pictures(name, tmp_path, monkeypatch):
    library = pytest.importorskip(name, reason=f"pip install {name}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no database
    run = tmp_path / "run"
    run.mkdir()
    Image.new("RGB", (4, 3)).save(run / "step_0000001.png")
    for step in (1, 2):  # as a run that is resumed
        (logger,) = open_loggers([name], run)
        logger.describe(HYPERPARAMETERS, ["Sky", "Straße <b>"])
        logger.numbers("val", step, {"miou": 0.25 * step, "iou/Straße <b>": 0.5})
        logger.picture("samples", step, run / "step_0000001.png")
        logger.close()
    assert not any(path.is_symlink() for path in run.rglob("*"))  # which would make the run unreadable
    run_id = json.loads((run / "loggers.json").read_text())[name]
    if name == "wandb":
        stored = list(tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
        assert stored and b"learning_rate" in stored[0].read_bytes() and b"val/miou" in stored[0].read_bytes()
        return
    client = library.tracking.MlflowClient()
    assert [(each.step, each.value) for each in client.get_metric_history(run_id, "val/miou")] == [(1, 0.25), (2, 0.5)]
    assert client.get_run(run_id).data.params["loss"] == "dice"
    assert client.get_run(run_id).data.metrics["val/iou/Stra_e _b_"] == 0.5
    assert [each.path for each in client.list_artifacts(run_id, "samples")] == ["samples/step_0000001.png"]
