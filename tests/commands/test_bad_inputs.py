"""Check that bad inputs are reported before anything is compiled or written: the whole corpus, and real CamVid."""

import errno
import os
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
import pytest
import test_archives
import weight_files
from bad_commands import ARCHIVES, FLAGS, FRAMES, HELD, RUNS, WEIGHTS
from bad_folders import FOLDERS
from bad_inputs import SIZE, make_valid_folder
from PIL import ImageFile

from segnet_jax import prepare, train
from segnet_jax.config.flags import parse_config
from segnet_jax.data.camvid import write_records
from segnet_jax.data.images.picture_header import MAX_PIXELS
from segnet_jax.data.input_pipeline.cache import open_cached
from segnet_jax.data.layouts import camvid
from segnet_jax.nn.segnet import ENCODERS
from segnet_jax.runs import dataset_checks
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import ExitError, UserError

VALID_FLAGS = [
    *("--image-size", *map(str, SIZE), "--init", "none", "--depth", "1", "--width", "0.0625", "--epochs", "1"),
    *("--devices", "1", "--batch-size-per-device", "1", "--class-weights", "none"),
]


class Accepted(Exception):
    """Raised once the input has passed all checks made before a network is built."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a valid folder, with a working directory next to it; compilation is disabled."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(jax, "jit", None)
    weight_files.shrink(monkeypatch, ENCODERS)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode_within_limits(ImageFile.ImageFile.load))
    monkeypatch.setattr(pathlib.Path, "read_bytes", keep_permissions(pathlib.Path.read_bytes))
    return make_valid_folder(tmp_path / "CamVid")


def all_is_read(check_labels):
    def stop(*args, **splits):
        check_labels(*args, **splits)
        raise Accepted

    return stop


def decode_within_limits(load):
    def checked(picture):
        assert picture.width * picture.height <= MAX_PIXELS, "it was decoded"
        return load(picture)

    return checked


def keep_permissions(read_bytes):
    """Wrap `read_bytes` to respect permissions, which do not stop root, the user in container tests."""

    def checked(path):
        if not path.stat().st_mode & 0o400:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read_bytes(path)

    return checked


def state_of(folder):
    """Return mode, size and modification time of all files in a folder except a run's lock, which each start opens."""
    stats = {path: path.lstat() for path in folder.rglob("*") if path.name != "lock"}
    return {path: (stat.st_mode, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def left_by(command, argv, monkeypatch):
    """Run a command; return its exit code (0 for accepted input) and the errors raised."""
    raised = []

    def observed():
        try:
            return command()
        except (UserError, ExitError) as error:
            raised.append(error)
            raise

    monkeypatch.setattr(sys, "argv", argv)
    try:
        with pytest.raises(SystemExit) as left:
            run_command(observed)
        return left.value.code, raised
    except Accepted:
        return 0, raised


def assert_reported(case, code, raised, printed):
    """Compare a command's exit code, errors and output with the case."""
    assert "Traceback" not in printed
    for word in (case.file, *case.words):
        assert word in printed
    if case.accepted:
        assert not code and not raised and "error:" not in printed
        return
    assert code == case.exit_code and len(raised) == 1
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1  # one kind, one line
    if code == 2:
        kind = case.kind.split(":")[0]
        assert {fault.kind for fault in raised[0].faults} == {kind}
        assert errors[0].endswith(f" [{kind}]") or kind == "usage"
        assert case.file in f"{raised[0].file} {raised[0]}"


@pytest.mark.parametrize("case", [*FOLDERS, *FLAGS, *WEIGHTS], ids=str)
def test_training_reports_a_bad_input_and_takes_one_that_only_looks_bad(case, folder, monkeypatch, capsys):
    monkeypatch.setattr(dataset_checks, "check_labels", all_is_read(dataset_checks.check_labels))
    case.spoil(folder)
    case.patch(monkeypatch, folder)
    before = state_of(folder.parent)
    flags = [flag.format(folder=folder) for flag in case.flags]
    code, raised = left_by(train.main, ["train", "--data", str(folder), *VALID_FLAGS, *flags], monkeypatch)
    assert_reported(case, code, raised, capsys.readouterr().err)
    assert state_of(folder.parent) == before


@pytest.mark.parametrize("case", ARCHIVES, ids=str)
def test_preparing_reports_a_bad_archive_and_leaves_nothing(case, folder, monkeypatch, capsys):
    archives = folder.parent / "archives"
    test_archives.make_archives(archives)
    splits = {"train": FRAMES[:2], "val": FRAMES[2:]}
    monkeypatch.setattr(prepare, "split_names", lambda rule: splits)
    monkeypatch.setattr(write_records, "IMAGE_SIZE", (12, 16))
    monkeypatch.setenv("SEGNET_JAX_CACHE", str(folder.parent / "cache"))
    case.spoil(archives)
    case.patch(monkeypatch, archives)
    before = state_of(archives)
    out = folder.parent / "out"
    flags = [flag.format(folder=archives) for flag in case.flags]
    code, raised = left_by(prepare.main, ["prepare", "camvid", "--out", str(out), *flags], monkeypatch)
    printed = capsys.readouterr()
    assert_reported(case, code, raised, printed.err + printed.out)
    assert state_of(archives) == before and not list((folder.parent / "here").iterdir())
    assert case.accepted or not [path for path in out.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Train one epoch on a valid folder and return the run."""
    base = tmp_path_factory.mktemp("finished")
    flags = ["--data", str(make_valid_folder(base / "CamVid")), *VALID_FLAGS, "--run", str(base / "run")]
    assert train.train(parse_config(flags, prog="segnet_jax.train", description="")) == 0
    return base / "run"


@pytest.mark.parametrize("case", RUNS, ids=str)
def test_a_run_that_cannot_be_resumed_is_reported_and_kept(finished, case, folder, monkeypatch, capsys):
    shutil.copytree(finished, folder.parent / "run")
    case.spoil(folder)
    case.patch(monkeypatch, folder)
    before = state_of(folder.parent)
    flags = [flag.format(folder=folder) for flag in case.flags]
    code, raised = left_by(train.main, ["train", "--data", str(folder), *VALID_FLAGS, *flags], monkeypatch)
    while HELD:
        HELD.pop().close()
    assert_reported(case, code, raised, capsys.readouterr().err)
    assert state_of(folder.parent) == before


def test_every_row_of_the_table_has_its_case():
    assert {case.row for case in (*FOLDERS, *ARCHIVES, *FLAGS, *WEIGHTS, *RUNS)} == set(range(1, 49))


@pytest.mark.slow
def test_real_camvid_is_read_whole_without_a_false_alarm(camvid_folder, camvid_sizes, tmp_path, logged):
    started = time.monotonic()
    dataset = camvid.tutorial(camvid_folder)
    samples = {name: open_cached(split, (360, 480), tmp_path) for name, split in dataset.splits.items()}
    assert time.monotonic() - started < 40
    assert {name: len(split) for name, split in samples.items()} == camvid_sizes
    assemble = {name: samples[name] for name in ("train", "val")}
    dataset_checks.check_labels(dataset.classes, **assemble)
    assert logged == []
    assert dataset.notes == (f"note: paths in the lists begin with /SegNet/CamVid, read as {camvid_folder}",)
    assert np.isin(samples["val"].labels, [*range(11), 255]).all()
