"""Test the notebook: it is valid, runs from its first cell to its last, and shows rendered scenes only."""

import base64
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments/notebooks"
NOTEBOOK = FOLDER / "quickstart.ipynb"
QUICK = '["--epochs", "1", "--scenes", "16", "8", "--depth", "1", "--width", "0.0625"]'


def pictures_of(book):
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    data = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in data]


def test_it_is_a_notebook_in_format_4_with_the_outputs_of_one_run():
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4 and book["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("[a-zA-Z0-9_-]{1,64}", each) for each in ids)
    for cell in book["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == keys | ({"outputs", "execution_count"} if cell["cell_type"] == "code" else set())
        assert all(isinstance(line, str) for line in cell["source"])
    counts = [cell["execution_count"] for cell in book["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert len(pictures_of(book)) == 2
    nbformat = pytest.importorskip("nbformat", reason="the schema is nbformat's: pip install nbformat")
    nbformat.validate(book)


def test_it_is_small_and_names_no_place_of_the_machine_that_ran_it():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 500_000
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)


@pytest.mark.slow
def test_its_cells_run_from_the_first_to_the_last(tmp_path):
    command = [
        sys.executable,
        FOLDER / "execute.py",
        NOTEBOOK,
        "out.ipynb",
        "--replace",
        "more = []",
        f"more = {QUICK}",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    panels, keyed = pictures_of(json.loads((tmp_path / "out.ipynb").read_text()))
    assert panels.size == (3 * 4 * 64, 3 * 3 * 48)
    assert keyed.width == 320 and keyed.height > 192  # the photo of 256x192, and its key beneath
    assert len(list(tmp_path.glob("runs/quickstart/predictions-1/*.png"))) == 3
