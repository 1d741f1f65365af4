"""Write run folders like those of a training run, without training."""

import json
from pathlib import Path

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.reporting.evaluations import write_dataset_info, write_evaluation, write_worst
from segnet_jax.reporting.metrics_log import MetricsLog

HOSTILE = ClassTable(
    (
        "<script>document.title='bad'</script>",
        '"><img src=x onerror=alert(1)>',
        "Straße 道路 {{ 7*7 }}",
        "=1+1",
        "l" * 300,
    ),
    ((128, 128, 128), (128, 0, 0), (60, 40, 222), (128, 128, 0), (0, 128, 192)),
)
ABOUT = {
    "dataset": "street",
    "split": "val",
    "num_images": {"train": 40, "val": 9},
    "fingerprints": {"train": "a", "val": "b"},
}
NAMES = [f"image {place} </title><script>1</script>" for place in range(6)]
CONFUSION = np.array([[50, 5, 0, 0, 0], [10, 60, 0, 0, 0], [30, 0, 10, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 6]])
"""Confusion of five classes, the fourth without pixels. IoU: 50/96, 60/76, 10/41, undefined, 6/10."""


def make_run(
    folder: Path,
    *,
    classes: ClassTable = HOSTILE,
    steps=(5, 10, 15),
    size=(24, 32),
    confusion=CONFUSION,
    config: Config | None = None,
    about=ABOUT,
    finished: bool = True,
    seed: int = 0,
) -> Path:
    """Write a run with an evaluation after each of these steps."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text((config or Config(data="street", epochs=3)).to_toml())
    environment = {"platform": "<b>Linux</b>", "devices": {"cpu": 1}, "versions": {"jax": "0.10.2"}, "num_cpus": 2}
    (folder / "environment.json").write_text(json.dumps(environment))
    labels = generator.integers(0, len(classes) + 1, (6, *size), np.uint8)
    labels = np.where(labels == len(classes), VOID, labels).astype(np.uint8)
    images = generator.integers(0, 256, (6, *size, 3), np.uint8)
    with MetricsLog(folder) as log:
        for step in range(1, max(steps) + 1):
            row = {"epoch": step / 5, "loss": 2 / step, "accuracy": 0.5, "learning_rate": 0.1, "skipped": 0.0}
            log.write("train", step, **row, seconds=float(step), images_per_second=8.0)
            if step not in steps:
                continue
            scores = {
                "loss": 2.0,
                "global_accuracy": 0.7,
                "mean_accuracy": 0.6,
                "miou": step / 100,
                "weighted_iou": 0.5,
            }
            log.write("val", step, epoch=step / 5, **scores, seconds=float(step))
            predictions = generator.integers(0, len(classes), (6, *size), np.uint8)
            pictures = list(zip(NAMES, images, labels, predictions, strict=True))
            accuracies = {name: 0.1 * (place + 1) for place, name in enumerate(NAMES)}
            write_dataset_info(folder, about, classes, pictures)
            write_worst(folder, step, classes, pictures[:2], accuracies)
            write_evaluation(folder, step, classes=classes, confusion=confusion, loss=2.0, pictures=pictures)
    if finished:
        result = {"split": about["split"], "num_images": 9, "miou": 0.5386, "step": steps[-1], "checkpoint": "best"}
        (folder / "result.json").write_text(json.dumps(result | {"num_steps": max(steps)}))
    return folder
