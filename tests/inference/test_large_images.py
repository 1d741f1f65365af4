"""Test tiled prediction of an image above the limit for whole images, by the command and within its memory estimate."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from made_runs import make_run
from PIL import Image

from segnet_jax.data.images import picture_header

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 6000, 9000
MEASURED = """
import importlib, resource, sys
command = importlib.import_module("segnet_jax.predict")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = command.main()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("grown by", 1024 * (after - before))
sys.exit(code)
"""


@pytest.mark.slow  # quicker: test_tiles.py, and test_field_cases.py -k larger
def test_tiles_read_what_only_memory_limits(tmp_path):
    run = make_run(tmp_path / "run")
    small = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    image = Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    image.save(tmp_path / "map.png", compress_level=1)
    region = (4096, 2048, 4096 + 512, 2048 + 256)  # left, top, right, bottom: on the grid of the poolings
    image.crop(region).save(tmp_path / "part.png")
    ids = np.add.outer(np.arange(HEIGHT) // 600, np.arange(WIDTH) // 900).astype(np.uint8) % 11
    (tmp_path / "labels").mkdir()
    Image.fromarray(ids).save(tmp_path / "labels" / "map.png")

    def predict(*flags):
        words = [sys.executable, "-c", MEASURED, str(run), *map(str, flags), "--devices", "1"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    refused = predict("map.png", "--out", "refused")
    assert refused.returncode == 2 and "predict with --tile 512 512" in refused.stderr
    tiled = predict("map.png", "--tile", 512, 512, "--out", "out", "--labels", "labels", "--json", "summary.json")
    assert tiled.returncode == 0, tiled.stderr
    grown = int(tiled.stdout.split("grown by ")[1].split()[0])
    programs_and_batches = 500_000_000
    assert grown < picture_header._TILED_BYTES * HEIGHT * WIDTH + programs_and_batches
    found = np.asarray(Image.open(tmp_path / "out" / "map.png"))
    assert found.shape == (HEIGHT, WIDTH)
    (row,) = json.loads((tmp_path / "summary.json").read_text())["inputs"]
    assert abs(row["global_accuracy"] - np.mean(found == ids)) < 1e-9
    whole = predict("part.png", "--size", "native", "--out", "out")
    assert whole.returncode == 0, whole.stderr
    inner = slice(32, -32)  # farther from the region's border than the receptive field
    left, top, right, bottom = region
    part = np.asarray(Image.open(tmp_path / "out" / "part.png"))
    assert (part == found[top:bottom, left:right])[inner, inner].mean() > 0.9999  # except for ties up to rounding
