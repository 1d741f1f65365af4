"""Write thirty frames of CamVid as a user's photos: JPEG in three sizes, label images in three colors.

python tests/thirty_photos.py CAMVID FOLDER
"""

import csv
import pathlib
import sys

import numpy as np
from PIL import Image

SIZES = ((360, 480), (300, 400), (240, 320))
SEED = 0
CLASSES = {"other": (90, 90, 90), "ground": (200, 60, 180), "traffic": (40, 90, 230)}
_CLASS_OF = np.zeros(256, np.uint8)  # of the tutorial's ids: road 3, pavement 4; car 8, pedestrian 9, bicyclist 10
_CLASS_OF[[3, 4]], _CLASS_OF[[8, 9, 10]] = 1, 2


def make(camvid: pathlib.Path, folder: pathlib.Path, count: int = 30) -> None:
    """Write `images/*.jpg`, `labels/*.png` and `class_dict.csv`; void pixels become "other"."""
    lines = [line.split() for line in (camvid / "train.txt").read_text().splitlines() if line.strip()]
    pairs = [tuple(camvid / pathlib.Path(*pathlib.PurePosixPath(path).parts[-2:]) for path in line) for line in lines]
    chosen = np.random.default_rng(SEED).choice(len(pairs), count, replace=False)
    colors = np.array(list(CLASSES.values()), np.uint8)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number, index in enumerate(sorted(chosen)):
        image, label = (Image.open(path) for path in pairs[index])
        height, width = SIZES[number % len(SIZES)]
        ids = _CLASS_OF[np.asarray(label.resize((width, height), Image.Resampling.NEAREST))]
        image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC).save(
            folder / "images" / f"photo_{number:02}.jpg", quality=92
        )
        Image.fromarray(colors[ids]).save(folder / "labels" / f"photo_{number:02}.png")
    with open(folder / "class_dict.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "r", "g", "b"])
        rows.writerows([name, *color] for name, color in CLASSES.items())


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
