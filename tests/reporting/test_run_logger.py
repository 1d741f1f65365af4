"""Test which figures the run logger draws, and when."""

import contextlib
import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.reporting import evaluations, run_logger
from segnet_jax.reporting.background import Background
from segnet_jax.reporting.run_logger import RunLogger
from segnet_jax.system.errors import DiskFull

DRAWING, EPOCH = 0.5, 2.0  # seconds
RUN = {"total_steps": 12, "steps_per_epoch": 1, "images_per_step": 1, "first_step": 0, "seconds_before": 0.0}
ABOUT = {"resumed": False, "title": "", "device": "", "about": {}, "classes": ClassTable(("a",), ((0, 0, 0),))}
PICTURE = ("a", *(np.zeros(shape, np.uint8) for shape in ((4, 5, 3), (4, 5), (4, 5))))


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock with one that only drawing and the test advance; drawing ends before the training continues."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(run_logger, "time", clock)
    start = Background.start
    monkeypatch.setattr(Background, "start", lambda self, action: (start(self, action), self.wait()))
    return clock


def test_the_first_step_of_a_new_run_is_counted_if_it_is_skipped(tmp_path, capsys):
    with RunLogger(tmp_path, **RUN | {"total_steps": 2}, **ABOUT) as logger:
        for step in (0, 1):
            metrics = {"loss": [np.nan], "learning_rate": [0.1], "accuracy": [0.5], "skipped": [step + 1.0]}
            logger.log_steps(range(step, step + 1), metrics)
    assert "skipped 2" in capsys.readouterr().err


def test_drawing_takes_at_most_a_tenth_of_the_time_and_the_last_evaluation_is_drawn(tmp_path, monkeypatch, clock):
    plots, reports = [], []

    def plot(rows, *_, **__):
        plots.append(rows[-1]["step"])
        clock.now += DRAWING

    monkeypatch.setattr(run_logger, "training_plot", plot)
    monkeypatch.setattr("segnet_jax.reporting.page.render.write_report", lambda _: reports.append(plots[-1]))
    with RunLogger(tmp_path, **RUN, **ABOUT) as logger:
        for step in range(1, 13):
            clock.now += EPOCH
            logger.log_evaluation(step, np.ones((1, 1), int), 0.5, [PICTURE], [PICTURE], {"a": step / 12})
            assert read(tmp_path, "worst.json")["step"] == plots[-1]
    assert plots == reports == [1, 4, 7, 10, 12]  # at the first evaluation 5 s after the previous drawing began
    drawn = {path.name for path in (tmp_path / "samples").iterdir()}
    assert drawn == {"latest.png", *(f"step_{step:07}.png" for step in plots)}
    assert len(list((tmp_path / "evaluations").glob("step_*.json"))) == 12  # stored each time


def test_the_plot_is_redrawn_every_half_minute_between_evaluations(tmp_path, monkeypatch, clock):
    plots = []
    monkeypatch.setattr(run_logger, "training_plot", lambda rows, *_, **__: plots.append((rows[-1]["step"], clock.now)))
    metrics = {"loss": [1.0], "learning_rate": [0.1], "accuracy": [0.5], "skipped": [0.0]}
    with RunLogger(tmp_path, **RUN | {"total_steps": 100}, **ABOUT) as logger:
        begin = clock.now
        for step in range(20):
            clock.now += 7
            logger.log_steps(range(step, step + 1), metrics)
    assert [(step, now - begin) for step, now in plots] == [(5, 35), (10, 70), (15, 105), (20, 140)]


def test_a_slow_plot_is_redrawn_less_often(tmp_path, monkeypatch, clock):
    plots = []

    def plot(rows, *_, **__):
        plots.append(rows[-1]["step"])
        clock.now += 10

    monkeypatch.setattr(run_logger, "training_plot", plot)
    metrics = {"loss": [1.0], "learning_rate": [0.1], "accuracy": [0.5], "skipped": [0.0]}
    with RunLogger(tmp_path, **RUN | {"total_steps": 100}, **ABOUT) as logger:
        for step in range(20):
            clock.now += 20
            logger.log_steps(range(step, step + 1), metrics)
    assert plots == [2, 7, 12, 17]  # at most a tenth of the time


