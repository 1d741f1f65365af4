"""Objects in a street: trees, lamps, signs, people, bicycles.

Objects are drawn at random, `x` meters to the right of the camera and `depth` meters ahead. Thin objects are thicker
than in reality, to cover a few pixels in a small frame.
"""

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.data.synthetic.canvas import Canvas, Rng
from segnet_jax.data.synthetic.upright_objects import (
    BLACK,
    LEAVES,
    LOOSE,
    METALS,
    PAINTS,
    WHITE,
    Camera,
    Stand,
    shade,
    vary,
)

POLE, TREE, SIGN, PEDESTRIAN, BICYCLIST = map(
    CAMVID.names.index, ("Pole", "Tree", "SignSymbol", "Pedestrian", "Bicyclist")
)
CLOTHES = (
    (62, 40, 110),
    (150, 32, 60),
    (44, 44, 84),
    (128, 58, 132),
    (52, 54, 58),
    (70, 88, 62),
    (50, 104, 124),
    (176, 60, 110),
)
JERSEYS = ((224, 220, 40), (244, 130, 30), (120, 220, 60), (40, 200, 190), (250, 90, 60), (210, 40, 60), (60, 120, 210))
SKINS = ((226, 184, 152), (196, 148, 112), (150, 104, 76), (96, 66, 50))
HAIRS = ((40, 30, 26), (92, 66, 40), (150, 140, 130))
RED, BLUE, GREEN, YELLOW = (184.0, 38.0, 40.0), (38.0, 76.0, 156.0), (40.0, 104.0, 70.0), (214.0, 178.0, 60.0)
LAMPS = ((226.0, 60.0, 48.0), (232.0, 170.0, 50.0), (70.0, 200.0, 120.0))


def tree(rng: Rng, canvas: Canvas, camera: Camera, x: float, depth: float) -> None:
    """Paint a tree with a crown of leaf clumps that are lighter toward the top."""
    stand = Stand(canvas, camera, x, depth)
    leaf, bark = vary(rng, rng.pick(LEAVES)), vary(rng, (84, 72, 60))
    trunk, radius, thick = rng.uniform(1.7, 2.6), rng.uniform(1.2, 2.0), rng.uniform(0.3, 0.45)
    tall = rng.uniform(0.72, 1.2) * radius
    stand.shadow(0.8 * radius)
    canvas.layer(TREE, rng.chance(LOOSE))
    stand.polygon([(-0.7 * thick, 0), (0.7 * thick, 0), (0.4 * thick, trunk + 0.6), (-0.4 * thick, trunk + 0.6)], bark)
    if radius * stand.scale < 0.06 * canvas.height:  # far away a crown is one clump
        return stand.foliage(0, trunk + tall, 0.95 * radius, tall, leaf)
    for height in (0.6, 1.1, 1.6):
        for side in (-1, 1):
            across = rng.uniform(0.32, 0.6) if height < 1.5 else rng.uniform(0.05, 0.35)
            size = rng.uniform(0.56, 0.74) * radius
            color = shade(leaf, 0.62 + 0.28 * height + rng.uniform(0, 0.08))
            stand.foliage(side * across * radius, trunk + height * tall, 1.08 * size, 0.95 * size, color)


def bush(rng: Rng, canvas: Canvas, camera: Camera, x: float, depth: float) -> None:
    """Paint a bush."""
    stand = Stand(canvas, camera, x, depth)
    leaf, size = vary(rng, rng.pick(LEAVES)), rng.uniform(0.5, 0.9)
    canvas.layer(TREE, rng.chance(LOOSE))
    for across, up, light in ((-0.7, 0.5, 0.75), (0.7, 0.5, 0.85), (0.0, 0.8, 1.05)):
        stand.foliage(across * size, up * size, size, 0.8 * size, shade(leaf, light))


def pole(stand: Stand, height: float, thickness: float, metal, least: float) -> None:
    """Paint a round pole at least `least` pixels thick, with a highlight if it is wide enough."""
    stand.stroke((0, 0), (0, height), thickness, metal, least)
    if thickness * stand.scale > 3:
        streak = -0.12 * thickness
        stand.stroke((streak, 0), (streak, height), 0.3 * thickness, shade(metal, 1.5))


