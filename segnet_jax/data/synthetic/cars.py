"""Cars along and across the street, and the hood of the camera's car."""

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.data.synthetic.canvas import Canvas, Rng
from segnet_jax.data.synthetic.upright_objects import (
    BLACK,
    GLASS,
    GREY,
    LOOSE,
    PAINTS,
    SHADOW,
    Camera,
    Stand,
    shade,
    vary,
)

CAR = CAMVID.names.index("Car")
HEADLIGHT, TAILLIGHT, PLATE = (250.0, 246.0, 220.0), (196.0, 30.0, 30.0), (230.0, 226.0, 190.0)


def car(rng: Rng, canvas: Canvas, camera: Camera, x: float, depth: float, oncoming: bool) -> None:
    """Paint a car or a van along the street, with its near end `depth` meters ahead.

    Corners of shapes are in meters to the right of its middle, above the ground, and behind the near end.
    """
    van = rng.chance(0.22)
    paint, glass = vary(rng, rng.pick(PAINTS)), vary(rng, rng.pick(GLASS))
    side_light = rng.pick((0.72, 0.82, 1.1))
    length = rng.uniform(3.7, 4.6)
    if van:
        half, roof, tall, waist = 1.0, 0.93, rng.uniform(2.0, 2.5), 1.1
        first, last, slope = 0.02 * length, 0.85 * length, 0.04 * length
    else:
        half, roof, tall, waist = 0.9, 0.72, rng.uniform(1.4, 1.75), 0.9
        first, last = (0.26 * length, 0.95 * length) if oncoming else (0.08 * length, 0.72 * length)
        slope = 0.1 * length
    sill, lintel = waist + 0.05, tall - 0.12
    flank, eaves = (-half, -roof) if x > 0 else (half, roof)  # of the visible side

    def surface(corners, color):
        patch = canvas.polygon([camera.point(x + right, up, depth + behind) for right, up, behind in corners])
        canvas.fill(patch, canvas.haze(color, depth))

    def across(bottom, low, back_low, top, high, back_high, color):  # symmetric about the middle
        surface(
            [(-bottom, low, back_low), (bottom, low, back_low), (top, high, back_high), (-top, high, back_high)], color
        )

    def near_end(left, bottom, right, top, color):
        surface([(left, bottom, 0), (right, bottom, 0), (right, top, 0), (left, top, 0)], color)

    ground = [(-half, -0.2), (half, -0.2), (half, length), (-half, length)]
    shadow = canvas.polygon([camera.point(x + 1.1 * right, 0, depth + behind) for right, behind in ground])
    canvas.fill(shadow, SHADOW, opacity=0.55, owns=False)
    canvas.layer(CAR, rng.chance(LOOSE))
    across(half, 0.3, length, half, waist, length, shade(paint, 0.7))  # far end, deck and roof close the outline
    across(half, waist, 0, half, waist, length, shade(paint, 1.1))
    across(roof, tall, first + slope, roof, tall, last - slope, shade(paint, 1.15))
    side = shade(paint, side_light)
    surface([(flank, 0.28, 0), (flank, waist, 0), (flank, waist, length), (flank, 0.28, length)], side)
    surface(
        [(flank, waist, first), (eaves, tall, first + slope), (eaves, tall, last - slope), (flank, waist, last)], side
    )
    door = (first + last) / 2
    for window in (
        [(flank, sill, first + 0.5), (eaves, lintel, first + 0.4 + slope), (eaves, lintel, door), (flank, sill, door)],
        [
            (flank, sill, door + 0.2),
            (eaves, lintel, door + 0.2),
            (eaves, lintel, last - slope - 0.1),
            (flank, sill, last - 0.2),
        ],
    ):
        surface(window, shade(glass, 0.8))
    for place in (0.19 * length, 0.8 * length):
        hub, row = camera.point(x + flank, 0.34, depth + place)
        front, _ = camera.point(x + flank, 0.34, depth + place - 0.34)
        for size, color in ((1.0, BLACK), (0.55, GREY)):
            down = 0.34 * size * camera.scale(depth + place)
            canvas.fill(canvas.ellipse(hub, row, size * abs(front - hub), down), canvas.haze(color, depth))
    for left in (-half, half - 0.24):
        near_end(left, 0.0, left + 0.24, 0.4, BLACK)
    across(half, waist, first, roof, tall, first + slope, shade(paint, 0.92))
    across(0.86 * half, sill, first + 0.1 * slope, 0.88 * roof, lintel, first + 0.8 * slope, glass)
    near_end(-half, 0.26, half, waist, paint)
    near_end(-half, 0.26, half, 0.42, shade(paint, 0.6))
    for left in (-half + 0.05, half - 0.37):
        near_end(left, waist - 0.32, left + 0.32, waist - 0.12, HEADLIGHT if oncoming else TAILLIGHT)
    if oncoming:
        near_end(-0.42, waist - 0.3, 0.42, waist - 0.14, shade(paint, 0.5))
    near_end(-0.28, 0.46, 0.28, 0.6, PLATE)


def crossing_car(rng: Rng, canvas: Canvas, camera: Camera, x: float, depth: float) -> None:
    """Paint a crossing car, seen from the side."""
    stand = Stand(canvas, camera, x, depth, squeeze=rng.pick((-1.0, 1.0)))
    paint, glass = vary(rng, rng.pick(PAINTS)), vary(rng, rng.pick(GLASS))
    tall = rng.uniform(1.4, 1.6)
    stand.shadow(2.2)
    canvas.layer(CAR, rng.chance(LOOSE))
    stand.polygon([(-1.5, 0.8), (0.95, 0.8), (0.35, tall), (-1.05, tall)], paint)
    stand.polygon([(-1.25, 0.84), (-0.3, 0.84), (-0.3, tall - 0.12), (-1.0, tall - 0.12)], glass)
    stand.polygon([(-0.2, 0.84), (0.72, 0.84), (0.27, tall - 0.12), (-0.2, tall - 0.12)], glass)
    stand.polygon([(-2.0, 0.3), (2.05, 0.3), (2.1, 0.55), (1.85, 0.82), (-1.9, 0.9), (-2.1, 0.7)], paint)
    stand.box(-2.0, 0.26, 2.0, 0.36, shade(paint, 0.5))
    stand.box(1.9, 0.56, 2.08, 0.68, HEADLIGHT)
    stand.box(-2.08, 0.6, -1.92, 0.74, TAILLIGHT)
    for hub in (-1.25, 1.25):
        stand.ellipse(hub, 0.36, 0.36, 0.36, BLACK)
        stand.ellipse(hub, 0.36, 0.18, 0.18, GREY)


def bonnet(rng: Rng, canvas: Canvas) -> None:
    """Paint the hood of the camera's car, which is VOID."""
    canvas.layer(VOID)
    paint, rise = vary(rng, rng.pick(PAINTS)), rng.uniform(0.1, 0.13) * canvas.height
    middle, below, half = rng.uniform(0.4, 0.6) * canvas.width, 1.08 * canvas.height, 0.75 * canvas.width
    canvas.fill(canvas.ellipse(middle, below, half, rise), shade(paint, 0.7))
    canvas.fill(canvas.ellipse(middle, below + 0.02 * canvas.height, 0.8 * half, rise), paint)
