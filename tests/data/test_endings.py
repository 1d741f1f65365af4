"""Test how commands exit: an exit code per kind of error and one line of text."""

import errno
import logging
import math
import os
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from broken_runs import HERE
from made_runs import make_run
from PIL import Image

from segnet_jax.benchmarks.portability.side_by_side import as_markdown, compare_machines, print_comparison
from segnet_jax.benchmarks.table import print_measurements
from segnet_jax.config.files import read_run
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.label_files.decode_labels import read_stored
from segnet_jax.data.layouts.names.match_labels import pictures_below
from segnet_jax.distributed.data_parallel import choose_devices
from segnet_jax.exporting.output_folder import explain_disk_errors
from segnet_jax.inference.sources import find_sources, name_outputs
from segnet_jax.reporting.progress import Progress
from segnet_jax.reporting.published import print_published
from segnet_jax.reporting.tables import print_sequences
from segnet_jax.runs.session import record_evaluation
from segnet_jax.system import console, errors, system_limits
from segnet_jax.system.command import run_command
from segnet_jax.system.console import bar
from segnet_jax.system.errors import NotFinite, UserError
from segnet_jax.system.files import atomic_write_bytes, atomic_write_json, cache_folder, check_place, expanded
from segnet_jax.system.logs import ConsoleHandler
from segnet_jax.system.signals import Stop

EVIL = "a\x1b[2J\x07\u202eb\udcff\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run")


def report(run, *wrapper, **settings):
    """Run the report, the fastest command, in its own process."""
    command = [*wrapper, sys.executable, "-m", "segnet_jax.report", str(run)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)} | settings.pop("env", {})
    environment = {name: value for name, value in environment.items() if value is not None}
    return subprocess.run(command, text=True, timeout=60, env=environment, **{"capture_output": True} | settings)


# --- control characters ---


def test_nothing_that_a_terminal_obeys_is_printed(capsys, monkeypatch):
    package = logging.getLogger("segnet_jax")  # without pytest's handlers: pytest-xdist fails on what they capture
    monkeypatch.setattr(package, "handlers", [each for each in package.handlers if isinstance(each, ConsoleHandler)])
    logging.getLogger("segnet_jax.test").warning(EVIL)
    with Progress(3, 1):
        logging.getLogger("segnet_jax.test").info(EVIL)
    console.echo(EVIL, 3)
    print_sequences({EVIL: {"miou": 0.5, "num_images": 3}})
    with bar("[/red]" + EVIL, 1) as advance:
        advance()
    measured = {"name": EVIL, "device": EVIL, "precisions": {EVIL: {"fails": EVIL, "layers": {EVIL: {"rms": EVIL}}}}}
    comparison = compare_machines([measured, measured | {"settings": EVIL}])
    print_comparison(comparison)
    print(as_markdown(comparison))
    print_measurements({"now": {EVIL: EVIL}}, {"now": {EVIL: EVIL}}, title="measurements")
    ours = {"summary": EVIL}
    row = {"name": "theirs", "citation": "", "remark": "", "scores": {}}
    compared = {"difference": {}, "differs_in": [EVIL], "same_protocol": False, "why": EVIL}
    print_published({"ours": [ours], "published": [row | {"ours": [compared]}]})
    for text in capsys.readouterr():
        assert not {"\x1b", "\x07", "\u202e", "\udcff"} & set(text)
    assert "[2J" in errors.printable(EVIL)


@pytest.mark.parametrize(
    "error, code", [(UserError(EVIL), 2), (NotFinite(EVIL), 6), (OSError(errno.EACCES, EVIL, EVIL), 2)]
)
def test_no_error_prints_them_either(capsys, error, code):
    def main():
        raise error

    with pytest.raises(SystemExit) as left:
        run_command(main)
    printed = capsys.readouterr().err
    assert left.value.code == code and printed.startswith("error: ") and printed.count("\n") == 1
    assert not {"\x1b", "\x07", "\u202e"} & set(printed)


def test_outputs_are_not_called_by_them(tmp_path):
    name = b"a\x1b[2J\xe2\x80\xaeb\xff.png"
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.path.join(os.fsencode(tmp_path), name))
    (source,) = name_outputs(find_sources([str(tmp_path)]), lambda source: [".png"])
    assert source.name == "a_[2J_b_" and source.display_name.isprintable()


def test_json_accepts_names_that_are_not_utf8(tmp_path):
    atomic_write_json(tmp_path / "a.json", {"name": os.fsdecode(b"\xff.png")})
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "name": "\\udcff.png"\n}\n'


# --- names ---