def read(folder, name):
    return json.loads((folder / "evaluations" / name).read_text())


@pytest.mark.parametrize("error", [None, DiskFull("no room"), KeyboardInterrupt()])
def test_the_dataset_is_stored_once_and_the_worst_images_of_the_last_evaluation_however_training_ends(
    tmp_path, monkeypatch, clock, error
):
    images, encode = [], evaluations._jpeg
    monkeypatch.setattr(run_logger, "training_plot", lambda *_, **__: setattr(clock, "now", clock.now + DRAWING))
    monkeypatch.setattr(evaluations, "_jpeg", lambda image: images.append(1) or encode(image))
    with contextlib.suppress(DiskFull, KeyboardInterrupt), RunLogger(tmp_path, **RUN, **ABOUT) as logger:
        for step in range(1, 4):
            logger.log_evaluation(step, np.ones((1, 1), int), 0.5, [PICTURE], [PICTURE, PICTURE], {"a": step / 12})
        assert len(images) == 3  # of the preview sample, and of the two worst images when the first evaluation is drawn
        if error:
            raise error
    assert len(images) == 5
    worst = read(tmp_path, "worst.json")
    assert (worst["step"], worst["lowest"]) == (3, [{"name": "a", "accuracy": 0.25}])
    assert read(tmp_path, "dataset.json")["samples"][0]["name"] == "a"


# --- during training ---


@pytest.fixture
def gate(monkeypatch):
    """Make the plot wait for an event, and return the event; the report and the pictures are not drawn."""
    gate = threading.Event()
    gate.plots = []

    def plot(rows, *_, **__):
        assert gate.wait(60)
        gate.plots.append((rows[-1]["step"], threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr(run_logger, "training_plot", plot)
    monkeypatch.setattr("segnet_jax.reporting.page.render.write_report", lambda _: None)
    return gate


def log(logger, step):
    logger.log_evaluation(step, np.ones((1, 1), int), 0.5, [], [PICTURE], {"a": 0.5})


def test_the_training_continues_while_an_evaluation_is_drawn(tmp_path, gate):
    with RunLogger(tmp_path, **RUN, **ABOUT) as logger:
        for step in range(1, 4):
            log(logger, step)  # would never return if it waited for the plot
        metrics = {"loss": [0.5], "learning_rate": [0.1], "accuracy": [0.5], "skipped": [0.0]}
        logger.log_steps(range(3, 4), metrics)
        assert gate.plots == []
        gate.set()
        log(logger, 12)  # the last one is drawn before the training ends, after the first one
        assert [in_training for _, in_training in gate.plots] == [False, True] and gate.plots[1][0] == 12
    assert read(tmp_path, "worst.json")["step"] == 12


def test_a_drawing_that_fails_stops_the_training_at_its_next_step(tmp_path, gate, monkeypatch):
    def fail(*_, **__):
        raise DiskFull("no room")

    monkeypatch.setattr(run_logger, "training_plot", fail)
    metrics = {"loss": [0.5], "learning_rate": [0.1], "accuracy": [0.5], "skipped": [0.0]}
    with pytest.raises(DiskFull, match="no room"), RunLogger(tmp_path, **RUN, **ABOUT) as logger:
        log(logger, 1)
        for step in range(1, 1000):
            logger.log_steps(range(step, step + 1), metrics)
            time.sleep(0.01)


def test_leaving_waits_for_the_drawing_and_keeps_the_first_error(tmp_path, gate):
    threading.Timer(0.2, gate.set).start()
    with pytest.raises(KeyboardInterrupt), RunLogger(tmp_path, **RUN, **ABOUT) as logger:
        log(logger, 1)
        raise KeyboardInterrupt
    assert gate.plots[0] == (1, False)
    assert read(tmp_path, "worst.json")["step"] == 1
