"""Canvas and random numbers of the street scenes.

Scenes are the same on every machine, because only elementwise additions, multiplications, divisions, square roots and
comparisons are used, whose results IEEE 754 defines, unlike those of sines, powers, sums and matrix products.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np

from segnet_jax.constants import VOID


class Rng:
    """Random numbers that depend on `identity` alone.

    They are made of Philox's raw 64-bit integers, which numpy guarantees not to change, unlike the distributions of
    `numpy.random.Generator`.

    Args:
      *identity: strings and integers that identify the stream, such as a seed, a split's name and an index.
    """

    def __init__(self, *identity: str | int):
        digest = hashlib.sha256(repr(identity).encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
        self._unused: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw a number in [low, high)."""
        if not self._unused:  # in blocks: one numpy call costs as much as hundreds of draws
            self._unused = ((self._bits.random_raw(512) >> np.uint64(11)) * 2.0**-53).tolist()
        return low + (high - low) * self._unused.pop()

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """Draw an integer from low to high, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def pick(self, options):
        """Pick one item of a sequence."""
        return options[self.integer(0, len(options) - 1)]

    def noise(self, *shape: int) -> np.ndarray:
        """Draw float32 numbers from -1 to 1, each from the mean of two random bytes."""
        count = 1
        for size in shape:
            count *= size
        raw = self._bits.random_raw(count // 4 + 1).astype("<u8").view(np.uint8)  # the same bytes on any machine
        pairs = raw[:count].astype(np.int16) + raw[count : 2 * count]
        return (pairs.astype(np.float32) / 255 - 1).reshape(shape)


ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
Color = tuple[float, float, float]
Point = tuple[float, float]


class Patch(NamedTuple):
    """A shape on the canvas.

    Attributes:
      window: slices of rows and of columns.
      inside: float32 [h,w], distance from the edge in pixels, positive inside.
    """

    window: tuple[slice, slice]
    inside: np.ndarray


def cover(pixels: np.ndarray) -> np.ndarray:
    """Convert distances inside an edge to the covered fraction of each pixel, 0 to 1."""
    return np.minimum(np.maximum(pixels + HALF, ZERO), ONE)


def planes(color: Color) -> np.ndarray:
    """Return a color as float32 [3,1,1]."""
    return np.array(color, np.float32)[:, None, None]


class Canvas:
    """An image painted from back to front: `layer` starts an object, to which subsequent patches belong.

    The image is antialiased. A pixel's label is the class of the last layer that covers its center.

    Attributes:
      image: float32 [3,height,width], RGB 0..255.
      x, y: float32 [width] and [height], pixel centers.
      clumps, grain, stains: noise around 0, float32 [height,width], for ragged edges, leaves, and walls and asphalt.
      haze_color, haze_depth: color of the haze, and depth in meters at which it makes up a third of a color.
    """

    def __init__(self, rng: Rng, height: int, width: int):
        self.height, self.width = height, width
        self.x = np.arange(width, dtype=np.float32) + np.float32(0.5)
        self.y = np.arange(height, dtype=np.float32) + np.float32(0.5)
        self.image = np.zeros((3, height, width), np.float32)
        self._owner = np.zeros((height, width), np.int16)  # the layer that each pixel belongs to
        self._layers: list[tuple[int, bool]] = []  # class id, loose
        self.clumps = self.smooth_noise(rng, 0.0125 * height + 0.4, 0.0125 * height + 0.4)
        self.grain = (self.clumps + rng.noise(height, width)) * np.float32(0.7)
        self.stains = self.smooth_noise(rng, 0.09 * height, 0.09 * height)
        self.haze_color, self.haze_depth = (0.0, 0.0, 0.0), math.inf

    def smooth_noise(self, rng: Rng, row_cell: float, column_cell: float) -> np.ndarray:
        """Return noise interpolated from a random grid, float32 [height,width], -1 to 1; cell sizes are in pixels."""
        rows, columns = self.y / np.float32(row_cell), self.x / np.float32(column_cell)
        top, left = rows.astype(np.intp), columns.astype(np.intp)
        grid = rng.noise(int(top[-1]) + 2, int(left[-1]) + 2)
        down, right = (rows - top.astype(np.float32))[:, None], columns - left.astype(np.float32)
        grid = grid[top] + down * (grid[top + 1] - grid[top])
        return grid[:, left] + right * (grid[:, left + 1] - grid[:, left])

    def layer(self, class_id: int, loose: bool = False) -> None:
        """Start an object in front of the others; a loose one gets a VOID edge, as in CamVid's annotations."""
        self._layers.append((class_id, loose))

    def haze_fraction(self, depth):
        """Return the fraction of haze at a depth (float32 array, meters), 0 to 3/4."""
        return np.minimum(depth / np.float32(3 * self.haze_depth), np.float32(0.75))

    def haze(self, color: Color, depth: float) -> Color:
        """Blend a color with haze."""
        fraction = min(0.75, depth / (3 * self.haze_depth))
        (r, g, b), (r_air, g_air, b_air) = color, self.haze_color
        return r + fraction * (r_air - r), g + fraction * (g_air - g), b + fraction * (b_air - b)

    def fill(self, patch: Patch | None, color, opacity=None, owns: bool = True) -> None:
        """Paint a patch.

        Args:
          patch: the shape; None paints nothing.
          color: RGB 0..255, or float32 that broadcasts to [3,h,w].
          opacity: 0..1, or float32 that broadcasts to [h,w]; None is opaque.
          owns: whether the pixels get the layer's class; False for shadows.
        """
        if patch is None:
            return
        fraction = cover(patch.inside)
        if opacity is not None:
            fraction *= opacity
        view = self.image[:, *patch.window]
        view += fraction * ((planes(color) if isinstance(color, tuple) else color) - view)
        if owns:
            self._owner[patch.window][patch.inside >= 0] = len(self._layers) - 1

    def window(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice] | None:
        """Return the window of these edges plus one pixel for antialiasing, or None if it is outside the canvas."""
        first_row, last_row = max(0, math.floor(top) - 1), min(self.height, math.ceil(bottom) + 1)
        first_column, last_column = max(0, math.floor(left) - 1), min(self.width, math.ceil(right) + 1)
        if first_row >= last_row or first_column >= last_column:
            return None
        return slice(first_row, last_row), slice(first_column, last_column)

    def box(self, left: float, top: float, right: float, bottom: float) -> Patch | None:
        """Make an upright rectangle."""
        window = self.window(left, top, right, bottom)
        if window is None:
            return None
        y, x = self.y[window[0]], self.x[window[1]]
        return Patch(window, np.minimum(np.minimum(x - left, right - x), np.minimum(y - top, bottom - y)[:, None]))

    def polygon(self, points: list[Point]) -> Patch | None:
        """Make a convex polygon from its (column, row) corners, in either orientation."""
        columns, rows = [p[0] for p in points], [p[1] for p in points]
        window = self.window(min(columns), min(rows), max(columns), max(rows))
        if window is None:
            return None
        edges, area = [], 0.0
        x0, y0 = points[-1]
        for x1, y1 in points:
            area += x0 * y1 - x1 * y0
            length = math.sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
            if length > 1e-6:
                a, b = (y0 - y1) / length, (x1 - x0) / length
                edges.append((a, b, -a * x0 - b * y0))
            x0, y0 = x1, y1
        if not edges:
            return None
        a, b, c = np.array(edges, np.float32).T[:, :, None] * np.float32(1 if area > 0 else -1)
        from_rows, from_columns = b * self.y[window[0]] + c, a * self.x[window[1]]  # [edges,h], [edges,w]
        return Patch(window, (from_rows[:, :, None] + from_columns[:, None, :]).min(axis=0))

    def stroke(self, start: Point, end: Point, thickness: float) -> Patch | None:
        """Make a straight stroke between two (column, row) points, at least one pixel thick."""
        (x0, y0), (x1, y1) = start, end
        length = math.sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
        half = max(thickness, 1.0) / 2 / max(length, 1e-6)
        dx, dy = (y1 - y0) * half, (x0 - x1) * half
        return self.polygon([(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)])

    def ellipse(self, x: float, y: float, across: float, down: float, ragged: float = 0.0) -> Patch | None:
        """Make an ellipse from its center and semi-axes; `ragged`, a fraction of the axes, frays its edge."""
        across, down, reach = max(across, 0.5), max(down, 0.5), 1 + ragged
        window = self.window(x - across * reach, y - down * reach, x + across * reach, y + down * reach)
        if window is None:
            return None
        u, v = (self.x[window[1]] - x) / across, (self.y[window[0]] - y) / down
        inside = (1 - np.sqrt(u * u + (v * v)[:, None])) * min(across, down)
        if ragged:
            inside += self.clumps[window] * (ragged * min(across, down))
        return Patch(window, inside)

    def label(self) -> np.ndarray:
        """Return class ids, with VOID just outside the edges of loose layers: uint8 [height,width]."""
        class_ids, loose = np.array(self._layers).T
        reach = np.where(loose.astype(bool)[self._owner], self._owner, 0)  # nearest loose layer in the neighborhood
        for _ in range(max(1, round(self.height / 180))):
            wide = np.pad(reach, 1, mode="edge")
            beside = np.maximum(wide[1:-1, :-2], wide[1:-1, 2:])
            reach = np.maximum(reach, np.maximum(beside, np.maximum(wide[:-2, 1:-1], wide[2:, 1:-1])))
        return np.where(reach > self._owner, np.uint8(VOID), class_ids.astype(np.uint8)[self._owner])

    def photograph(self, rng: Rng) -> np.ndarray:
        """Return the image with the effects of a random lens and sensor, uint8 [height,width,3]."""
        gain = planes((rng.uniform(0.96, 1.04), rng.uniform(0.96, 1.04), rng.uniform(0.96, 1.04)))
        contrast, brightness = np.float32(rng.uniform(0.88, 1.12)), np.float32(118 + rng.uniform(-12, 12))
        image = (self.image - 118) * (gain * contrast) + brightness
        wide = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
        wide = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
        blurred = (wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]) / 16
        image += np.float32(rng.uniform(0, 0.5)) * (blurred - image)
        image += np.float32(rng.uniform(2, 9)) * rng.noise(*image.shape)
        return np.rint(np.clip(image, 0, 255)).astype(np.uint8).transpose(1, 2, 0)
