"""Scenes for folders as users bring them: a red disc (1) and a blue box (2) on gray-green ground (0)."""

import collections

import numpy as np
from PIL import Image

GROUND, RED, BLUE = 0, 1, 2
PAINT = np.array([(96, 112, 96), (220, 40, 40), (40, 60, 220)])
COLORS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)


def scene(seed, height=48, width=64):
    """Return an image uint8 [H,W,3] and its true ids uint8 [H,W]: the disc in the upper half, the box in the lower."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0.2, 0.35) * height, rng.uniform(0.2, 0.5) * width
    ids[(y - cy) ** 2 + (x - cx) ** 2 < (rng.uniform(0.12, 0.18) * height) ** 2] = RED
    by, bx = int(rng.uniform(0.6, 0.7) * height), int(rng.uniform(0.5, 0.75) * width)
    ids[by : by + int(0.2 * height), bx : bx + int(0.2 * width)] = BLUE
    image = PAINT[ids] + rng.integers(-15, 16, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8), ids


def save(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def palette_png(ids, colors, path):
    """Write ids as a palette image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("P", ids.shape[::-1])
    picture.putpalette(np.asarray(colors, np.uint8).reshape(-1).tolist())
    picture.putdata(ids.ravel().tolist())
    picture.save(path)


def read_as(dataset, splits=None):
    """Return color -> class name that nearly all pixels of ground, disc and box are read as."""
    counts = {name: collections.Counter() for name in ("ground", "red", "blue")}
    for name, split in dataset.splits.items():
        if splits and name not in splits:
            continue
        for index in range(len(split)):
            image, label = split.read(index)
            image = image.astype(int)
            red, green, blue = (image[..., channel] for channel in range(3))
            true = {
                "red": (red > 170) & (green < 90) & (blue < 90),
                "blue": (blue > 170) & (red < 90) & (green < 110),
                "ground": (abs(red - 96) < 25) & (abs(green - 112) < 25) & (abs(blue - 96) < 25),
            }
            for color, pixels in true.items():
                counts[color].update(label[pixels].tolist())
    found = {}
    for color, each in counts.items():
        if each:
            ((value, pixels),) = each.most_common(1)
            assert pixels > 0.85 * each.total(), f"true {color} is read as several classes: {each}"
            found[color] = "void" if value == 255 else dataset.classes.names[value]
    return found
