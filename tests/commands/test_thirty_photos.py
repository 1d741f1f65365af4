"""Test the README's workflow on thirty photos: doctor, its printed training command, predict. Takes minutes."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import thirty_photos
from PIL import Image

from segnet_jax.weights.published import PUBLISHED

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["no weights", "VGG-16 in the cache"])
def test_three_commands_make_a_useful_network(weights, camvid_folder, tmp_path):
    if weights != "no weights":
        file = os.environ.get("SEGNET_JAX_VGG16")
        if not file:
            pytest.skip("SEGNET_JAX_VGG16 does not name the weights")
        (tmp_path / "cache").mkdir()
        shutil.copy(file, tmp_path / "cache" / PUBLISHED["vgg16"].filename)
    thirty_photos.make(camvid_folder, tmp_path / "photos")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SEGNET_JAX_CACHE": str(tmp_path / "cache")}

    def run(*command):
        command = [sys.executable if word == "python" else word for word in command]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    found = run("python", "-m", "segnet_jax.doctor", "photos")
    run(*shlex.split(found.splitlines()[-1]))
    result = json.loads((tmp_path / "runs" / "photos-1" / "result.json").read_text())
    assert result["miou"] > result["baseline"]["miou"] + 0.15
    assert result["baseline"]["class"] == "other"
    assert result["per_class"]["traffic"]["iou"] > 0.25
    run("python", "-m", "segnet_jax.predict", "runs/photos-1", "photos/images", "--out", "out")
    for photo in sorted((tmp_path / "photos" / "images").iterdir()):
        ids = np.asarray(Image.open(tmp_path / "out" / f"{photo.stem}.png"))
        assert ids.shape == Image.open(photo).size[::-1] and ids.max() < 3