def lamp_post(rng: Rng, canvas: Canvas, camera: Camera, x: float, depth: float) -> None:
    """Paint a street lamp: a globe on top, or an arm that reaches over the road."""
    stand = Stand(canvas, camera, x, depth, squeeze=-1.0 if x > 0 else 1.0)
    metal, height = vary(rng, rng.pick(METALS), 8), rng.uniform(4.4, 6.0)
    least = 0.024 * canvas.height
    stand.shadow(0.4)
    canvas.layer(POLE, rng.chance(LOOSE))
    pole(stand, height, 0.3, metal, least)
    stand.stroke((0, 0), (0, 0.9), 0.42, shade(metal, 0.8), 1.3 * least)
    if rng.chance(0.5):
        reach = rng.uniform(0.9, 1.6)
        stand.stroke((0, height - 0.1), (reach, height + 0.25), 0.2, metal, 0.8 * least)
        stand.ellipse(reach + 0.1, height + 0.2, 0.42, 0.16, shade(metal, 0.85))
        stand.ellipse(reach + 0.12, height + 0.12, 0.3, 0.09, (250.0, 240.0, 200.0))
    else:
        stand.ellipse(0, height + 0.15, 0.34, 0.34, (244.0, 236.0, 206.0))
        stand.polygon([(-0.4, height + 0.35), (0.4, height + 0.35), (0.1, height + 0.62), (-0.1, height + 0.62)], metal)


def sign(rng: Rng, canvas: Canvas, camera: Camera, x: float, depth: float) -> None:
    """Paint a road sign or a traffic light on a pole."""
    size, up = rng.uniform(0.6, 0.78), rng.uniform(2.2, 2.9)
    stand = Stand(canvas, camera, x, depth)
    stand.shadow(0.35)
    canvas.layer(POLE, rng.chance(LOOSE))
    pole(stand, up, 0.25, vary(rng, rng.pick(METALS), 8), 0.022 * canvas.height)
    canvas.layer(SIGN, rng.chance(LOOSE))
    plate = Stand(canvas, camera, x, depth, size)  # from here on, a length of 1 is half the sign's height
    plate.foot = stand.point(0, up)
    rng.pick((warning, prohibition, command, stop, direction, traffic_light))(rng, plate)


def warning(rng: Rng, plate: Stand) -> None:
    """Paint a triangle with a red rim."""
    for reach, color in ((1.15, vary(rng, RED)), (0.72, WHITE)):
        plate.polygon([(-reach, -0.6 * reach), (reach, -0.6 * reach), (0, 1.15 * reach)], color)
    plate.box(-0.1, -0.3, 0.1, 0.4, BLACK)


def prohibition(rng: Rng, plate: Stand) -> None:
    """Paint a white disc with a red rim."""
    plate.ellipse(0, 0, 1, 1, vary(rng, RED))
    plate.ellipse(0, 0, 0.7, 0.7, WHITE)
    plate.box(-0.4, -0.1, 0.4, 0.1, BLACK)


def command(rng: Rng, plate: Stand) -> None:
    """Paint a blue disc with an arrow."""
    plate.ellipse(0, 0, 1, 1, WHITE)
    plate.ellipse(0, 0, 0.88, 0.88, vary(rng, BLUE))
    plate.polygon([(-0.4, 0), (0.4, 0), (0, 0.6)], WHITE)
    plate.box(-0.14, -0.6, 0.14, 0.1, WHITE)


def stop(rng: Rng, plate: Stand) -> None:
    """Paint a red octagon."""
    for far, color in ((1.05, WHITE), (0.92, vary(rng, RED))):
        near = 0.414 * far  # half a side of a regular octagon: tan(22.5 degrees)
        right = [(near, -far), (far, -near), (far, near), (near, far)]
        plate.polygon(right + [(-x, -up) for x, up in right], color)
    plate.box(-0.6, -0.16, 0.6, 0.16, WHITE)


def direction(rng: Rng, plate: Stand) -> None:
    """Paint a board with two lines of text."""
    board = vary(rng, rng.pick((BLUE, GREEN, YELLOW, WHITE)))
    ink = BLACK if board[0] > 150 else WHITE
    plate.box(-1.5, -0.75, 1.5, 0.75, ink)
    plate.box(-1.42, -0.66, 1.42, 0.66, board)
    plate.box(-1.1, 0.15, 0.7, 0.38, ink)
    plate.box(-1.1, -0.35, 0.3, -0.12, ink)


def traffic_light(rng: Rng, plate: Stand) -> None:
    """Paint three lamps, one of them lit."""
    plate.box(-0.62, -1.3, 0.62, 1.3, vary(rng, (40, 42, 42), 10))
    lit = rng.integer(0, 2)
    for place, color in enumerate(LAMPS):
        plate.ellipse(0, 0.8 - 0.8 * place, 0.34, 0.34, color if place == lit else shade(color, 0.35))


