"""Check that opening untrusted files is safe: malicious ones are rejected in one line and none of their code runs."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hostile_files
import pytest

import segnet_jax

PACKAGE = Path(segnet_jax.__file__).parent
MOST_MEGABYTES = 1 << 10  # of the process that opens all files, including Python and JAX


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Open every malicious file; yield the folder and name -> exit code, output, seconds, peak memory."""
    folder = tmp_path_factory.mktemp("hostile")
    cases = hostile_files.write_all(folder)
    result = subprocess.run(
        [sys.executable, hostile_files.__file__, str(folder)], capture_output=True, text=True, timeout=300, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    outcomes = {each["name"]: each for each in map(json.loads, result.stdout.splitlines())}
    assert [name for name, _, _ in cases] == list(outcomes)
    yield folder, outcomes
    shutil.rmtree(folder)  # over half a gigabyte


def test_there_are_many_more_than_twenty(opened):
    assert len(opened[1]) > 150


@pytest.mark.parametrize("group", hostile_files.CASES)
def test_hostile_files_are_refused_with_exit_code_2_and_one_line(group, opened):
    of_group = [outcome for name, outcome in opened[1].items() if name.startswith(f"{group}: ")]
    assert of_group
    wrong = [
        f"{outcome['name']}: {outcome['code']}, {outcome['printed'][:300]}"
        for outcome in of_group
        if outcome["code"] != 2 or not outcome["printed"].startswith("error: ") or outcome["printed"].count("\n") != 1
    ]
    assert not wrong, "\n".join(wrong)


def test_no_hostile_file_takes_over_five_seconds_or_a_gigabyte(opened):
    slow = {name: outcome["seconds"] for name, outcome in opened[1].items() if outcome["seconds"] > 5}
    assert not slow
    assert max(outcome["peak"] for outcome in opened[1].values()) < MOST_MEGABYTES


def test_no_hostile_file_runs_code_or_writes_outside_its_folder(opened):
    folder, _ = opened
    assert not (folder / "canary").exists()
    assert not list(folder.rglob("canary*"))
    assert {path.name for path in folder.iterdir()} == {"bin", "cases.json", *hostile_files.CASES}


def test_no_line_carries_control_characters_to_the_terminal(opened):
    assert all(outcome["printed"][:-1].isprintable() for outcome in opened[1].values())


def test_the_payloads_are_live(tmp_path):
    canary = tmp_path / "canary"
    assert all(hostile_files.runs(payload, canary) for payload in hostile_files.payloads(canary).values())


def test_what_is_harmless_is_accepted_and_its_bombs_are_not_unpacked(tmp_path):
    """Check that a dataset folder that is a link, odd names, and compressed text chunks in an image are accepted."""
    import zlib

    from segnet_jax.data.layouts.camvid import tutorial

    bomb = zlib.compress(bytes(30_000_000), 9)
    texts = [
        hostile_files.chunk(b"zTXt", b"a\0\0" + bomb),
        hostile_files.chunk(b"iTXt", b"a\0\1\0\0\0" + bomb),
        hostile_files.chunk(b"iCCP", b"a\0\0" + bomb),
    ]
    folder = hostile_files.data_folder(tmp_path / "real", "<script>alert(1)<_script>.png label.png\n")
    size = hostile_files.header(8, 6, 2)
    picture = hostile_files.png(size, *texts, hostile_files.pixels(8, 6, 3))
    (folder / "<script>alert(1)<_script>.png").write_bytes(picture)
    (tmp_path / "link").symlink_to(folder)
    train = tutorial(tmp_path / "link").splits["train"]
    assert train.names == ("<script>alert(1)<_script>",)
    assert train.read(0)[0].shape == (6, 8, 3)


# the source

FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "input"}
FORBIDDEN_CALLS = {
    *(f"{module}.{name}" for module in ("pickle", "dill", "cloudpickle", "marshal") for name in ("load", "loads")),
    *("pickle.Unpickler", "shelve.open", "torch.load", "yaml.load", "yaml.unsafe_load", "joblib.load"),
    *("pandas.read_pickle", "os.system", "os.popen", "tarfile.open", "shutil.unpack_archive", "Image.open"),
    *("PIL.Image.open", "h5py.File", "safetensors.safe_open", "runpy.run_path", "runpy.run_module", "ast.literal_eval"),
}  # fmt: skip


ONLY_IN = {"h5py": "weights/containers/hdf5_layout.py", "safe_open": "weights/safetensors_file.py"}
"""The only module that may use each library that opens whole files."""


def dangers(tree):
    """Return calls and keywords by which a file could be executed or decompressed unchecked."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in FORBIDDEN_NAMES or called in FORBIDDEN_CALLS or called.endswith((".extractall", ".extract")):
                yield called
            if keywords.get("allow_pickle", "False") != "False" or keywords.get("shell", "False") != "False":
                yield f"{called} with {keywords}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names}
            module = getattr(node, "module", None) or ""
            if {"pickle", "marshal", "shelve", "dill", "yaml", *ONLY_IN} & {module.split(".")[0], *names}:
                yield ast.unparse(node)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_source_file_could_run_what_a_file_says(path):
    allowed = {name for name, place in ONLY_IN.items() if path.relative_to(PACKAGE).as_posix() == place}
    found = [each for each in dangers(ast.parse(path.read_text())) if not any(name in each for name in allowed)]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(file)",
        "import h5py",
        "from h5py import h5o",
        "from safetensors import safe_open",
        "import pickle",
        "from pickle import loads",
        "eval(text)",
        "exec(text)",
        "yaml.load(file)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "archive.extractall(folder)",
    ],
)
def test_the_scan_finds_what_it_looks_for(code):
    assert list(dangers(ast.parse(code)))


@pytest.mark.slow
def test_the_commands_refuse_a_hostile_weight_file_too(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "w.pth").write_bytes(hostile_files.payloads(canary)["reduce"])
    flags = (
        "--data synthetic --scenes 2 1 --image-size 32 32 --devices 1 --batch-size-per-device 1 --init w.pth --run run"
    )
    result = subprocess.run(
        [sys.executable, "-m", "segnet_jax.train", *flags.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        timeout=120,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: w.pth: contains code, which is not run")
    assert not canary.exists()
