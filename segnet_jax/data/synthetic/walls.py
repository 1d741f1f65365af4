"""Houses, hedges and fences; each pixel is mapped to its position on the wall, where patterns are in meters."""

import math
from dataclasses import dataclass

import numpy as np

from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.data.synthetic.canvas import Canvas, Color, Patch, Rng, cover, planes
from segnet_jax.data.synthetic.upright_objects import LEAVES, LOOSE, Camera, band, leafy, mix, shade, stripes, vary

BUILDING, TREE, FENCE = map(CAMVID.names.index, ("Building", "Tree", "Fence"))
FACADES = (
    (158, 92, 74),
    (190, 172, 144),
    (136, 132, 130),
    (208, 200, 184),
    (140, 110, 92),
    (124, 136, 150),
    (184, 146, 116),
    (168, 172, 150),
    (200, 168, 164),
)
PANES = ((52, 60, 70), (84, 98, 110), (140, 152, 160), (70, 62, 56))
RAILINGS = ((222, 220, 210), (120, 84, 48), (206, 196, 176), (140, 100, 58), (84, 66, 56))


@dataclass(frozen=True)
class Wall:
    """An upright surface on the canvas.

    Attributes:
      patch: pixels of the surface.
      along: float32 [w], meters along the surface.
      up: float32 [h,w] or [h,1], meters above the ground.
      depth: float32 [w] or [1], meters ahead.
      along_scale, up_scale: float32 [w] or [1], pixels per meter.
    """

    patch: Patch
    along: np.ndarray
    up: np.ndarray
    depth: np.ndarray
    along_scale: np.ndarray
    up_scale: np.ndarray


def wall_along(canvas: Canvas, camera: Camera, x: float, near: float, far: float, top: float) -> Wall | None:
    """Make a wall along the street, `x` meters to the right, from the ground to `top`."""
    corners = [camera.point(x, up, depth) for up, depth in ((0, near), (top, near), (top, far), (0, far))]
    patch = canvas.polygon(corners)
    if patch is None:
        return None
    columns = canvas.x[patch.window[1]] - np.float32(camera.vanishing)
    scale = np.maximum(columns / np.float32(x), np.float32(0.7 * camera.focal / far))  # the margin may lie beyond `far`
    depth = np.float32(camera.focal) / scale
    up = np.float32(camera.eye) - (canvas.y[patch.window[0]] - np.float32(camera.horizon))[:, None] / scale
    return Wall(patch, depth, up, depth, scale * scale * np.float32(abs(x) / camera.focal), scale)


def wall_across(canvas: Canvas, camera: Camera, start: float, stop: float, depth: float, top: float) -> Wall | None:
    """Make a wall facing the camera at `depth`, from `start` to `stop` meters to the right."""
    patch = canvas.box(*camera.point(start, top, depth), *camera.point(stop, 0, depth))
    if patch is None:
        return None
    scale = np.array([camera.scale(depth)], np.float32)
    along = (canvas.x[patch.window[1]] - np.float32(camera.vanishing)) / scale
    up = np.float32(camera.eye) - (canvas.y[patch.window[0]] - np.float32(camera.horizon))[:, None] / scale
    return Wall(patch, along, up, np.array([depth], np.float32), scale, scale)


@dataclass(frozen=True)
class Facade:
    """Appearance of a house: colors, lengths in meters, and brightness of its windows, float32 [4,8]."""

    wall: Color
    pane: Color
    trim: Color
    bay: float
    story: float
    ground_floor: float
    window_width: float
    window_height: float
    shop: bool
    glints: np.ndarray


def draw_facade(rng: Rng) -> Facade:
    """Draw the appearance of a house."""
    wall = vary(rng, shade(rng.pick(FACADES), rng.uniform(0.82, 1.1)), 12)
    trims = ((206, 202, 192), shade(wall, 0.65), shade(wall, 1.3), (150, 60, 52), (60, 84, 110))
    bay, story = rng.uniform(2.0, 3.4), rng.uniform(2.7, 3.3)
    return Facade(
        wall=wall,
        pane=vary(rng, rng.pick(PANES)),
        trim=vary(rng, rng.pick(trims)),
        bay=bay,
        story=story,
        ground_floor=rng.uniform(2.9, 3.6),
        window_width=rng.uniform(0.36, 0.62) * bay,
        window_height=rng.uniform(0.42, 0.62) * story,
        shop=rng.chance(0.5),
        glints=np.float32(0.85) + np.float32(0.3) * rng.noise(4, 8),
    )


