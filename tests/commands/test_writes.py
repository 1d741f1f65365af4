"""Check by system traces that commands write only into the run and cache folders and use no network."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from broken_runs import EIGHT, HERE
from made_runs import make_run

SAMPLE = HERE.parent / "data/sample"

CALLS = {  # that change files, besides opening for writing
    *(
        "creat",
        "mkdir",
        "mkdirat",
        "mknod",
        "mknodat",
        "rename",
        "renameat",
        "renameat2",
        "unlink",
        "unlinkat",
        "rmdir",
    ),
    *("link", "linkat", "symlink", "symlinkat", "truncate", "chmod", "fchmodat", "chown", "lchown", "fchownat"),
    *("utime", "utimes", "utimensat", "futimesat", "setxattr", "lsetxattr"),
}
NO_FILES = ("/dev/null", "/dev/tty", "/proc/")  # the last: how threads are named


@pytest.fixture
def traced(tmp_path):
    """Return a function that runs a command without network and returns the paths written and addresses contacted."""
    if not (shutil.which("strace") and shutil.which("unshare")):
        pytest.skip("strace and unshare are not both here")
    tried = subprocess.run(["strace", "-f", "-o", os.devnull, "unshare", "-n", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"processes may not be traced, or not be cut off from the network: {tried.stderr.strip()[-200:]}")
    for name in ("home", "tmp", "here"):
        (tmp_path / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL", "JAX_C"))}
    environment |= {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "SEGNET_JAX_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(HERE.parent),
        "PYTHONDONTWRITEBYTECODE": "1",  # what Python compiles for itself is not ours
    }

    def run(*command):
        record = tmp_path / "record"
        shutil.rmtree(record, ignore_errors=True)
        record.mkdir()
        strace = ["strace", "-ff", "-y", "--seccomp-bpf", "-qq", "-s", "4096", "-o", record / "of"]
        strace += ["-e", "trace=file,connect,sendto", "unshare", "-n", sys.executable, "-m"]
        done = subprocess.run(
            [*map(str, strace), *map(str, command)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path / "here",
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        lines = [line for path in record.iterdir() for line in path.read_text(errors="replace").splitlines()]
        assert len(lines) > 1000
        return written(lines, tmp_path / "here"), [line for line in lines if re.search(r"sa_family=AF_INET", line)]

    return run


def written(lines, cwd):
    """Return the paths that successful calls created, changed, removed, or opened for writing."""
    paths = set()
    for line in lines:
        call, _, rest = line.partition("(")
        if re.search(r"\) += -1 ", line):
            continue
        if call in ("open", "openat"):
            if re.search(r"O_WRONLY|O_RDWR|O_CREAT", rest):
                paths.add(re.search(r"= \d+<(.*)>$", line)[1])
        elif call in CALLS:
            around = re.findall(r"(?:AT_FDCWD|\d+)<([^>]*)>", rest) or [cwd]
            paths |= {os.path.normpath(os.path.join(around[0], path)) for path in re.findall(r'"([^"]*)"', rest)}
    return paths


@pytest.fixture
def held_to(tmp_path):
    """Return a function that asserts that only allowed folders were written to and no network was used."""

    def hold(folders, *traces):
        allowed = (*(f"{folder}/" for folder in (*folders, tmp_path / "cache")), *NO_FILES)
        assert {path for wrote, _ in traces for path in wrote if not f"{path}/".startswith(allowed)} == set()
        for name in ("home", "tmp", "here"):
            assert not list((tmp_path / name).iterdir())
        assert [line for _, contacted in traces for line in contacted] == []

    return hold


@pytest.mark.slow
def test_training_evaluating_and_reporting_write_only_where_they_may_and_need_no_network(traced, held_to, tmp_path):
    run = tmp_path / "run"
    trained = traced("segnet_jax.train", *EIGHT, "--epochs", 1, "--run", run)
    files = ("--json", run / "scores.json", "--pictures", run / "drawn")
    evaluated = traced("segnet_jax.evaluate", run, "--fake-devices", 8, *files)
    reported = traced("segnet_jax.report", run)
    outputs = zip(("result.json", "scores.json", "report.html"), (trained, evaluated, reported), strict=True)
    assert all(str(run / name) in wrote for name, (wrote, _) in outputs)  # they are seen at all
    held_to([run], trained, evaluated, reported)


def test_predicting_writes_only_into_its_folder_and_needs_no_network(traced, held_to, tmp_path):
    run, out = make_run(tmp_path / "run"), tmp_path / "out"
    more = ["--out", out, "--json", out / "summary.json", "--confidence", "--labels", SAMPLE / "valannot"]
    named = traced("segnet_jax.predict", run, SAMPLE / "val", *more)
    assert {str(out / "summary.json"), str(out / "val_00000.png"), str(out / "val_00000_overlay.jpg")} <= named[0]
    held_to([out], named)


@pytest.mark.slow
def test_predicting_without_a_named_folder_writes_only_into_the_runs(traced, held_to, tmp_path):
    run = make_run(tmp_path / "run")
    unnamed = traced("segnet_jax.predict", run, SAMPLE / "val/val_00000.png")
    assert str(run / "predictions-1/val_00000.png") in unnamed[0]
    held_to([run / "predictions-1"], unnamed)


@pytest.mark.slow
def test_exporting_writes_only_into_its_folder_and_needs_no_network(traced, held_to, tmp_path):
    run = make_run(tmp_path / "run")
    exported = traced("segnet_jax.export", run, "--data", SAMPLE, "--images", 1, "--format", "stablehlo", "safetensors")
    assert str(run / "export/export.json") in exported[0]
    held_to([run], exported)


@pytest.mark.slow
def test_exporting_to_tensorflow_writes_only_into_its_folder_and_needs_no_network(traced, held_to, tmp_path):
    """Check that Keras writes no settings to the home folder, and TensorFlow no code to the temporary folder."""
    run, out = make_run(tmp_path / "run"), tmp_path / "out"
    more = ["--data", SAMPLE, "--images", 1, "--format", "saved-model", "--out", out]
    exported = traced("segnet_jax.export", run, *more)
    assert str(out / "export.json") in exported[0]
    held_to([out], exported)
