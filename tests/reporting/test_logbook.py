"""What a training's logbook draws, and when."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.reporting import evaluations, run_logger
from segnet_jax.reporting.run_logger import RunLogger
from segnet_jax.system.errors import DiskFull

DRAWING, EPOCH = 0.5, 2.0  # seconds
RUN = {"total_steps": 12, "steps_per_epoch": 1, "images_per_step": 1, "first_step": 0, "seconds_before": 0.0}
TOLD = {"resumed": False, "title": "", "device": "", "about": {}, "classes": ClassTable(("a",), ((0, 0, 0),))}
PICTURE = ("a", *(np.zeros(shape, np.uint8) for shape in ((4, 5, 3), (4, 5), (4, 5))))


@pytest.fixture
def clock(monkeypatch):
    """A clock of the logbook's own, which only drawing and the test put forward."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(run_logger, "time", clock)
    return clock


def test_a_new_runs_first_step_is_counted_where_it_is_skipped(tmp_path, capsys):
    run = {"total_steps": 2, "steps_per_epoch": 1, "images_per_step": 1, "first_step": 0, "seconds_before": 0.0}
    told = {"resumed": False, "title": "", "device": "", "about": {}, "classes": ClassTable(("a",), ((0, 0, 0),))}
    with RunLogger(tmp_path, **run, **told) as book:
        for step in (0, 1):
            measures = {"loss": [np.nan], "learning_rate": [0.1], "accuracy": [0.5], "skipped": [step + 1.0]}
            book.steps(range(step, step + 1), measures)
    assert "skipped 2" in capsys.readouterr().err


def test_drawing_takes_a_tenth_of_the_time_at_most_and_the_last_evaluation_is_drawn(tmp_path, monkeypatch, clock):
    plots, reports = [], []

    def plot(rows, *_, **__):
        plots.append(rows[-1]["step"])
        clock.now += DRAWING

    monkeypatch.setattr(run_logger, "training_plot", plot)
    monkeypatch.setattr(run_logger, "write_report", lambda _: reports.append(plots[-1]))
    with RunLogger(tmp_path, **RUN, **TOLD) as book:
        for step in range(1, 13):
            clock.now += EPOCH
            book.evaluated(step, np.ones((1, 1), int), 0.5, [PICTURE], [PICTURE], {"a": step / 12})
            assert read(tmp_path, "worst.json")["step"] == plots[-1]
    assert plots == reports == [1, 4, 7, 10, 12]  # each 5 s after the one before began, by the next evaluation
    drawn = {path.name for path in (tmp_path / "samples").iterdir()}
    assert drawn == {"latest.png", *(f"step_{step:07}.png" for step in plots)}
    assert len(list((tmp_path / "evaluations").glob("step_*.json"))) == 12  # what they are drawn from is kept each time


def read(folder, name):
    return json.loads((folder / "evaluations" / name).read_text())


@pytest.mark.parametrize("error", [None, DiskFull("no room"), KeyboardInterrupt()])
def test_what_does_not_change_is_kept_once_and_what_was_worst_at_the_last_evaluation_however_it_ends(
    tmp_path, monkeypatch, clock, error
):
    photos, photo = [], evaluations._photo
    monkeypatch.setattr(run_logger, "training_plot", lambda *_, **__: setattr(clock, "now", clock.now + DRAWING))
    monkeypatch.setattr(evaluations, "_photo", lambda image: photos.append(1) or photo(image))
    with contextlib.suppress(DiskFull, KeyboardInterrupt), RunLogger(tmp_path, **RUN, **TOLD) as book:
        for step in range(1, 4):
            book.evaluated(step, np.ones((1, 1), int), 0.5, [PICTURE], [PICTURE, PICTURE], {"a": step / 12})
        assert len(photos) == 3  # of the fixed record, and of the two worst when the first is drawn
        if error:
            raise error
    assert len(photos) == 5
    worst = read(tmp_path, "worst.json")
    assert (worst["step"], worst["lowest"]) == (3, [{"name": "a", "accuracy": 0.25}])
    assert read(tmp_path, "records.json")["records"][0]["name"] == "a"