def pedestrian(rng: Rng, canvas: Canvas, camera: Camera, x: float, depth: float) -> None:
    """Paint a person, sometimes a child, walking or standing."""
    size = rng.uniform(1.15, 1.35) if rng.chance(0.88) else rng.uniform(0.8, 0.9)
    stand = Stand(canvas, camera, x, depth, size, squeeze=rng.pick((-1.0, 1.0)))
    top, trousers = vary(rng, rng.pick(CLOTHES)), vary(rng, shade(rng.pick(CLOTHES), 0.8))
    stride, swing = rng.pick((0.08, 0.14, 0.3, 0.36)), rng.uniform(0.05, 0.22)
    hem = rng.pick((0.82, 0.82, 0.55))  # jacket or coat
    stand.shadow(0.5)
    canvas.layer(PEDESTRIAN, rng.chance(LOOSE))
    for foot, light in ((-stride, 0.8), (stride, 1.0)):
        stand.stroke((0.35 * foot, 0.92), (foot, 0.06), 0.23, shade(trousers, light), 1.5)
        stand.box(foot - 0.1, 0, foot + 0.18, 0.09, shade(trousers, 0.45))
    if rng.chance(0.3):  # a bag
        stand.box(-0.46, 0.62, -0.22, 0.98, vary(rng, rng.pick(CLOTHES)))
    stand.stroke((-0.2, 1.4), (-0.26 - swing, 0.88), 0.15, shade(top, 0.8))
    stand.stroke((0.2, 1.4), (0.26 + swing, 0.88), 0.15, shade(top, 0.92))
    stand.polygon([(-0.19, 1.51), (0.19, 1.51), (0.29, 1.38), (0.27, hem), (-0.27, hem), (-0.29, 1.38)], top)
    stand.ellipse(0, 1.68, 0.15, 0.19, vary(rng, rng.pick(SKINS), 8))
    stand.ellipse(-0.02, 1.77, 0.155, 0.12, vary(rng, rng.pick(HAIRS)))


def bicyclist(rng: Rng, canvas: Canvas, camera: Camera, x: float, depth: float) -> None:
    """Paint a bicyclist riding across the street, or along it and thus foreshortened."""
    along = rng.chance(0.45)
    squeeze = rng.uniform(0.45, 0.65) if along else rng.uniform(0.85, 1.0)
    broad = 1.35 if along else 1.0  # only the bicycle is foreshortened, not the rider
    stand = Stand(canvas, camera, x, depth, rng.uniform(1.1, 1.22), squeeze * rng.pick((-1.0, 1.0)))
    top, legs = vary(rng, rng.pick(JERSEYS)), vary(rng, shade(rng.pick(CLOTHES), 0.75))
    frame = vary(rng, rng.pick(PAINTS))
    front, rear, pedal, saddle, bar = (0.56, 0.39), (-0.56, 0.39), (-0.04, 0.36), (-0.24, 0.98), (0.4, 1.05)
    hip, shoulder = (-0.22, 1.08), (0.12, 1.62)
    stand.shadow(0.75 * squeeze + 0.1)
    canvas.layer(BICYCLIST, rng.chance(LOOSE))
    for hub in (rear, front):
        stand.wheel(hub[0], hub[1], 0.09, BLACK)
    for start, end in ((rear, pedal), (pedal, saddle), (pedal, bar), ((-0.2, 0.85), bar), (bar, front)):
        stand.stroke(start, end, 0.07, frame)
    for knee, foot, light in (((0.14, 0.78), (-0.02, 0.22), 0.75), ((0.22, 0.92), (0.02, 0.42), 1.0)):
        stand.stroke(hip, knee, 0.21 * broad, shade(legs, light), 1.4)
        stand.stroke(knee, foot, 0.17 * broad, shade(legs, light), 1.2)
    stand.stroke((-0.27, 1.02), shoulder, 0.4 * broad, top, 2.0)
    stand.stroke(shoulder, (0.44, 1.14), 0.15 * broad, shade(top, 0.85), 1.2)
    stand.ellipse(0.24, 1.85, 0.17 * broad, 0.19, vary(rng, rng.pick(SKINS), 8))
    if rng.chance(0.6):  # a helmet
        stand.ellipse(0.21, 1.95, 0.2 * broad, 0.13, vary(rng, rng.pick(PAINTS)))


def litter_bin(rng: Rng, canvas: Canvas, camera: Camera, x: float, depth: float) -> None:
    """Paint a litter bin, which is VOID."""
    stand = Stand(canvas, camera, x, depth)
    color, wide, tall = vary(rng, rng.pick(PAINTS + METALS)), rng.uniform(0.3, 0.5), rng.uniform(0.9, 1.3)
    stand.shadow(0.6)
    canvas.layer(VOID)
    stand.polygon([(-0.85 * wide, 0), (0.85 * wide, 0), (wide, tall), (-wide, tall)], color)
    stand.box(-1.1 * wide, tall - 0.06, 1.1 * wide, tall + 0.1, shade(color, 0.7))
    stand.box(-0.5 * wide, 0.55 * tall, 0.5 * wide, 0.7 * tall, shade(color, 0.5))
