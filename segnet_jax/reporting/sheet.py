"""Build pictures from vertically stacked strips of panels and text."""

import functools
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

MIN_WIDTH = 640  # pixels, so that a title and a color key fit above a single small picture
_MIN_PANEL, _MAX_PANEL = 240, 480  # pixels of width
_MAX_PANEL_HEIGHT = 4096  # pixels of height that a small picture is enlarged to
_MAX_TEXT = 96  # pixels: below a panorama a key would otherwise take hundreds of megabytes
_GAP, _MARGIN = 8, 16
INK, PAPER = (32, 32, 32), (255, 255, 255)


def panel_strip(panels: Sequence[np.ndarray]) -> Image.Image:
    """Place pictures of equal size side by side.

    Pictures narrower than 240 pixels are enlarged by an integer factor; those wider than 480 are shrunk.

    Args:
      panels: uint8 [H,W,3] each.
    """
    fitted = [_fit(panel) for panel in panels]
    width, height = fitted[0].size
    strip = Image.new("RGB", (len(fitted) * (width + _GAP) - _GAP, height), PAPER)
    for place, panel in enumerate(fitted):
        strip.paste(panel, (place * (width + _GAP), 0))
    return strip


def panel_scale(height: int, width: int) -> float:
    """Return the factor by which `panel_strip` enlarges or shrinks pictures of a size."""
    if width < _MIN_PANEL:
        return max(1, min(-(-_MIN_PANEL // width), _MAX_PANEL_HEIGHT // height))
    return min(1.0, _MAX_PANEL / width)


def _fit(panel: np.ndarray) -> Image.Image:
    image = Image.fromarray(panel)
    if image.width < _MIN_PANEL:
        factor = panel_scale(image.height, image.width)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if image.width > _MAX_PANEL:
        height = max(1, round(image.height * _MAX_PANEL / image.width))
        return image.resize((_MAX_PANEL, height), Image.Resampling.BOX)
    return image


def text_strip(
    texts: Sequence[str], width: int, *, scale: float = 1.0, bold: bool = False, keep_end: bool = False
) -> Image.Image:
    """Draw a line of texts in columns of equal width; long texts are cut at their end or beginning."""
    size = round(scale * text_size(width))
    font = load_font(size, bold)
    strip = Image.new("RGB", (width, round(1.4 * size)), PAPER)
    pitch = (width + _GAP) / len(texts)
    for place, text in enumerate(texts):
        fitting = cut(text, font, pitch - _GAP, keep_end)
        ImageDraw.Draw(strip).text((round(place * pitch), 0), fitting, font=font, fill=INK)
    return strip


def space_strip(height: int) -> Image.Image:
    """Return extra space between two strips."""
    return Image.new("RGB", (1, height), PAPER)


def text_size(width: int) -> int:
    """Return a text height in pixels that stays readable when the picture is shrunk to the screen width."""
    return min(max(14, width // 88), _MAX_TEXT)


MARK = b"Software\0segnet_jax, as asked"
"""Marks a PNG that a flag asked for, which a later command may replace; a run's own pictures lack it."""


def is_asked_for(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a PNG with MARK."""
    return head.startswith(b"\x89PNG") and MARK in head


def sheet_png(strips: Sequence[Image.Image], asked_for: bool = False) -> bytes:
    """Stack strips vertically on a white background and encode the PNG, with MARK if a flag asked for it."""
    width = max(strip.width for strip in strips)
    height = sum(strip.height + _GAP for strip in strips) - _GAP
    sheet = Image.new("RGB", (width + 2 * _MARGIN, height + 2 * _MARGIN), PAPER)
    y = _MARGIN
    for strip in strips:
        sheet.paste(strip, (_MARGIN, y))
        y += strip.height + _GAP
    buffer = io.BytesIO()
    info = PngInfo()
    if asked_for:
        info.add_text(*MARK.decode().split("\0"))
    sheet.save(buffer, "PNG", compress_level=3, pnginfo=info)  # a tenth larger than the default, in half the time
    return buffer.getvalue()


def cut(text: str, font: ImageFont.FreeTypeFont, width: float, keep_end: bool = False) -> str:
    """Shorten a text to a width in pixels, at its end or at its beginning."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[1:] if keep_end else text[:-1]
    return f"…{text}" if keep_end else f"{text}…"


@functools.cache
def load_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans at a size in pixels."""
    import matplotlib  # provides DejaVu Sans on every machine, the font of the training plot

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
