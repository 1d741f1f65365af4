"""Encode the files that `predict` writes: class ids, overlays and grayscale maps."""

import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.nn.label_bits import unpack
from segnet_jax.reporting.colors import overlay

_STRIP = 1_000_000  # pixels blended at a time, since the intermediate values take 48 bytes a pixel
INDEX = ".png"
"""Suffix of the class ids."""
_OTHERS = ("", "overlay", "confidence", "errors", "frames", "entropy", "information", "variance")  # other files
_MAX_JPEG_SIDE = 65_500  # pixels, a limit of the format


def index_png(prediction: np.ndarray, classes: ClassTable) -> bytes:
    """Encode class ids uint8 [H,W] as a PNG with the class colors as its palette; pixel values are the ids."""
    picture = Image.fromarray(prediction)
    picture.putpalette([channel for color in classes.colors for channel in color])
    return _encoded(picture, "PNG")


def class_files(prediction: np.ndarray, classes: ClassTable) -> dict[str, bytes]:
    """Return suffix -> file of the class ids; if a pixel may have several, of a mask of 0 and 255 for each class."""
    if not classes.multi_label:
        return {INDEX: index_png(prediction, classes)}
    masks = np.moveaxis(unpack(prediction, len(classes)), -1, 0) * np.uint8(255)
    return dict(zip(mask_suffixes(classes.names), map(gray_png, masks), strict=True))


def mask_suffixes(names: Sequence[str]) -> list[str]:
    """Return the suffix of the mask of each class, _NAME.png; with the class id if others have it or it is empty."""
    suffixes: list[str] = []
    for class_id, name in enumerate(names):
        word = re.sub(r"[^\w-]+", "_", name).strip("_")
        is_taken = word.casefold() in _OTHERS or f"_{word}.png".casefold() in map(str.casefold, suffixes)
        suffixes.append(f"_class_{class_id}_{word}.png" if is_taken else f"_{word}.png")
    return suffixes


def overlay_by_strips(image: np.ndarray, prediction: np.ndarray, classes: ClassTable) -> np.ndarray:
    """Compute `colors.overlay` of one image uint8 [H,W,3] with little memory."""
    rows, result = max(1, _STRIP // image.shape[1]), np.empty_like(image)
    for start in range(0, len(image), rows):
        strip = slice(start, start + rows)
        result[strip] = overlay(image[strip], prediction[strip], classes)
    return result


def picture_file(picture: np.ndarray) -> tuple[bytes, str]:
    """Encode a picture uint8 [H,W,3] as a JPEG with suffix ".jpg", or as a PNG with ".png" if too large."""
    if max(picture.shape) > _MAX_JPEG_SIDE:
        return rgb_png(picture), ".png"
    return _encoded(Image.fromarray(picture), "JPEG", quality=92, subsampling=0), ".jpg"


def gray_png(values: np.ndarray) -> bytes:
    """Encode uint8 [H,W] as a grayscale PNG."""
    return _encoded(Image.fromarray(values), "PNG")


def rgb_png(picture: np.ndarray) -> bytes:
    """Encode uint8 [H,W,3] as a PNG."""
    return _encoded(Image.fromarray(picture), "PNG")


def _encoded(picture: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()
