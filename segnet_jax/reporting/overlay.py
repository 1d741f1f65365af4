"""What is seen of a prediction: its class ids as a palette picture, laid over the image, and how sure it is."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.reporting import sheet
from segnet_jax.reporting.colors import overlay

_KEY_WIDTH = 320  # pixels at least, so that a name has room beneath a small picture
_STRIP = 256  # rows that are mixed together: the numbers between take 48 bytes a pixel
_LONGEST = 65_500  # pixels of a JPEG's side


def index_png(prediction: np.ndarray, classes: ClassTable) -> bytes:
    """A PNG whose values are the class ids, uint8 [H,W], and which shows them in the colours of the classes."""
    picture = Image.fromarray(prediction)  # grey
    picture.putpalette([channel for color in classes.colors for channel in color])
    return _encoded(picture, "PNG")


def laid_over(image: np.ndarray, prediction: np.ndarray, classes: ClassTable) -> np.ndarray:
    """As `colors.overlay` for one image, uint8 [H,W,3], in memory that does for photographs."""
    strips = [slice(start, start + _STRIP) for start in range(0, len(image), _STRIP)]
    return np.concatenate([overlay(image[strip], prediction[strip], classes) for strip in strips])


def with_key(picture: np.ndarray, shares: Sequence[float], classes: ClassTable) -> np.ndarray:
    """Puts a key of the classes that are in a picture beneath it, each with its share of the pixels.

    Args:
      picture: uint8 [H,W,3].
      shares: of each class, 0..1.
      classes: names and colours.

    Returns:
      uint8 [H + the key, max(W, 320), 3], the picture at the upper left as it was.
    """
    entries = [
        (f"{name} {100 * share:.1f} %", color)
        for name, color, share in zip(classes.names, classes.colors, shares, strict=True)
        if share
    ]
    height, width = picture.shape[:2]
    key = np.asarray(sheet.key_strip(entries, max(width, _KEY_WIDTH) - 16))
    whole = np.full((height + 8 + len(key), max(width, _KEY_WIDTH), 3), 255, np.uint8)
    whole[:height, :width] = picture
    whole[height + 8 :, 8 : 8 + key.shape[1]] = key
    return whole


def picture_file(picture: np.ndarray) -> tuple[bytes, str]:
    """A picture for looking at, uint8 [H,W,3]: a JPEG and ".jpg", or where it is too long for that a PNG and ".png"."""
    if max(picture.shape) > _LONGEST:
        return rgb_png(picture), ".png"
    return _encoded(Image.fromarray(picture), "JPEG", quality=92, subsampling=0), ".jpg"


def grey_png(values: np.ndarray) -> bytes:
    """A grey PNG of uint8 [H,W]."""
    return _encoded(Image.fromarray(values), "PNG")


def rgb_png(picture: np.ndarray) -> bytes:
    """A PNG of uint8 [H,W,3]."""
    return _encoded(Image.fromarray(picture), "PNG")


def _encoded(picture: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()
