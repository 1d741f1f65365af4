"""Test console output: progress and the table of scores."""

import io
import logging
import math
import os
import re

import numpy as np
import pytest

from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.progress import Progress
from segnet_jax.reporting.remaining_time import Pace, duration
from segnet_jax.reporting.tables import percent, print_table
from segnet_jax.system import logs
from segnet_jax.system.console import _logged

LOGGER = logging.getLogger("segnet_jax.test")
SCORES = scores(np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]]))  # IoU 8/11, 1/2, and an absent class
COLOR = re.compile(r"\x1b\[(?:[0-9;]*;)?[349][0-7]m")


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def test_a_log_has_one_line_per_epoch_with_scores_if_it_was_evaluated():
    file, clock = io.StringIO(), Clock()
    with Progress(7, 3, file=file, clock=clock) as progress:
        for step in range(1, 8):
            clock.now += 1
            progress.step(step, loss=step, learning_rate=1e-3, images_per_second=12.34)
            if step == 6:
                progress.evaluated(SCORES, loss=0.5)
    first, second, third = file.getvalue().splitlines()
    assert first.startswith("epoch 1/3  step 3/7  loss 2.000  12.3 images/s  left 0:0")  # the mean of 1, 2, 3
    assert "epoch 2/3  step 6/7  loss 5.000  val loss 0.5000  mIoU 61.4 %  accuracy 78.6 %" in second
    assert third == "epoch 3/3  step 7/7  loss 7.000  12.3 images/s  left 0:00  elapsed 0:07"


def test_remaining_time_excludes_compilation_and_includes_evaluation():
    file, clock = io.StringIO(), Clock()
    with Progress(20, 5, file=file, clock=clock) as progress:
        clock.now += 100  # compiles
        for step in range(1, 11):
            clock.now += 1
            progress.step(step, 1.0, 1e-3, 1.0)
            if step % 5 == 0:
                with progress.phase("evaluating"):
                    clock.now += 6
                with progress.phase("drawing"):
                    clock.now += 4
                progress.evaluated(SCORES, 1.0)
    lines = [line for line in file.getvalue().splitlines() if "mIoU" in line]
    # Remaining: ten steps of 1 s, and 10 s of evaluation after every five steps.
    assert "left 0:30  elapsed 2:10" in lines[1]


def test_remaining_time_follows_a_run_that_gets_slower():
    pace, now = Pace(0, 0.0), 0.0
    for step in range(1, 201):
        now += 1 if step <= 100 else 3
        pace.step(step, now)
    assert pace.seconds_left(10) == pytest.approx(30)


def test_remaining_time_is_unknown_before_the_second_step():
    pace = Pace(40, 0.0)
    assert pace.seconds_left(5) is None
    pace.step(41, 9.0)
    assert pace.seconds_left(4) is None
    pace.step(42, 9.5)
    assert pace.seconds_left(3) == 1.5


def test_skipped_steps_are_counted_and_left_out_of_the_mean_loss():
    file = io.StringIO()
    with Progress(3, 3, file=file) as progress:
        progress.step(1, 2.0, 1e-3, 1.0)
        progress.step(2, math.nan, 1e-3, 1.0, num_skipped=1)
        progress.step(3, 4.0, 1e-3, 1.0, num_skipped=2)
    assert "loss 3.000" in file.getvalue() and "skipped 3" in file.getvalue()


def test_unknown_throughput_keeps_the_previous_value():
    file = io.StringIO()
    with Progress(2, 2, file=file) as progress:
        progress.step(1, 1.0, 1e-3, 12.3)
        progress.step(2, 1.0, 1e-3, math.nan)
    assert "12.3 images/s" in file.getvalue()


def test_a_resumed_run_continues_its_step_and_elapsed_time():
    file, clock = io.StringIO(), Clock()
    with Progress(8, 4, 5, file=file, elapsed=3600, clock=clock) as progress:
        for step in (6, 7, 8):
            clock.now += 2
            progress.step(step, 1.0, 1e-3, 1.0)
    assert file.getvalue().startswith("epoch 2/2  step 8/8") and "elapsed 1:00:06" in file.getvalue()


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (60, "epoch 1/1  loss 1.000  mIoU 61.4 %  left 0:00"),
        (80, "epoch 1/1  loss 1.000  val loss 0.5000  mIoU 61.4 %  accuracy 78.6 %  left 0:00"),
        (
            120,
            "epoch 1/1  step 2/2  loss 1.000  val loss 0.5000  mIoU 61.4 %  accuracy 78.6 %  12.3 images/s",
        ),
    ],
)
def test_an_epochs_line_fits_the_terminal(terminal, monkeypatch, columns, line):
    monkeypatch.setenv("COLUMNS", str(columns))
    with Progress(2, 2, file=terminal, clock=Clock()) as progress:
        progress.step(1, 1.0, 1e-3, 12.3)
        progress.step(2, 1.0, 1e-3, 12.3)
        progress.evaluated(SCORES, 0.5)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    (printed,) = [each.strip("\r") for each in plain.splitlines() if "mIoU" in each]
    assert len(printed) <= columns and printed.startswith(line)


def test_without_a_terminal_a_long_epoch_logs_its_progress_twice_a_minute(tmp_path):
    file, clock = io.StringIO(), Clock()
    with logs.RunLog() as log:
        log.open(tmp_path)
        with Progress(100, 100, file=file, clock=clock) as progress:
            for step in range(1, 101):
                clock.now += 1
                progress.step(step, 1.0, 1e-3, 5.0)
    lines = file.getvalue().splitlines()
    assert [line[11:23] for line in lines] == ["step  30/100", "step  60/100", "step  90/100", "step 100/100"]
    assert "loss 1.000  5.0 images/s  left" in lines[0]
    assert (tmp_path / logs.LOG_FILE).read_text().count("\n") == 1  # the epoch's line only


