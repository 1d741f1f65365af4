"""The camera, upright objects, and colors."""

from dataclasses import dataclass

import numpy as np

from segnet_jax.data.synthetic.canvas import Canvas, Color, Patch, Point, Rng, cover, planes

LOOSE = 0.6
"""Probability that an object has a VOID edge."""

METALS = ((40, 50, 50), (28, 48, 42), (56, 62, 66), (34, 40, 52), (70, 72, 70))
LEAVES = ((66, 100, 40), (84, 116, 44), (46, 86, 42), (112, 130, 50), (70, 108, 60), (140, 128, 48))
PAINTS = ((214, 214, 210), (36, 38, 44), (172, 34, 34), (34, 70, 146), (30, 120, 110), (222, 170, 36), (122, 126, 132))
GLASS = ((44, 52, 60), (88, 104, 116), (128, 146, 158))
BLACK, GREY, WHITE = (26.0, 26.0, 28.0), (124.0, 124.0, 126.0), (222.0, 222.0, 218.0)
SHADOW = (12.0, 12.0, 16.0)


def shade(color: Color, factor: float) -> Color:
    """Make a color darker (below 1) or lighter (above 1)."""
    red, green, blue = color
    return min(255.0, red * factor), min(255.0, green * factor), min(255.0, blue * factor)


def vary(rng: Rng, color: Color, spread: float = 16.0) -> Color:
    """Draw a color near `color`."""
    red, green, blue = [min(255.0, max(0.0, c + rng.uniform(-spread, spread))) for c in color]
    return red, green, blue


def leafy(canvas: Canvas, patch: Patch, color: Color) -> np.ndarray:
    """Return a leaf-like texture of a patch, float32 [3,h,w]."""
    return planes(color) * (1 + np.float32(0.55) * canvas.grain[patch.window])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the street; scene lengths are meters.

    Attributes:
      horizon: row of the horizon, pixels.
      vanishing: column of the vanishing point, pixels.
      focal: focal length, pixels.
      eye: height above the ground, meters.
    """

    horizon: float
    vanishing: float
    focal: float
    eye: float

    def scale(self, depth: float) -> float:
        """Return pixels per meter at a depth."""
        return self.focal / depth

    def point(self, x: float, up: float, depth: float) -> Point:
        """Project a point `x` meters to the right, `up` above the ground and `depth` ahead to (column, row)."""
        scale = self.focal / depth
        return self.vanishing + x * scale, self.horizon + (self.eye - up) * scale


class Stand:
    """An upright object facing the camera; shapes are in meters to the right of its foot and above the ground.

    Args:
      canvas: canvas to paint on.
      camera: the camera.
      x: meters to the right of the camera.
      depth: meters ahead.
      size: factor on all lengths.
      squeeze: factor on widths; below 1 turns the object away, below 0 mirrors it.
    """

    def __init__(self, canvas: Canvas, camera: Camera, x: float, depth: float, size: float = 1.0, squeeze: float = 1.0):
        self.canvas, self.depth, self.squeeze = canvas, depth, squeeze
        self.scale = size * camera.scale(depth)
        self.foot = camera.point(x, 0, depth)

    def point(self, x: float, up: float) -> Point:
        """Return the (column, row) of a point on the object."""
        return self.foot[0] + x * self.squeeze * self.scale, self.foot[1] - up * self.scale

    def _fill(self, patch, color, opacity=None):
        self.canvas.fill(patch, self.canvas.haze(color, self.depth), opacity)

    def polygon(self, points: list[Point], color: Color) -> None:
        """Paint a convex polygon of (x, up) corners."""
        self._fill(self.canvas.polygon([self.point(x, up) for x, up in points]), color)

    def box(self, left: float, bottom: float, right: float, top: float, color: Color) -> None:
        """Paint an upright rectangle."""
        (x0, y0), (x1, y1) = self.point(left, top), self.point(right, bottom)
        self._fill(self.canvas.box(min(x0, x1), y0, max(x0, x1), y1), color)

    def stroke(self, start: Point, end: Point, thickness: float, color: Color, least: float = 1.0) -> None:
        """Paint a straight stroke between two (x, up) points, at least `least` pixels thick."""
        thickness = max(thickness * self.scale, least)
        self._fill(self.canvas.stroke(self.point(*start), self.point(*end), thickness), color)

    def _oval(self, x, up, across, over, ragged=0.0):
        column, row = self.point(x, up)
        return self.canvas.ellipse(column, row, across * abs(self.squeeze) * self.scale, over * self.scale, ragged)

    def ellipse(self, x: float, up: float, across: float, over: float, color: Color) -> None:
        """Paint an ellipse with horizontal semi-axis `across` and vertical semi-axis `over`."""
        self._fill(self._oval(x, up, across, over), color)

    def foliage(self, x: float, up: float, across: float, over: float, color: Color) -> None:
        """Paint a ragged, mottled clump of leaves."""
        patch = self._oval(x, up, across, over, ragged=0.22)
        if patch is not None:
            self.canvas.fill(patch, leafy(self.canvas, patch, self.canvas.haze(color, self.depth)))

    def wheel(self, x: float, radius: float, tire: float, color: Color) -> None:
        """Paint a spoked wheel; the gaps between its spokes get its class."""
        patch = self._oval(x, radius, radius, radius)
        if patch is not None:
            self._fill(patch, color, opacity=0.2)
            rim = np.minimum(patch.inside, max(tire * self.scale, 1.0) - patch.inside)
            self._fill(Patch(patch.window, rim), color)

    def shadow(self, across: float) -> None:
        """Darken the ground around the foot without changing its class."""
        patch = self.canvas.ellipse(*self.foot, across * self.scale, 0.16 * across * self.scale)
        self.canvas.fill(patch, SHADOW, opacity=0.45, owns=False)


def mix(below, above, fraction: np.ndarray) -> np.ndarray:
    """Blend `above` over `below`, both RGB or float32 [3,h,w]; fraction [h,w], 0 to 1."""
    below, above = (planes(color) if isinstance(color, tuple) else color for color in (below, above))
    return below + fraction * (above - below)


def stripes(place: np.ndarray, pitch: float, width: float, pixels_per_meter) -> np.ndarray:
    """Return the coverage by stripes in the middle `width` of every `pitch` (meters): 0 to 1, shaped like `place`."""
    turn = place / np.float32(pitch)
    off_middle = np.abs(turn - np.floor(turn) - np.float32(0.5)) * np.float32(pitch)
    return cover((np.float32(width / 2) - off_middle) * pixels_per_meter)


def band(place: np.ndarray, middle: float, width: float, pixels_per_meter) -> np.ndarray:
    """Return the coverage by one stripe around `middle`: 0 to 1, shaped like `place`."""
    return cover((np.float32(width / 2) - np.abs(place - np.float32(middle))) * pixels_per_meter)
