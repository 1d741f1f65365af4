"""Test logging of the commands: the console's lines, verbosity, and `train.log`."""

import io
import logging
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.system import logs, untrusted_files
from segnet_jax.system.errors import UserError

LOGGER = logging.getLogger("segnet_jax.test")


@pytest.fixture(autouse=True)
def configured():
    yield
    logs.configure()


def log_each_level():
    LOGGER.debug("a detail")
    LOGGER.info("[bold]a step")  # not markup
    LOGGER.warning("a doubt")
    LOGGER.error("an end")


def test_the_console_shows_messages_and_marks_warnings(capsys):
    log_each_level()
    out, err = capsys.readouterr()
    assert out == "" and err == "[bold]a step\nwarning: a doubt\nerror: an end\n"


def test_a_handler_of_the_root_logger_does_not_repeat_the_lines(capsys):
    root, handler = logging.getLogger(), logging.StreamHandler()
    root.addHandler(handler)
    LOGGER.info("a step")
    root.removeHandler(handler)
    assert capsys.readouterr().err == "a step\n"


def test_quiet_shows_warnings_and_errors_only(capsys):
    parse_config(["-q"], prog="p", description="d")
    log_each_level()
    assert logs.is_quiet() and capsys.readouterr().err == "warning: a doubt\nerror: an end\n"


def test_verbose_shows_details_with_time_and_module(capsys):
    config = parse_config(["--seed", "3", "--verbose"], prog="p", description="d")
    log_each_level()
    lines = capsys.readouterr().err.splitlines()
    assert config == Config(seed=3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d segnet_jax\.test  a detail", lines[0]) and len(lines) == 4


def test_quiet_and_verbose_exclude_each_other():
    with pytest.raises(UserError, match="not allowed with"):
        parse_config(["-q", "-v"], prog="p", description="d")


def test_help_names_both(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--help"], prog="p", description="d")
    assert "-q, --quiet" in capsys.readouterr().out


def test_a_line_longer_than_the_terminal_is_not_broken(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    LOGGER.info("word " * 40)
    assert capsys.readouterr().err == "word " * 40 + "\n"


def test_processes_that_do_not_write_log_errors_alone(capsys):
    with logs.errors_only():
        log_each_level()
    assert capsys.readouterr().err == "error: an end\n"
    LOGGER.info("again")
    assert capsys.readouterr().err == "again\n"


def test_messages_go_to_the_console_that_shows_a_live_line(capsys):
    file = io.StringIO()
    with logs.above(Console(file=file)):
        LOGGER.info("above")
    assert file.getvalue() == "above\n" and capsys.readouterr().err == ""


def test_a_run_log_has_what_was_logged_before_its_folder_was_known_and_the_error_that_ended_the_run(tmp_path):
    for attempt in ("first", "second"):
        with pytest.raises(UserError), logs.RunLog() as log:
            LOGGER.info(f"{attempt} start")
            log.open(tmp_path)
            LOGGER.warning("two\nlines\x1b[2J")
            raise UserError("no such data")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in lines] == [
        *("INFO    first start", "WARNING two", "lines\\x1b[2J", "ERROR   no such data"),
        *("INFO    second start", "WARNING two", "lines\\x1b[2J", "ERROR   no such data"),
    ]


def test_a_fault_of_the_program_leaves_its_traceback_in_the_run_log(tmp_path):
    with pytest.raises(ZeroDivisionError), logs.RunLog() as log:
        log.open(tmp_path)
        1 / 0  # noqa: B018
    assert "Traceback (most recent call last)" in (tmp_path / "train.log").read_text()


def test_the_run_log_is_whole_with_quiet(tmp_path, capsys):
    logs.configure(logging.WARNING)
    with logs.RunLog() as log:
        log.open(tmp_path)
        LOGGER.info("a step")
    assert "a step" in (tmp_path / "train.log").read_text() and capsys.readouterr().err == ""


def test_a_run_log_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run" / "train.log").symlink_to(tmp_path / "mine")
    with pytest.raises(untrusted_files.Refused), logs.RunLog() as log:
        log.open(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_loses_the_log_line_and_nothing_else(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(untrusted_files, "open_file", lambda *_: open("/dev/full", "wb"))
    with logs.RunLog() as log:
        log.open(tmp_path)
        LOGGER.info("a step")
    assert capsys.readouterr().err == "a step\n"


def test_importing_the_package_configures_nothing():
    code = "import logging, segnet_jax; print(logging.getLogger('segnet_jax').handlers, logging.getLogger().handlers)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[] []\n"
