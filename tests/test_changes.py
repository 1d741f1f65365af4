"""Check the example changes stored as patches: each still applies, touches few files, and works.

CONTRIBUTING.md describes them. If a patch no longer applies, repeat its change by hand and store it with
`git diff -U1 > tests/changes/NAME.patch`. What each must do is tested by `tests/changes/check_NAME.py`, which runs in a
copy of the tree with the patch applied.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CHANGES = pathlib.Path(__file__).parent / "changes"
MOST_FILES = {
    "loss_boundary": 3,
    "optimizer_lamb": 2,
    "metric_kappa": 2,
    "augmentation_elastic": 3,
    "network_linknet": 3,
}

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed: it applies the patches")


def patch_of(name):
    return CHANGES / f"{name}.patch"


def files_of(patch):
    """Return the files that a patch touches, and whether it creates them."""
    lines = patch.read_text().splitlines()
    heads = [(old, new) for old, new in zip(lines, lines[1:], strict=False) if old[:4] == "--- " and new[:4] == "+++ "]
    return {new.removeprefix("+++ b/"): old == "--- /dev/null" for old, new in heads}


def apply(patch, folder, *flags):
    """Apply a patch in a folder outside of any repository; return git's error, or "" on success."""
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = ["git", "apply", *flags, str(patch)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def test_every_patch_is_known_and_has_its_check():
    names = {path.stem for path in CHANGES.glob("*.patch")}
    assert names == MOST_FILES.keys() == {path.stem.removeprefix("check_") for path in CHANGES.glob("check_*.py")}


@pytest.mark.parametrize("name", MOST_FILES)
def test_a_change_touches_few_files_and_its_patch_applies(name, tmp_path):
    files = files_of(patch_of(name))
    assert 1 <= len(files) <= MOST_FILES[name]
    for file, is_new in files.items():
        assert file.startswith("segnet_jax/")
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        if not is_new:
            shutil.copyfile(ROOT / file, tmp_path / file)
    assert apply(patch_of(name), tmp_path, "--check") == ""
    existing = next(file for file, is_new in files.items() if not is_new)
    (tmp_path / existing).write_text("something else\n")
    assert "patch does not apply" in apply(patch_of(name), tmp_path, "--check")


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST_FILES)
def test_a_change_does_what_it_says(name, tmp_path):
    tree = tmp_path / "tree"
    for folder in ("segnet_jax", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", tree / "pyproject.toml")
    before = {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert apply(patch_of(name), tree) == ""
    after = {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    touched = {path.as_posix() for path in after if before.get(path) != after[path]}
    assert touched == files_of(patch_of(name)).keys() and before.keys() <= after.keys()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(tree)}
    flags = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", f"tests/changes/check_{name}.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *flags], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
