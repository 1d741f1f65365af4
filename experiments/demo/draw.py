"""Draw the demo's pictures from the files of its run, which `publish.py` has copied to `run/`.

Example:  python experiments/demo/draw.py        # needs Chromium for report.png

A test draws them again and compares, so they are always up to date.
"""

import base64
import gzip
import io
import json
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
from PIL import Image

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.reporting.figures import prediction_pictures
from segnet_jax.reporting.metrics_log import read_metrics
from segnet_jax.reporting.page.render import write_report
from segnet_jax.reporting.training_plot import training_plot

FOLDER = pathlib.Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def unpack(folder: pathlib.Path) -> pathlib.Path:
    """Copy the run to `folder`/demo-1 with its metrics unpacked, and return that folder."""
    run = folder / "demo-1"
    shutil.copytree(FOLDER / "run", run)
    (run / "metrics.jsonl").write_bytes(gzip.decompress((run / "metrics.jsonl.gz").read_bytes()))
    (run / "metrics.jsonl.gz").unlink()
    return run


def draw_progress(
    run: pathlib.Path, path: pathlib.Path, title: str = "demo-1: SegNet on rendered street scenes"
) -> None:
    """Draw the curves."""
    result = json.loads((run / "result.json").read_text())
    settings = {"steps_per_epoch": 100, "total_steps": result["num_steps"], "device": result["device"]}
    training_plot(read_metrics(run / "metrics.jsonl"), path, title=title, **settings)


def draw_predictions(run: pathlib.Path, path: pathlib.Path) -> None:
    """Draw images, ground truth, predictions and errors of the last evaluation's preview samples."""
    step = json.loads((run / "result.json").read_text())["step"]
    samples = json.loads((run / "evaluations" / "dataset.json").read_text())["samples"]
    predictions = json.loads((run / "evaluations" / f"step_{step:07}.json").read_text())["predictions"]
    images = np.stack([_decode(each["image"]).convert("RGB") for each in samples])
    labels = np.stack([_class_ids(each["label"]) for each in samples])
    predicted = np.stack([_class_ids(each) for each in predictions])
    names = [each["name"] for each in samples]
    with tempfile.TemporaryDirectory() as folder:
        drawn = prediction_pictures(
            images, labels, predicted, names, CAMVID, pathlib.Path(folder) / "drawn", step, "val"
        )
        shutil.copy(drawn, path)


def draw_report(run: pathlib.Path, path: pathlib.Path) -> None:
    """Take a screenshot of the top of the report in Chromium."""
    write_report(run)
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]
        flags += [f"--user-data-dir={profile}", "--window-size=1000,1400", f"--screenshot={path}"]
        subprocess.run([CHROMIUM, *flags, (run / "report.html").absolute().as_uri()], check=True, capture_output=True)


def _decode(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def _class_ids(data: str) -> np.ndarray:
    """Return the class ids of a stored picture in class colors."""
    rgb = np.asarray(_decode(data).convert("RGB")).astype(int)
    distances = np.abs(rgb[..., None, :] - np.array(CAMVID.colors)).sum(axis=-1)
    return np.where(distances.min(axis=-1) == 0, distances.argmin(axis=-1), VOID).astype(np.uint8)


def main() -> None:
    """Draw all pictures that can be drawn here."""
    with tempfile.TemporaryDirectory() as folder:
        run = unpack(pathlib.Path(folder))
        draw_progress(run, FOLDER / "progress.png")
        draw_predictions(run, FOLDER / "predictions.png")
        if CHROMIUM:
            draw_report(run, FOLDER / "report.png")


if __name__ == "__main__":
    main()
