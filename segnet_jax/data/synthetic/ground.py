"""Sky and ground; each ground pixel is mapped to its position on the street, where patterns are in meters."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.data.synthetic.canvas import Canvas, Patch, Rng, cover, planes
from segnet_jax.data.synthetic.upright_objects import LEAVES, Camera, band, mix, shade, stripes, vary

SKY, ROAD, PAVEMENT, TREE = map(CAMVID.names.index, ("Sky", "Road", "Pavement", "Tree"))
SKIES = (  # overhead, at the horizon, clouds
    ((92, 140, 198), (186, 206, 222), (236, 236, 236)),
    ((128, 160, 196), (206, 212, 214), (222, 222, 224)),
    ((150, 156, 164), (196, 198, 200), (172, 176, 182)),
    ((112, 128, 160), (228, 198, 168), (214, 196, 190)),
    ((176, 182, 188), (214, 214, 212), (232, 232, 232)),
)
ASPHALTS = ((88, 90, 98), (102, 104, 110), (76, 78, 88), (94, 96, 102))
PAVINGS = ((172, 156, 138), (182, 150, 130), (164, 150, 136), (186, 172, 148))
MARKS = (206, 204, 196)


@dataclass(frozen=True)
class Street:
    """Cross section of the street, in meters to the right of the camera.

    Attributes:
      left, right: the curbs.
      left_wall, right_wall: outer edges of the pavements.
    """

    left: float
    right: float
    left_wall: float
    right_wall: float

    @property
    def middle(self) -> float:
        """Center line of the road."""
        return (self.left + self.right) / 2


def paint_sky(rng: Rng, canvas: Canvas, camera: Camera) -> None:
    """Paint sky and clouds over the whole canvas, and set the haze."""
    overhead, horizon, cloud = [vary(rng, color, 12) for color in rng.pick(SKIES)]
    canvas.haze_color, canvas.haze_depth = horizon, rng.uniform(30, 90)
    height, width = canvas.height, canvas.width
    fall = np.minimum(canvas.y / np.float32(camera.horizon), np.float32(1))[:, None]
    wide = canvas.smooth_noise(rng, height / 9, width / 4)
    clouds = wide + np.float32(0.5) * canvas.smooth_noise(rng, height / 20, width / 10)
    fraction = cover(clouds * np.float32(1.4) - np.float32(rng.uniform(0.3, 0.9))) * np.float32(0.85)
    canvas.layer(SKY)
    everywhere = Patch((slice(0, height), slice(0, width)), np.ones((height, width), np.float32))
    canvas.fill(everywhere, mix(mix(overhead, horizon, fall), cloud, fraction))


def paint_ground(
    rng: Rng,
    canvas: Canvas,
    camera: Camera,
    street: Street,
    sunlit_edges: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> None:
    """Paint grass, pavements and the road with its markings, and the shadows of the houses.

    `sunlit_edges` maps depth, float32 [h], to the sunlit range of x, two float32 [h] arrays, in meters.
    """
    first = math.ceil(camera.horizon + 0.5)
    window = slice(first, canvas.height), slice(0, canvas.width)
    scale = (canvas.y[first:] - np.float32(camera.horizon)) / np.float32(camera.eye)  # pixels per meter across
    depth = np.float32(camera.focal) / scale
    left, right = (edge[:, None] for edge in sunlit_edges(depth))
    scale, depth = scale[:, None], depth[:, None]
    x = (canvas.x - np.float32(camera.vanishing)) / scale
    scale_ahead = scale * scale * np.float32(camera.eye / camera.focal)  # pixels per meter of depth
    haze = canvas.haze_fraction(depth)
    sunlit = cover(np.minimum(x - left, right - x) * scale)
    light = (np.float32(0.74) + np.float32(0.26) * sunlit) * (1 + np.float32(0.07) * canvas.stains[window])

    def lay(class_id, start, stop, color):
        canvas.layer(class_id)
        inside = np.minimum(x - np.float32(start), np.float32(stop) - x) * scale
        canvas.fill(Patch(window, inside), mix(color * light, canvas.haze_color, haze))

    grain = canvas.grain[window]
    lay(TREE, -1e4, 1e4, planes(vary(rng, rng.pick(LEAVES))) * (1 + np.float32(0.3) * grain))
    paving, stone = vary(rng, rng.pick(PAVINGS), 10), rng.uniform(0.6, 1.2)
    curb = shade(paving, rng.uniform(0.8, 1.25))
    joints = np.maximum(stripes(x, stone, 0.06, scale), stripes(depth, stone, 0.06, scale_ahead))
    joints *= cover(scale_ahead / 6 - 1) * np.float32(0.45)  # too fine to be seen far away
    slabs = mix(paving, shade(paving, 0.6), joints)
    lay(PAVEMENT, street.left_wall, street.left, mix(slabs, curb, band(x, street.left, 0.32, scale)))
    lay(PAVEMENT, street.right, street.right_wall, mix(slabs, curb, band(x, street.right, 0.32, scale)))
    asphalt = planes(vary(rng, rng.pick(ASPHALTS), 7)) * (1 + np.float32(0.1) * grain)
    marks = road_marks(rng, street, x, depth, scale, scale_ahead)
    lay(ROAD, street.left, street.right, mix(asphalt, vary(rng, MARKS, 14), marks))


def road_marks(rng: Rng, street: Street, x, depth, scale, scale_ahead) -> np.ndarray:
    """Return the coverage by road markings (center and edge lines, sometimes a zebra crossing), [h,w], 0 to 1."""
    lines = band(x, street.middle, 0.18, scale)
    if rng.chance(0.75):
        start = np.float32(rng.uniform(0, 6))
        lines = lines * stripes(depth + start, rng.uniform(3.5, 6), 2.2, scale_ahead)
    if rng.chance(0.4):
        for edge in (street.left + 0.3, street.right - 0.3):
            lines = np.maximum(lines, band(x, edge, 0.12, scale))
    if rng.chance(0.35):
        crossing = band(depth, rng.uniform(6.5, 12), 2.6, scale_ahead)
        lines = np.maximum(lines * (1 - crossing), stripes(x, 0.9, 0.45, scale) * crossing)
    return lines * np.float32(rng.uniform(0.65, 0.95))
