"""Test the notebooks: they are valid, run from the first cell to the last, and show rendered scenes only."""

import base64
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments/notebooks"
NOTEBOOK = FOLDER / "quickstart.ipynb"
PICTURES = {"quickstart": 2, "research": 1, "quickstart_gpu": 0}  # stored; 0: not yet run at full size
NOTEBOOKS = [FOLDER / f"{name}.ipynb" for name in PICTURES]
QUICK = '["--epochs", "1", "--scenes", "16", "8", "--depth", "1", "--width", "0.0625"]'


def pictures_of(book):
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    data = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in data]


def test_these_are_all():
    assert sorted(FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_a_notebook_in_format_4_with_the_outputs_of_one_run(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4 and book["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("[a-zA-Z0-9_-]{1,64}", each) for each in ids)
    for cell in book["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == keys | ({"outputs", "execution_count"} if cell["cell_type"] == "code" else set())
        assert all(isinstance(line, str) for line in cell["source"])
    counts = [cell["execution_count"] for cell in book["cells"] if cell["cell_type"] == "code"]
    assert counts == (list(range(1, len(counts) + 1)) if PICTURES[path.stem] else [None] * len(counts))
    assert len(pictures_of(book)) == PICTURES[path.stem]
    nbformat = pytest.importorskip("nbformat", reason="the schema is nbformat's: pip install nbformat")
    nbformat.validate(book)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_small_and_names_no_place_of_the_machine_that_ran_it(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 500_000
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)


def executed(name, folder, *replaced):
    """Run a notebook's cells in a folder, with a text in them replaced, and return the notebook with its outputs."""
    command = [sys.executable, FOLDER / "execute.py", FOLDER / f"{name}.ipynb", "out.ipynb"]
    for old, new in replaced:
        command += ["--replace", old, new]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "out.ipynb").read_text())


@pytest.mark.slow
def test_the_cells_of_the_quickstart_run_from_the_first_to_the_last(tmp_path):
    panels, keyed = pictures_of(executed("quickstart", tmp_path, ("more = []", f"more = {QUICK}")))
    assert panels.size == (3 * 4 * 64, 3 * 3 * 48)
    assert keyed.width == 320 and keyed.height > 192  # the photo of 256x192, and its key beneath
    assert len(list(tmp_path.glob("runs/quickstart/predictions-1/*.png"))) == 3


@pytest.mark.slow
def test_the_cells_on_research_train_a_loss_a_network_and_a_callback(tmp_path):
    quick = '"epochs": 1, "scenes": (16, 8), "depth": 1, "width": 0.0625,'
    book = executed("research", tmp_path, ('"epochs": 3,', quick))
    assert len(pictures_of(book)) == 1
    own = {name: tomllib.loads((tmp_path / "runs" / name / "config.toml").read_text())["own"] for name in RUNS}
    assert {name: [each.split("=")[0] for each in names] for name, names in own.items()} == RUNS
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    printed = "".join(line for output in outputs for line in output.get("text", ()))
    assert all(f"{name}, step 4: mIoU" in printed for name in RUNS) and "Network(SkipNet" in printed


RUNS = {"segnet": [], "boundary": ["loss"], "skipnet": ["model"]}


@pytest.mark.slow
def test_the_cells_for_a_hosted_gpu_run_on_a_cpu_without_the_installation(tmp_path):
    quick = {"image_size": (24, 32), "scenes": (16, 8), "width": 0.0625, "depth": 1, "epochs": 1}
    book = executed(
        "quickstart_gpu",
        tmp_path,
        ("subprocess.run(install, check=True)", ""),
        ('more = {"image_size": (240, 320), "scenes": (600, 60), "width": 1.0, "depth": 5,', f"more = {quick} #"),
        ('more |= {"precision": "auto", "epochs": 12, "deterministic": True}', ""),
    )
    assert len(pictures_of(book)) == 1 and (tmp_path / "run.zip").stat().st_size > 10_000