def paint_facade(canvas: Canvas, wall: Wall | None, look: Facade, top: float, light: float) -> None:
    """Paint one wall of a house: framed windows, a shop, and a cornice."""
    if wall is None:
        return
    if look.bay * wall.along_scale.max() < 3.4:  # pixels: too narrow to show windows
        return canvas.fill(
            wall.patch, mix(shade(look.wall, light), canvas.haze_color, canvas.haze_fraction(wall.depth))
        )
    bay = wall.along / np.float32(look.bay)
    floor = (wall.up - np.float32(look.ground_floor)) / np.float32(look.story)
    bay_number, floor_number = np.floor(bay), np.floor(floor)
    off_middle = np.abs(bay - bay_number - np.float32(0.5)) * np.float32(look.bay)
    off_center = np.abs(floor - floor_number - np.float32(0.5)) * np.float32(look.story)
    in_bay = (np.float32(look.window_width / 2) - off_middle) * wall.along_scale
    in_floor = (np.float32(look.window_height / 2) - off_center) * wall.up_scale
    num_floors = math.floor((top - 0.7 - look.ground_floor) / look.story)  # below the cornice
    has_window = (floor_number >= 0) & (floor_number < num_floors)
    in_window = np.where(has_window, np.minimum(in_bay, in_floor), np.float32(-9))
    color = mix(look.wall, look.trim, cover(in_window + np.float32(0.12) * wall.up_scale))
    glint = look.glints[floor_number.astype(np.intp) & 3, bay_number.astype(np.intp) & 7]
    color = mix(color, planes(look.pane) * glint, cover(in_window))
    if look.shop:
        head = look.ground_floor - 0.8
        in_shop = np.minimum(
            in_bay + np.float32(0.12 * look.bay) * wall.along_scale,
            np.minimum(wall.up - np.float32(0.5), np.float32(head) - wall.up) * wall.up_scale,
        )
        color = mix(color, shade(look.pane, 0.8), cover(in_shop))
        color = mix(color, look.trim, band(wall.up, head + 0.33, 0.65, wall.up_scale))
    color = mix(color, look.trim, cover((wall.up - np.float32(top - 0.45)) * wall.up_scale))
    color *= np.float32(light) * (1 + np.float32(0.09) * canvas.stains[wall.patch.window])
    canvas.fill(wall.patch, mix(color, canvas.haze_color, canvas.haze_fraction(wall.depth)))


def hedge(rng: Rng, canvas: Canvas, camera: Camera, x: float, near: float, far: float) -> None:
    """Paint a clipped hedge along the street."""
    wall = wall_along(canvas, camera, x, near, far, rng.uniform(0.9, 1.6))
    color = vary(rng, rng.pick(LEAVES))
    canvas.layer(TREE, rng.chance(LOOSE))
    if wall is not None:
        frayed = Patch(wall.patch.window, wall.patch.inside + np.float32(0.6) * canvas.clumps[wall.patch.window])
        canvas.fill(frayed, leafy(canvas, frayed, canvas.haze(color, near)))


def fence(rng: Rng, canvas: Canvas, camera: Camera, x: float, near: float, far: float) -> None:
    """Paint railings or boards along the street; the gaps between bars belong to the fence."""
    top, pitch, boards = rng.uniform(1.6, 2.3), rng.uniform(0.36, 0.7), rng.chance(0.3)
    color = vary(rng, shade(rng.pick(RAILINGS), rng.uniform(0.8, 1.1)))
    wall = wall_along(canvas, camera, x, near, far, top)
    canvas.layer(FENCE, rng.chance(LOOSE))
    if wall is None:
        return
    upright = stripes(wall.along, pitch, (0.86 if boards else 0.46) * pitch, wall.along_scale)
    upright = np.maximum(upright, stripes(wall.along, 2.2, 0.16, wall.along_scale))  # posts
    rails = np.maximum(band(wall.up, 0.2, 0.14, wall.up_scale), band(wall.up, top - 0.2, 0.14, wall.up_scale))
    bars = np.maximum(np.maximum(upright, rails), np.float32(0.55))
    canvas.fill(wall.patch, mix(color, canvas.haze_color, canvas.haze_fraction(wall.depth)), bars)