def test_a_file_of_the_longest_name_is_written_whole(tmp_path):
    for letter in "aé漢":
        path = tmp_path / (letter * (255 // len(letter.encode())))
        atomic_write_bytes(path, b"x")
        assert path.read_bytes() == b"x"
    assert len(os.listdir(tmp_path)) == 3


def test_a_name_that_is_too_long_is_reported(tmp_path):
    with pytest.raises(UserError, match="too long a name"):
        check_place("json", str(tmp_path / ("a" * 256)))
    with pytest.raises(UserError, match="no run"):
        read_run(tmp_path / ("b" * 300))


def test_an_unknown_user_is_reported(monkeypatch):
    def nobody(*_):
        raise RuntimeError("Could not determine home directory.")

    with pytest.raises(UserError, match="~nobody-here/x: no home folder"):
        expanded("~nobody-here/x")
    for name in ("SEGNET_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", nobody)
    with pytest.raises(UserError, match="set SEGNET_JAX_CACHE"):
        cache_folder()


def test_an_unreadable_folder_is_reported_and_not_skipped(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    scan = os.scandir

    def refuse(path):
        if os.path.basename(path) == "inner":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    faults = []
    assert [path.name for path in pictures_below(tmp_path, tmp_path, faults)] == ["a.png"]
    assert [fault.what for fault in faults] == ["the folder inner cannot be read: Permission denied"]


# --- what the machine refuses ---


def test_a_missing_device_is_reported(monkeypatch):
    for error in (RuntimeError("Unable to initialize backend 'cuda'\nand more"), AssertionError()):

        def refuse(error=error):
            raise error

        monkeypatch.setattr("jax.devices", refuse)
        with pytest.raises(UserError, match="JAX finds no device"):
            choose_devices("all")


@pytest.mark.parametrize(
    "error, code, message",
    [
        (OSError(errno.ENOSPC, "No space left on device"), 4, "no space left on"),
        (ValueError("RESOURCE_EXHAUSTED: ... No space left on device"), 4, "no space left on"),
        (OSError(errno.EROFS, "Read-only file system"), 4, "Read-only"),
    ],
)
def test_a_disk_that_refuses_an_export_is_reported(capsys, tmp_path, error, code, message):
    def main():
        with explain_disk_errors(tmp_path):
            raise error

    with pytest.raises(SystemExit) as left:
        run_command(main)
    assert left.value.code == code and message in capsys.readouterr().err


def test_full_and_closed_outputs(run):
    with open("/dev/full", "w") as full:
        ended = report(run, stderr=full, stdout=subprocess.PIPE, capture_output=False)
        assert ended.returncode == 0 and "wrote" in ended.stdout
        ended = report(run, stdout=full, stderr=subprocess.PIPE, capture_output=False)
        assert ended.returncode == 4 and ended.stderr == "error: No space left on device\n"
    assert report(run, "bash", "-c", 'exec "$@" >&- 2>&-', "_").returncode == 0


@pytest.mark.parametrize(
    "limit, message", [("-v 1500000", "GB of address space"), ("-n 20", "may open only 20 files"), ("-Sn 20", "")]
)
def test_a_limit_that_is_too_low_is_reported_before_jax_is_imported(run, limit, message):
    ended = report(run, "bash", "-c", f'ulimit {limit}; exec "$@"', "_")
    assert ended.returncode == (2 if message else 0), ended.stderr
    assert message in ended.stderr and ended.stderr.count("\n") == bool(message)


def test_the_limit_on_open_files_is_raised_as_far_as_it_goes(monkeypatch):
    given = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 1000) if kind == resource.RLIMIT_NOFILE else (-1, -1))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: given.append(both))
    assert system_limits.problem() == "" and given == [(1000, 1000)]


# --- small ones ---


def test_slurms_warning_stops_training_as_sigterm_does():
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(100):
            if stop.requested():
                break
            time.sleep(0.01)
        assert stop.exit_code == 143
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.mark.parametrize(
    "best, loss, step, expected",
    [
        (None, math.nan, 1, False),
        (None, math.nan, 9, True),  # the last one, as there is no other
        (None, 1.0, 1, True),
        (0.2, math.nan, 9, False),
        (0.2, math.inf, 1, False),
        (0.2, 1.0, 1, True),
        (0.9, 1.0, 1, False),
    ],
)
def test_a_loss_that_is_not_finite_makes_no_best(best, loss, step, expected):
    def scored(miou):
        return {"step": 1, "confusion": [[round(100 * miou), 100 - round(100 * miou)], [0, 100]]}

    meta = {"last": None, "best": None if best is None else scored(best), "evaluations_since_best": 2}
    setup = SimpleNamespace(config=SimpleNamespace(best_metric="global_accuracy"), total_steps=9)
    found = SimpleNamespace(confusion=np.array(scored(0.5)["confusion"]), loss=loss)
    assert record_evaluation(setup, meta, found, step) == expected
    assert meta["last"] == scored(0.5) | {"step": step}
    assert (meta["best"] == meta["last"]) == expected
    assert meta["evaluations_since_best"] == (0 if expected else 2 + (best is not None))


PALETTE = [0, 0, 0, 255, 0, 0, 0, 255, 0]


@pytest.mark.parametrize("mode, key", [("P", b"\xff\x80"), ("P", bytes([255, 0, 255])), ("L", 7), ("RGB", (1, 2, 3))])
def test_transparency_beside_the_pixels_is_refused_as_that_of_rgba_is(tmp_path, mode, key):
    shape = (4, 5, 3) if mode == "RGB" else (4, 5)
    pixels = np.zeros(shape, np.uint8)
    pixels[0, 0] = key if mode != "P" else 1
    picture = Image.fromarray(pixels, mode)
    if mode == "P":
        picture.putpalette(PALETTE)
    picture.save(tmp_path / "a.png", transparency=key)
    with pytest.raises(UserError, match="has 1 transparent pixel"):
        read_image(tmp_path / "a.png", "a.png")
    pixels[0, 0] = 0  # the same with a color that no pixel has
    picture = Image.fromarray(pixels, mode)
    if mode == "P":
        picture.putpalette(PALETTE)
    picture.save(tmp_path / "b.png", transparency=key)
    assert not read_image(tmp_path / "b.png", "b.png").any()


def test_a_color_label_with_a_transparent_color_is_refused_and_ids_are_read(tmp_path):
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[0, 0] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(1, 2, 3))
    with pytest.raises(UserError, match="label a.png has 1 transparent pixel"):
        read_stored(tmp_path / "a.png", "a.png")
    picture = Image.fromarray(pixels[..., 0], "P")
    picture.putpalette(PALETTE)
    picture.save(tmp_path / "b.png", transparency=1)
    np.testing.assert_array_equal(read_stored(tmp_path / "b.png", "b.png").values(), pixels[..., 0])
