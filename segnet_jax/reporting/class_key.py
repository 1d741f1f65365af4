"""The class key: squares in the class colors with the class names, below prediction pictures and figures.

The report has an HTML version: `class="key"` in `page/report.html.j2`.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from segnet_jax.data.labels.classes import ClassTable, Color
from segnet_jax.reporting.colors import hatch
from segnet_jax.reporting.sheet import INK, PAPER, cut, load_font, text_size

_MIN_KEY_WIDTH = 320  # pixels, so that a class name fits below a small picture


def add_class_key(picture: np.ndarray, fractions: Sequence[float], classes: ClassTable) -> np.ndarray:
    """Append a color key below a picture, with the fraction of the pixels for each class.

    Args:
      picture: uint8 [H,W,3].
      fractions: fraction of each class, 0..1; a class with 0 is left out.
      classes: names and colors.

    Returns:
      uint8 [H + height of the key, max(W, 320), 3], with the picture at the upper left.
    """
    entries = [
        (f"{name} {100 * fraction:.1f} %", color)
        for name, color, fraction in zip(classes.names, classes.colors, fractions, strict=True)
        if fraction
    ]
    height, width = picture.shape[:2]
    key = np.asarray(key_strip(entries, max(width, _MIN_KEY_WIDTH) - 16))
    whole = np.full((height + 8 + len(key), max(width, _MIN_KEY_WIDTH), 3), 255, np.uint8)
    whole[:height, :width] = picture
    whole[height + 8 :, 8 : 8 + key.shape[1]] = key
    return whole


def key_strip(entries: Sequence[tuple[str, Color | None]], width: int) -> Image.Image:
    """Draw a square of each color, hatched for None, with its name, in as many rows as needed."""
    size = text_size(width)
    font = load_font(size)
    row, x, places = 0, 0, []
    for name, color in entries:
        name = cut(name, font, width - 2 * size)
        length = round(1.4 * size + font.getlength(name))
        if x and x + length > width:
            row, x = row + 1, 0
        places.append((x, round(1.7 * size * row), name, color))
        x += length + round(1.3 * size)
    strip = Image.new("RGB", (width, round(1.7 * size * (row + 1))), PAPER)
    draw = ImageDraw.Draw(strip)
    for x, y, name, color in places:
        top = y + size // 8
        if color is None:
            square = np.full((size, size, 3), 255, np.uint8)
            strip.paste(Image.fromarray(hatch(square, np.ones((size, size), bool))), (x, top))
        draw.rectangle((x, top, x + size, top + size), fill=color, outline=(120, 120, 120))
        draw.text((x + round(1.4 * size), y), name, font=font, fill=INK)
    return strip