def test_without_a_terminal_a_bar_logs_its_progress(capsys, monkeypatch):
    clock = Clock()
    advance = _logged("reading [train]", 100, clock)
    for _ in range(65):
        clock.now += 1
        advance()
    assert capsys.readouterr().err == "reading [train]: 30 of 100\nreading [train]: 60 of 100\n"


@pytest.mark.parametrize("is_pipe", [True, False])
def test_the_log_follows_a_pipe_of_standard_output(terminal, monkeypatch, is_pipe):
    read, write = os.pipe()
    with open(write, "w") as pipe, open(read) as reader, open(os.devnull, "w") as null:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setattr("sys.stdout", pipe if is_pipe else null)
        monkeypatch.setattr(logs, "_follows_pipe", False)
        logs.follow_pipe()
        with Progress(1, 1) as progress:
            LOGGER.info("before")
            progress.step(1, 1.0, 1e-3, 5.0)
        pipe.close()
        piped = reader.read()
    assert ("before" in piped, "epoch 1/1" in piped) == (is_pipe, is_pipe)
    assert ("before" in terminal.getvalue()) != is_pipe


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_line_with_a_key_is_continued_below_its_value(terminal, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stderr", terminal)
    LOGGER.info("data     " + "word " * 30 + "end")
    LOGGER.info("resume with: python -m segnet_jax.train --run " + "x" * 100)
    *lines, last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).splitlines()
    assert max(map(len, lines)) <= columns and lines[0].startswith("data     word")
    assert all(line.startswith("         word") or line.strip() == "end" for line in lines[1:])
    assert last.endswith("--run " + "x" * 100)  # a command can be copied


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_lines_below_the_table_fit(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    file = io.StringIO()
    interval = {"miou": (0.0349, 0.0444)}
    print_table(SCORES, ClassTable(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2))), file, interval)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert max(map(len, lines)) <= columns
    assert "mIoU, 95 % interval over images: 3.5 % to 4.4 %" in lines


def test_messages_during_the_live_line_get_their_own_line(terminal, monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(20, 5) as progress:
        progress.step(1, loss=1.0, learning_rate=1e-3, images_per_second=1.0)
        progress._live.refresh()
        LOGGER.info("compiled the training step in 0.6 s")
        progress._live.refresh()
    before, after = terminal.getvalue().split("compiled the training step in 0.6 s")
    assert "step  1/20" in before and before.endswith("\r\x1b[2K")  # the live line is cleared first
    assert after.startswith("\n")


def test_messages_are_printed_literally():
    file = io.StringIO()
    with Progress(8, 4, file=file):
        LOGGER.info("[red]data[/red] " + "x" * 200)
    assert file.getvalue() == "[red]data[/red] " + "x" * 200 + "\n"


@pytest.mark.parametrize("columns", [30, 60, 120, 200])
def test_the_live_line_fits_the_terminal(terminal, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with Progress(4000, 40, file=terminal) as progress:
        LOGGER.info("hello")
        progress.step(1234, 0.1234, 1e-3, 123.4, num_skipped=3)
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()))
    assert "hello" in lines
    shown = [line for line in lines if "31/100" in line]
    assert shown and all(len(line) < columns and "left -:--" in line for line in shown)
    assert ("loss 0.1234" in shown[0]) == (columns >= 60)
    assert ("elapsed" in shown[0]) == (columns >= 120)


def test_no_color_is_respected(terminal, monkeypatch):
    def drawn():
        with Progress(8, 4, file=terminal) as progress:
            progress.step(2, 1.0, 1e-3, 1.0)
        print_table(SCORES, table_of("A", "B", "C"), file=terminal)
        return terminal.getvalue()

    assert COLOR.search(drawn())
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOR.search(drawn())


def table_of(*names):
    return ClassTable(names=names, colors=((0, 0, 0),) * len(names))


def test_the_table_has_the_hand_worked_numbers_and_marks_absent_and_lowest_classes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    file = io.StringIO()
    print_table(SCORES, table_of("[red]", "B", "C"), file=file)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    rows = [line.split() for line in lines]
    assert " ".join(rows[0]) == "class IoU % Dice prec. recall pixels"
    assert ["[red]", "72.73", "84.21", "88.89", "80.00", "10"] in rows  # 8 of 10 right, 9 predicted
    assert ["B", "50.00", "66.67", "60.00", "75.00", "4", "lowest"] in rows  # 3 of 4 right, 5 predicted
    assert ["C", "-", "-", "-", "-", "0", "absent"] in rows
    assert ["mean", "of", "2", "61.36", "75.44", "74.44", "77.50", "14"] in rows
    assert "global accuracy 78.6 %, weighted IoU 66.2 %" in file.getvalue()
    assert "absent: no labeled pixels" in file.getvalue()


def test_a_table_without_absent_classes_does_not_mention_them():
    file = io.StringIO()
    print_table(scores(np.eye(2, dtype=np.int64)), table_of("A", "B"), file=file)
    assert "absent" not in file.getvalue() and "mean  " in file.getvalue()


def test_durations_and_fractions_read_well():
    assert [duration(s) for s in (0, 65.4, 3725, None, math.inf, -1)] == [
        "0:00",
        "1:05",
        "1:02:05",
        "-:--",
        "-:--",
        "0:00",
    ]
    assert [percent(f) for f in (0.4125, 1.0, None, math.nan)] == ["41.2 %", "100.0 %", "-", "-"]
